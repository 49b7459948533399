"""Data sets that several processes of one machine map into memory, instead of a copy in each."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from logging import WARNING
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.files import whole
from ..base.log import log
from .forms import Raw
from .samples import DataError, Doubt, Kind, Modality, Samples, Scale, Source

FOLDER = "FLWR_DMML_STORE"
"""Environment variable of the processes of a run: where they share what they have loaded."""
TENSORS, LOCK = ".safetensors", ".lock"
"""Suffixes of a source, and of what a process locks while it loads and writes it."""
WINDOWS = "windows"
"""Name of the tensor that says where windows lie in their recordings."""


class About(BaseModel):
    """What the header of a file says of the source in it, besides the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_classes: int = Field(ge=1)
    modalities: tuple[tuple[str, Kind, tuple[int, ...], Raw | None], ...]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    scales: dict[str, Scale]
    doubts: tuple[Doubt, ...]


def shared(name: str, load: Callable[[], Source]) -> Source:
    """Return a source from the store, or load it and put it there; without a store, load it.

    The first process to ask loads, the others wait for it. Where the store cannot be written, the
    log says so, and each loads its own.

    Parameters
    ----------
    name : str
        Names what is loaded, with all options that make a difference.
    load : callable
        Returns the source.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return load()
    stem = blake2b(name.encode(), digest_size=16).hexdigest()
    file = Path(folder) / f"{stem}{TENSORS}"

    def write(source: Source) -> None:
        with whole(file, durable=False) as part:
            save_source(source, part)

    return load_once(file, lambda: map_source(file), load, write, f"{name} is not shared")


def load_once(
    file: Path,
    read: Callable[[], Source],
    load: Callable[[], Source],
    write: Callable[[Source], None],
    failure: str,
) -> Source:
    """Read a source from ``file``; whoever finds it missing or damaged loads and writes it.

    Others wait meanwhile. What is damaged is named in the log, and replaced.

    Parameters
    ----------
    file : Path
        In a folder that is made if there is none.
    read : callable
        Reads the file. DataError means that it is damaged, FileNotFoundError that there is none.
    load : callable
        Makes the source; what it raises is raised.
    write : callable
        Writes the file, whole or not at all.
    failure : str
        What the log says where the file cannot be read or written: the source is loaded then.
    """
    try:
        return read()  # what is there is whole, and needs no lock
    except (DataError, OSError):
        pass  # another process may be about to mend it: look again behind the lock
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = file.with_suffix(LOCK)
            lock = stack.enter_context(path.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process ends
            stack.callback(path.unlink, missing_ok=True)  # who waits will find the file, or load it
            if (found := _read_or_delete(file, read)) is not None:
                return found
        except OSError as error:
            log(WARNING, "%s: %s", failure, error)
            return load()
        source = load()
        try:
            write(source)
            return read()
        except (OSError, SafetensorError, DataError) as error:
            log(WARNING, "%s: %s: %s", failure, file, error)
            return source


@contextmanager
def idle(file: Path) -> Iterator[bool]:
    """Tell whether no process is about to write a file, and keep others from it in this block."""
    with ExitStack() as stack:
        free = True
        try:
            lock = stack.enter_context(file.with_suffix(LOCK).open("rb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            free = False
        yield free


def _read_or_delete(file: Path, read: Callable[[], Source]) -> Source | None:
    try:
        return read()
    except FileNotFoundError:
        return None
    except DataError as error:
        log(WARNING, "%s; it is deleted and made again", error)
        file.unlink()
        return None


def save_source(source: Source, file: Path) -> None:
    """Write a source to a file of safetensors.

    Raises
    ------
    OSError, SafetensorError
        It cannot be written.
    """
    about = About(
        name=source.name,
        num_classes=source.num_classes,
        modalities=tuple(
            (m, form.kind, form.shape, form.raw) for m, form in source.modalities.items()
        ),
        class_names=source.class_names,
        group_names=source.group_names,
        scales=dict(source.scales),
        doubts=source.doubts,
    )
    save_tensors(all_tensors(source), file, {"source": about.model_dump_json()})


def map_source(file: Path) -> Source:
    """Read what :func:`save_source` wrote; the tensors are mapped, not copied.

    Raises
    ------
    DataError
        It is something else, or damaged: names the file.
    OSError
        It is not there, or cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = About.model_validate_json((opened.metadata() or {}).get("source", ""))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if single := [key for key, x in tensors.items() if x.ndim == 0]:
            raise DataError(f"{single[0]} is a single number")
        modalities = {m: Modality(kind, shape, raw) for m, kind, shape, raw in about.modalities}
        train, test = (samples_of(part, tensors, modalities) for part in ("train", "test"))
        return Source(
            name=about.name,
            modalities=modalities,
            num_classes=about.num_classes,
            train=train,
            test=test,
            class_names=about.class_names,
            group_names=about.group_names,
            scales=about.scales,
            doubts=about.doubts,
            windows=tensors.get(WINDOWS),
        )
    except (SafetensorError, ValidationError, KeyError, DataError) as error:
        raise DataError(f"'{file}' is damaged: {' '.join(str(error).split())}") from error


def all_tensors(source: Source) -> dict[str, Tensor]:
    """Return all tensors of a source."""
    windows = {} if source.windows is None else {WINDOWS: source.windows}
    return tensors_of("train", source.train) | tensors_of("test", source.test) | windows


def tensors_of(name: str, samples: Samples) -> dict[str, Tensor]:
    """Return all of some samples as tensors whose names begin with ``name``."""
    tensors = {f"{name}.inputs.{m}": x for m, x in samples.inputs.items()}
    tensors |= {f"{name}.present.{m}": x for m, x in (samples.present or {}).items()}
    tensors[f"{name}.labels"] = samples.labels
    if samples.groups is not None:
        tensors[f"{name}.groups"] = samples.groups
    return tensors


def save_tensors(
    tensors: Mapping[str, Tensor], file: Path, header: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file of safetensors, even views, or two of one memory."""
    seen: set[int] = set()  # safetensors wants each to have memory of its own
    apart: dict[str, Tensor] = {}
    for key, x in tensors.items():
        memory = x.untyped_storage()
        alone = x.is_contiguous() and memory.nbytes() == x.nbytes and memory.data_ptr() not in seen
        apart[key] = x if alone else x.clone(memory_format=torch.contiguous_format)
        seen.add(memory.data_ptr())
    save_file(apart, file, dict(header) if header else None)


def samples_of(name: str, tensors: Mapping[str, Tensor], modalities: Iterable[str]) -> Samples:
    """Return the samples that :func:`tensors_of` wrote, their modalities in the order given.

    Raises
    ------
    KeyError
        If one of them is not among the tensors.
    """
    order = list(modalities)
    present = {m: tensors[key] for m in order if (key := f"{name}.present.{m}") in tensors}
    return Samples(
        inputs={m: tensors[f"{name}.inputs.{m}"] for m in order},
        labels=tensors[f"{name}.labels"],
        groups=tensors.get(f"{name}.groups"),
        present=present or None,
    )
