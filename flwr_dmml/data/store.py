"""Data sets that several processes of one machine map into memory, instead of a copy in each."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .samples import Modality, Samples, Source

FOLDER = "FLWR_DMML_STORE"
"""Environment variable of the processes of a run: where they share what they have loaded."""


def shared(name: str, load: Callable[[], Source]) -> Source:
    """Return a source from the store, or load it and put it there; without a store, load it.

    The first process to ask loads, the others wait for it.

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
    return load_once(Path(folder) / f"{stem}.safetensors", load)


def load_once(
    file: Path, load: Callable[[], Source], about: Mapping[str, str] | None = None
) -> Source:
    """Map a source from ``file``; whoever finds it missing loads and writes it, others wait.

    ``about`` goes into the file's header, beside what describes the source.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process ends
        if not file.exists():
            unfinished = file.with_suffix(".part")
            save_source(load(), unfinished, about)
            unfinished.rename(file)
    return map_source(file)


def save_source(source: Source, file: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a source to a file of safetensors."""
    described = {
        "name": source.name,
        "num_classes": source.num_classes,
        "modalities": [[m, kind.kind, kind.shape] for m, kind in source.modalities.items()],
        "class_names": source.class_names,
        "group_names": source.group_names,
    }
    header = {**(about or {}), "source": json.dumps(described)}
    save_tensors(tensors_of("train", source.train) | tensors_of("test", source.test), file, header)


def map_source(file: Path) -> Source:
    """Read what :func:`save_source` wrote; the tensors are mapped, not copied."""
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["source"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    modalities = {m: Modality(kind, tuple(shape)) for m, kind, shape in about["modalities"]}
    return Source(
        name=about["name"],
        modalities=modalities,
        num_classes=about["num_classes"],
        train=samples_of("train", tensors, modalities),
        test=samples_of("test", tensors, modalities),
        class_names=tuple(about["class_names"]),
        group_names=tuple(about["group_names"]),
    )


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
