"""Data sets as tensors on disk, so that the next process need not read and transform them again.

A file for each data set, its settings, the content of its files and the code that reads them;
whatever of that changes, there is another file. Safetensors only: nothing in it can run.
"""

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..base.log import log
from ..base.machine import cache_folder
from .samples import Source
from .store import load_once


@dataclass(frozen=True)
class Entry:
    """A data set in the cache: its file, name, settings (as text) and size in bytes."""

    file: Path
    dataset: str
    settings: str
    size: int


def cached(
    name: str,
    options: Mapping[str, Any],
    root: Path,
    files: Sequence[Path],
    code: Callable[..., Source],
    load: Callable[[], Source],
) -> Source:
    """Return a data set from the cache, or load it and put it there.

    Processes that ask at the same time wait for the first. Where the cache cannot be written, the
    log says so and the data set is loaded all the same.

    Parameters
    ----------
    name : str
        Of the data set.
    options : mapping
        What of its settings makes a difference; values of equal text are equal.
    root : Path
        The folder of the data: where it is makes no difference.
    files : sequence of Path
        What is read, by its place under ``root`` and its content; a missing one counts as such, and
        ``load`` will say so.
    code : callable
        Whose source file is part of what the entry goes by.
    load : callable
        Reads the data set.
    """
    settings = json.dumps({key: str(value) for key, value in sorted(options.items())})
    key = blake2b(settings.encode(), digest_size=16)
    for path in [*sorted(Path(__file__).parent.rglob("*.py")), Path(inspect.getfile(code))]:
        key.update(_digest(path))
    for path in files:
        key.update(os.path.relpath(path, root).encode() + _digest(path))
    file = cache_folder() / f"{name}-{key.hexdigest()}.safetensors"
    new = not file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.with_suffix(".lock").touch()
    except OSError as error:
        log(WARNING, "%s is not cached: %s", name, error)
        return load()
    source = load_once(file, load, {"dataset": name, "settings": settings})
    if new:
        log(INFO, "%s is cached: %.0f MB in %s", name, file.stat().st_size / 1e6, file.parent)
    return source


def entries() -> list[Entry]:
    """Return what is in the cache, by data set; files of other programs are left out."""
    return sorted(_entries(cache_folder().glob("*.safetensors")), key=lambda e: (e.dataset, e.file))


def clear(dataset: str = "") -> list[Entry]:
    """Delete what is cached of a data set, or everything; return what was deleted."""
    gone = [entry for entry in entries() if dataset in ("", entry.dataset)]
    for entry in gone:
        entry.file.unlink()
    return gone


def _entries(files: Iterable[Path]) -> Iterable[Entry]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            log(WARNING, "the cache has a file that cannot be read: %s (%s)", file, error)
            continue
        if "dataset" in about:
            yield Entry(file, about["dataset"], about["settings"], file.stat().st_size)


def _digest(path: Path) -> bytes:
    if not path.is_file():
        return b"missing"
    with path.open("rb") as opened:
        return file_digest(opened, lambda: blake2b(digest_size=16)).digest()
