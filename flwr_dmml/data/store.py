"""Data sets that several processes of one machine map into memory, instead of a copy in each."""

import fcntl
import json
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

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
    file = Path(folder) / f"{stem}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (Path(folder) / f"{stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process ends
        if not file.exists():
            unfinished = file.with_suffix(".part")
            _save(load(), unfinished)
            unfinished.rename(file)
    return _map(file)


def _save(source: Source, file: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for part, samples in (("train", source.train), ("test", source.test)):
        tensors |= {f"{part}.inputs.{m}": x.contiguous() for m, x in samples.inputs.items()}
        tensors |= {f"{part}.present.{m}": x for m, x in (samples.present or {}).items()}
        tensors[f"{part}.labels"] = samples.labels
        if samples.groups is not None:
            tensors[f"{part}.groups"] = samples.groups
    about = {
        "name": source.name,
        "num_classes": source.num_classes,
        "modalities": [[m, kind.kind, kind.shape] for m, kind in source.modalities.items()],
    }
    # Each tensor's own memory, even where two of the source are views of one.
    save_file({k: x.clone() for k, x in tensors.items()}, file, {"source": json.dumps(about)})


def _map(file: Path) -> Source:
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["source"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118

    def samples(part: str) -> Samples:
        under = {k.removeprefix(f"{part}."): x for k, x in tensors.items() if k.startswith(part)}
        named = {
            kind: {
                m: under[f"{kind}.{m}"] for m, *_ in about["modalities"] if f"{kind}.{m}" in under
            }
            for kind in ("inputs", "present")
        }
        return Samples(
            named["inputs"], under["labels"], under.get("groups"), named["present"] or None
        )

    return Source(
        name=about["name"],
        modalities={m: Modality(kind, tuple(shape)) for m, kind, shape in about["modalities"]},
        num_classes=about["num_classes"],
        train=samples("train"),
        test=samples("test"),
    )
