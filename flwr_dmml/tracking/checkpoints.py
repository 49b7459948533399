"""Checkpoints on disk: complete or not there, the last few kept, safetensors and JSON."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, StrictInt
from safetensors.numpy import save

from ..base.errors import UserError
from ..base.files import WriteError, sync_folder, write_whole, writing
from ..base.log import log
from ..base.tensors import read_tensors

SCHEMA = 3
CHECKPOINTS = "checkpoints"
"""The folder of them, in that of a method."""
Arrays = dict[str, NDArray[Any]]
DIGESTS = "digests"
"""File with the digests of a checkpoint's other files, which ``b2sum -l 128 -c`` checks."""
NONE_YET = "none-yet"
"""File in the folder of the checkpoints until the first one is there."""
_STATE, _PART = "state.json", ".part"
_GROUPS = "nodes", "payloads"
_FILES = (*(f"{group}.safetensors" for group in _GROUPS), _STATE)
_PLACE = re.compile(r"round-\d{5,}")
_DIGESTS = re.compile("".join(rf"([0-9a-f]{{32}})  {re.escape(n)}\n" for n in _FILES).encode())


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used: says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round, with all that the next one needs.

    Attributes
    ----------
    server_round : int
        The round, from 1.
    about : dict
        What can be written as JSON: plans, batteries, records.
    nodes : dict of int to Arrays
        What each device keeps, by partition id.
    payloads : dict of int to Arrays
        What each device has published in the round and does not keep as it is, by partition id.
    """

    server_round: int
    about: dict[str, Any]
    nodes: dict[int, Arrays]
    payloads: dict[int, Arrays]

    def array(self, partition: int, name: str) -> NDArray[Any]:
        """Return what a device has published under a name."""
        published = self.payloads.get(partition, {})
        return published[name] if name in published else self.nodes[partition][name]


class Checkpoints:
    """The checkpoints of one method, ``round-00010`` and so on, each a folder.

    A checkpoint is written beside its place and then moved there, with a digest of each of its
    files: one that is half written or damaged is never loaded, but the one before it.

    Parameters
    ----------
    folder : Path
        Holds them; see :meth:`begin`.
    keep : int
        So many of the last are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def begin(self) -> None:
        """Make the folder, and note that there is no checkpoint yet.

        Raises
        ------
        WriteError
            It cannot be made.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / NONE_YET, "")

    @property
    def there(self) -> bool:
        """Whether there are any, usable or not."""
        return bool(self._places())

    @property
    def none_yet(self) -> bool:
        """Whether none has ever been written: the folder says so, and it has none."""
        return (self.folder / NONE_YET).exists() and not self.there

    @property
    def last_round(self) -> int:
        """The round of the newest checkpoint, usable or not; 0 if there is none."""
        return max(map(_round_of, self._places()), default=0)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, remove what is too old, and return its folder.

        Raises
        ------
        WriteError
            It cannot be written; those before it are still there.
        """
        place = self.folder / f"round-{checkpoint.server_round:05d}"
        part = place.with_suffix(_PART)
        with writing(part):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        try:
            _store(checkpoint, part)
            with writing(place):
                shutil.rmtree(place, ignore_errors=True)  # of a run that went this far before
                part.rename(place)
        except WriteError:
            shutil.rmtree(part, ignore_errors=True)  # it may be what fills the disk
            raise
        sync_folder(self.folder)
        with writing(self.folder):
            (self.folder / NONE_YET).unlink(missing_ok=True)
            others = [old for old in self._places() if old != place]
            for old in others[self._keep - 1 :]:
                shutil.rmtree(old)
        return place

    def latest(self, check: Callable[[Checkpoint], None] = lambda found: None) -> Checkpoint | None:
        """Return the last checkpoint that can be used, or None; the log names those that cannot.

        Parameters
        ----------
        check : callable
            Raises :class:`CheckpointError` for one that is whole and still does not do.
        """
        for place in self._places():
            try:
                found = _load(place)
                check(found)
            except CheckpointError as error:
                log(WARNING, "The checkpoint %s cannot be used: %s", place, error)
            else:
                return found
        return None

    def _places(self) -> list[Path]:
        """Return all checkpoints, the last first."""
        found = [path for path in self.folder.glob("round-*") if _PLACE.fullmatch(path.name)]
        return sorted(found, key=_round_of, reverse=True)


class _Group(BaseModel):
    """Arrays as they lie in a file: names in order and shapes, by partition."""

    names: dict[int, list[str]]
    shapes: dict[int, list[list[int]]]


class _State(BaseModel):
    """What ``state.json`` holds."""

    round: StrictInt
    about: dict[str, Any]
    nodes: _Group
    payloads: _Group


def _pack(groups: Mapping[int, Arrays]) -> tuple[bytes, dict[str, Any]]:
    """Return arrays as one file, and what is to be known of it: names in order, and shapes."""
    flat = {
        f"{partition}/{i}": np.ascontiguousarray(array)
        for partition, arrays in groups.items()
        for i, array in enumerate(arrays.values())
    }
    shapes = {p: [list(array.shape) for array in arrays.values()] for p, arrays in groups.items()}
    names = {partition: list(arrays) for partition, arrays in groups.items()}
    return save(flat), {"names": names, "shapes": shapes}


def _store(checkpoint: Checkpoint, folder: Path) -> None:
    """Write all files of a checkpoint."""
    about = {"schema": SCHEMA, "round": checkpoint.server_round, "about": checkpoint.about}
    digests: list[str] = []
    for group, arrays in zip(_GROUPS, (checkpoint.nodes, checkpoint.payloads), strict=True):
        data, about[group] = _pack(arrays)
        write_whole(folder / f"{group}.safetensors", data)
        digests.append(digest([data]))
    state = json.dumps(about).encode()
    write_whole(folder / _STATE, state)
    digests.append(digest([state]))
    pairs = zip(digests, _FILES, strict=True)
    write_whole(folder / DIGESTS, "".join(f"{value}  {name}\n" for value, name in pairs))
    sync_folder(folder)


def _load(place: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        It is not what was written, or another version's.
    """
    try:
        told = _DIGESTS.fullmatch((place / DIGESTS).read_bytes())
        if told is None:
            raise CheckpointError(f"{DIGESTS} is not what was written")
        digests = dict(zip(_FILES, told.groups(), strict=True))
        state = json.loads(_read(place / _STATE, digests))
        if (schema := state.pop("schema")) != SCHEMA:
            raise CheckpointError(f"it has schema {schema}, this version reads {SCHEMA}")
        read = _State.model_validate(state)
        if read.round != _round_of(place):
            raise CheckpointError(f"it is of round {read.round}")
        nodes, payloads = (
            _unpack(_read(place / f"{name}.safetensors", digests), getattr(read, name))
            for name in _GROUPS
        )
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{_STATE}: {error}") from error
    return Checkpoint(read.round, read.about, nodes, payloads)


def _read(path: Path, digests: Mapping[str, bytes]) -> bytes:
    data = path.read_bytes()
    if digest([data]).encode() != digests[path.name]:
        raise CheckpointError(f"{path.name} and its digest do not agree")
    return data


def _unpack(data: bytes, group: _Group) -> dict[int, Arrays]:
    flat = read_tensors(data)
    return {
        p: {name: flat[f"{p}/{i}"].reshape(group.shapes[p][i]) for i, name in enumerate(own)}
        for p, own in group.names.items()
    }


def digest(parts: Iterable[bytes]) -> str:
    """Return what tells whether a file has changed, given all its bytes in order."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def _round_of(place: Path) -> int:
    return int(place.name.removeprefix("round-"))
