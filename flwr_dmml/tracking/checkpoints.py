"""Checkpoints on disk: complete or not there, the last few kept, safetensors and JSON."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray
from safetensors.numpy import load, save

SCHEMA = 1
Arrays = dict[str, NDArray[Any]]
_STATE, _PART = "state.json", ".part"
_GROUPS = "nodes", "payloads"


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

    A checkpoint is written beside its place and then moved there, and holds digests of its files:
    one that is half written or damaged is never loaded, but the one before it.

    Parameters
    ----------
    folder : Path
        Holds them; made with the first.
    keep : int
        So many of the last are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, remove what is too old, and return its folder."""
        place = self.folder / f"round-{checkpoint.server_round:05d}"
        part = place.with_suffix(_PART)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        about = {"schema": SCHEMA, "round": checkpoint.server_round, "about": checkpoint.about}
        for group, arrays in zip(_GROUPS, (checkpoint.nodes, checkpoint.payloads), strict=True):
            data, about[group] = _pack(arrays)
            _write(part / f"{group}.safetensors", data)
        _write(part / _STATE, json.dumps(about).encode())
        shutil.rmtree(place, ignore_errors=True)  # of a run that went this far before
        part.rename(place)
        _sync(self.folder)
        for old in self._places()[self._keep :]:
            shutil.rmtree(old)
        return place

    def latest(self) -> Checkpoint | None:
        """Return the last checkpoint that is whole, or None; the log names those that are not."""
        for place in self._places():
            try:
                return _load(place)
            except (OSError, ValueError, KeyError) as error:
                log(WARNING, "The checkpoint %s cannot be used: %s", place, error)
        return None

    def _places(self) -> list[Path]:
        """Return all checkpoints, the last first."""
        found = [path for path in self.folder.glob("round-*") if path.suffix != _PART]
        return sorted(found, reverse=True)


def _pack(groups: Mapping[int, Arrays]) -> tuple[bytes, dict[str, Any]]:
    """Return arrays as one file, and what is to be known of it: names in order, and its digest."""
    flat = {
        f"{partition}/{i}": np.ascontiguousarray(array)
        for partition, arrays in groups.items()
        for i, array in enumerate(arrays.values())
    }
    shapes = {p: [list(array.shape) for array in arrays.values()] for p, arrays in groups.items()}
    names = {partition: list(arrays) for partition, arrays in groups.items()}
    data = save(flat)
    return data, {"names": names, "shapes": shapes, "digest": _digest(data)}


def _load(place: Path) -> Checkpoint:
    about = json.loads((place / _STATE).read_text(encoding="utf-8"))
    if about["schema"] != SCHEMA:
        raise ValueError(f"it has schema {about['schema']}, this version reads {SCHEMA}")
    groups: list[dict[int, Arrays]] = []
    for group in _GROUPS:
        data = (place / f"{group}.safetensors").read_bytes()
        if _digest(data) != about[group]["digest"]:
            raise ValueError(f"{group}.safetensors is not what was written")
        flat, names, shapes = load(data), about[group]["names"], about[group]["shapes"]
        groups.append(
            {
                int(p): {name: flat[f"{p}/{i}"].reshape(shapes[p][i]) for i, name in enumerate(own)}
                for p, own in names.items()
            }
        )
    return Checkpoint(int(about["round"]), about["about"], *groups)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Have the names in a folder written as well, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
