"""Data sets as tensors on disk, so that the next process need not read and transform them again.

An entry for each data set, its settings, the content of its files and the code that reads them;
whatever of that changes, there is another entry. Safetensors and JSON only: nothing can run.

An entry is a file of tensors and a record of what was written. Whenever it is used, its length and
its header must be those of the record; if the file is not the one that was last found whole, by its
size, times and inode, its whole content must be, too. An entry that is not what was written is
named in the log, deleted and made again.
"""

import glob
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..base.files import PART, whole
from ..base.formats import first_problem
from ..base.log import log
from ..base.machine import cache_folder
from .known import SUFFIX, Known, KnownFiles, digest_of, known_by
from .reading.problems import reason
from .samples import DataError, Source
from .store import LOCK, TENSORS, idle, load_once, map_source, save_source

RECORD = ".json"
"""Suffix of the record of an entry."""

_SUFFIXES = "|".join(map(re.escape, (TENSORS, RECORD, LOCK, SUFFIX)))
_OURS = re.compile(rf"((.+)-[0-9a-f]{{32}})(?:{_SUFFIXES}|(?:\..*)?{re.escape(PART)})")

_LONGEST = 100_000_000  # bytes of a header, as safetensors has it

Kind = Literal["data set", "damaged data set", "file list", "leftover"]


class Record(BaseModel):
    """What was written into an entry.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    settings : mapping
        Those that made a difference, as text.
    size : int
        Bytes of the file of tensors.
    header, content : str
        Digests of its header, and of all of it.
    known : tuple of int
        How the file is recognised that was last found whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    settings: dict[str, str]
    size: int = Field(ge=0)
    header: str
    content: str
    known: Known


@dataclass(frozen=True)
class Entry:
    """Something in the cache.

    Attributes
    ----------
    kind : {"data set", "damaged data set", "file list", "leftover"}
        A file list has the digests of known files; a leftover is what a process left unfinished.
    dataset : str
        Name of the data set.
    files : tuple of Path
        What belongs to it.
    size : int
        Bytes of them all.
    settings : mapping
        Of a data set: those that made a difference, as text.
    problem : str
        What is wrong with a damaged data set; names the file.
    busy : bool
        Whether it was not deleted because a process is writing it.
    """

    kind: Kind
    dataset: str
    files: tuple[Path, ...]
    size: int
    settings: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    busy: bool = False


def cached(
    name: str,
    options: Mapping[str, Any],
    root: Path,
    files: Sequence[Path | str],
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
    files : sequence of Path or str
        What is read, by its place under ``root`` and its content; a missing one counts as such, and
        ``load`` will say so.
    code : callable
        Whose source file is part of what the entry goes by.
    load : callable
        Reads the data set.
    """
    folder = cache_folder()
    known = KnownFiles(folder, name, root, files)
    if known.problem:
        log(WARNING, "%s; it is deleted and made again", known.problem)
    settings = {key: str(value) for key, value in sorted(options.items())}
    key = blake2b(json.dumps(settings).encode(), digest_size=16)
    for path in [*sorted(Path(__file__).parent.rglob("*.py")), Path(inspect.getfile(code))]:
        key.update(digest_of(path))
    key.update(known.digest)
    file = folder / f"{name}-{key.hexdigest()}{TENSORS}"

    def write(source: Source) -> None:
        if changed := known.changed():
            raise DataError(f"'{changed}' was changed while the data set was read")
        write_entry(file, name, settings, source)

    failure = f"{name} is not cached"
    source = load_once(file, lambda: read_entry(file), load, write, failure)
    if known.news and file.exists():
        try:
            known.save()
        except OSError as error:
            log(WARNING, "the digests of the files of %s are not cached: %s", name, error)
    return source


def write_entry(file: Path, name: str, settings: Mapping[str, str], source: Source) -> None:
    """Write an entry and its record.

    Raises
    ------
    OSError, SafetensorError
        It cannot be written.
    """
    for left in file.parent.glob(f"{glob.escape(file.stem)}.*{PART}"):  # a process was killed
        left.unlink(missing_ok=True)
    with whole(file) as part:
        save_source(source, part)
    found = known_by(file)
    record = Record(
        dataset=name,
        settings=dict(settings),
        size=found[0],
        header=_header_digest(file),
        content=digest_of(file).hex(),
        known=found,
    )
    _write_record(file, record)
    log(INFO, "%s is cached: %.0f MB in %s", name, record.size / 1e6, file.parent)


def read_entry(file: Path) -> Source:
    """Map what :func:`write_entry` wrote.

    Raises
    ------
    DataError
        It is not what was written: names the file.
    OSError
        It is not there, or cannot be read.
    """
    check_entry(file)
    return map_source(file)


def check_entry(file: Path, *, full: bool = False) -> Record:
    """Return the record of an entry that is what was written.

    Parameters
    ----------
    file : Path
        Of the tensors.
    full : bool
        Whether all of it is read even if it is the file that was last found whole.

    Raises
    ------
    DataError
        It is not what was written: names the file.
    OSError
        It is not there, or cannot be read.
    """
    found, record = known_by(file), check_header(file)
    if not full and found == record.known:
        return record
    if digest_of(file).hex() != record.content:
        raise DataError(f"'{file}' is damaged: its content is not what was written")
    if found != record.known:
        try:
            _write_record(file, record.model_copy(update={"known": found}))
        except OSError as error:
            log(WARNING, "'%s' is whole, but the next process must read it again: %s", file, error)
    return record


def check_header(file: Path) -> Record:
    """Return the record of an entry whose length and header are what was written.

    Raises
    ------
    DataError, OSError
        See :func:`check_entry`.
    """
    size, record = file.stat().st_size, read_record(file)
    if size != record.size:
        raise DataError(f"'{file}' is damaged: it has {size:,} bytes of {record.size:,}")
    if _header_digest(file) != record.header:
        raise DataError(f"'{file}' is damaged: its header is not what was written")
    return record


def read_record(file: Path) -> Record:
    """Read the record of an entry.

    Raises
    ------
    DataError
        There is none, or it is damaged: names the file.
    OSError
        It cannot be read.
    """
    path = file.with_suffix(RECORD)
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"'{file}' is not finished: it has no record") from error
    except ValidationError as error:
        raise DataError(f"'{path}' is damaged: {first_problem(error)}") from error


def entries(dataset: str = "", check: Callable[[Path], Record] = check_header) -> list[Entry]:
    """Return what is in the cache, by data set; files of other programs are left out.

    Parameters
    ----------
    dataset : str
        Only of this one.
    check : callable
        Returns the record of a file of tensors, or raises for one that is damaged.
    """
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in _files():
        ours = _OURS.fullmatch(path.name)
        if ours and dataset in ("", ours[2]) and path.is_file():
            found[ours[2], ours[1]].append(path)
    return [_entry(name, files, check) for (name, _), files in sorted(found.items())]


def verify(dataset: str = "") -> list[Entry]:
    """Read all of every entry, and delete what is damaged; return what was there."""
    found = entries(dataset, partial(check_entry, full=True))
    return [_delete(entry) if entry.kind == "damaged data set" else entry for entry in found]


def clear(dataset: str = "") -> list[Entry]:
    """Delete what is there of a data set, or everything, whatever its state; return what was."""
    return [_delete(entry) for entry in entries(dataset)]


def _files() -> list[Path]:
    try:
        return sorted(cache_folder().iterdir())
    except FileNotFoundError:
        return []


def _entry(name: str, files: Sequence[Path], check: Callable[[Path], Record]) -> Entry:
    """Return what the files of one stem are."""
    size, by_suffix = sum(path.stat().st_size for path in files), {p.suffix: p for p in files}
    if TENSORS not in by_suffix:
        kind: Kind = "file list" if SUFFIX in by_suffix else "leftover"
        return Entry(kind, name, tuple(files), size)
    file = by_suffix[TENSORS]
    try:
        settings = check(file).settings
    except DataError as error:
        return Entry("damaged data set", name, tuple(files), size, problem=str(error))
    except OSError as error:
        problem = f"'{file}' cannot be read: {reason(error)}"
        return Entry("damaged data set", name, tuple(files), size, problem=problem)
    return Entry("data set", name, tuple(files), size, settings)


def _delete(entry: Entry) -> Entry:
    with idle(entry.files[0]) as free:
        for path in entry.files if free else ():
            path.unlink(missing_ok=True)
    return replace(entry, busy=not free)


def _write_record(file: Path, record: Record) -> None:
    with whole(file.with_suffix(RECORD)) as part:
        part.write_text(record.model_dump_json(), encoding="utf-8")


def _header_digest(file: Path) -> str:
    """Return the digest of the header of a file of safetensors, and of its length before it."""
    with file.open("rb") as opened:
        length = opened.read(8)
        digest = blake2b(length, digest_size=16)
        digest.update(opened.read(min(int.from_bytes(length, "little"), _LONGEST)))
    return digest.hexdigest()
