"""Folders without a manifest whose names say all: ``[split/][modality/]class/file``."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..samples import DataError
from .decoding import SUFFIXES
from .manifest import DESCRIPTION, SPLITS, Column, Description, Manifest
from .problems import Problems, reason

_EVERY = 5
"""Without folders train and test, every fifth file of a class is for testing."""
_LIKE_SPLITS = frozenset(["training", "testing", "val", "valid", "validation", "dev"])
"""Folders above the classes that are hardly modalities, whether in capitals or not."""


@dataclass(frozen=True)
class _Found:
    """A file: its split or "", its modality, its class, and its path in the folder."""

    split: str
    modality: str
    label: str
    path: str

    @property
    def sample(self) -> tuple[str, str, str]:
        """What files of one sample have in common."""
        return self.split, self.label, Path(self.path).stem


def has_class_folders(root: Path) -> bool:
    """Whether there is a file of a known type two levels down at least."""
    return any(True for _ in _paths(root))


def class_folder_modalities(root: Path, about: Description) -> tuple[str, ...]:
    """Return the modalities; see :func:`read_class_folders`."""
    return _modalities({file.modality for file in _files(root, about)}, about)


def read_class_folders(root: Path, about: Description) -> Manifest:
    """List the files of a folder as a manifest would.

    The folder of a file is its class. Above it there may be a folder ``train`` or ``test``, in
    capitals or not, or what ``splits`` has as such, and a folder for each modality, in any order.
    Without the latter the modality is the kind of the file: ``image``, ``audio`` or ``table``.
    Files of several modalities that have the same class, split and name but for the suffix are one
    sample. Hidden files, those of other types, and folders that are to be ignored are left out.

    Raises
    ------
    DataError
        If folders are deeper, one is named like a split that ``splits`` lacks, some files have a
        split and others none, or two files of a modality are one sample.
    """
    files = _files(root, about)
    names = _modalities({file.modality for file in files}, about)
    problems = Problems("its class folders")
    samples: dict[tuple[str, str, str], dict[str, str]] = {}
    for file in files:
        cells = samples.setdefault(file.sample if len(names) > 1 else ("", "", file.path), {})
        if file.modality in cells:
            problems.add(file.path, f"'{cells[file.modality]}' is of the same sample and modality")
        cells[file.modality] = file.path
    problems.check()
    of = {file.path: file for file in files}
    firsts = [of[next(iter(cells.values()))] for cells in samples.values()]
    splits = [file.split for file in firsts]
    if not any(splits):
        seen: dict[str, int] = {}
        for row, file in enumerate(firsts):
            seen[file.label] = seen.get(file.label, 0) + 1
            splits[row] = SPLITS[seen[file.label] % _EVERY == 0]
    return Manifest(
        about,
        where=[file.path for file in firsts],
        labels=[file.label for file in firsts],
        splits=splits,
        columns={
            m: Column(
                [cells.get(m) for cells in samples.values()],
                about.modalities.get(m),
                about.channels.get(m, ()),
            )
            for m in names
        },
    )


def _modalities(names: set[str], about: Description) -> tuple[str, ...]:
    roles = about.columns
    return about.modalities_among([*sorted(names), *about.ignore, roles.label, roles.split])


def _files(root: Path, about: Description) -> list[_Found]:
    found = [_file(path, about) for path in _paths(root) if not {*path.parts} & {*about.ignore}]
    splits = {bool(file.split) for file in found}
    if len(splits) > 1:
        bare = next(file.path for file in found if not file.split)
        raise DataError(f"'{bare}' is neither in a folder train nor test, and others are")
    return found


def _file(path: Path, about: Description) -> _Found:
    *above, label = path.parts[:-1]
    splits = [found for name in above if (found := _split(name, about))]
    others = [name for name in above if not _split(name, about)]
    if like := [name for name in others if name.casefold() in _LIKE_SPLITS]:
        raise DataError(
            f"the folder '{like[0]}' is named like a split; say which in {DESCRIPTION}: [splits] "
            f'{like[0]} = "train" (or "test"; "out" leaves it out). A modality needs another name'
        )
    if len(splits) > 1 or len(others) > 1:
        raise DataError(
            f"'{path}' is too deep; expected [train or test/][modality/]class/file, or a manifest"
        )
    kind = SUFFIXES[path.suffix.lower()]
    return _Found(
        splits[0] if splits else "", others[0] if others else kind, label, path.as_posix()
    )


def _split(name: str, about: Description) -> str:
    """Return a folder's split: its name, or that in small letters; "" where it is none."""
    known = (name, name.casefold())
    return next((x for x in known if about.split_of(x) in (*SPLITS, "out")), "")


def _paths(root: Path) -> Iterator[Path]:
    """Yield the files of known types in folders that are not hidden, sorted, from the folder on."""
    for path in sorted(_inside(root, ())):
        yield path.relative_to(root)


def _inside(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files of known types below a folder, wherever links lead but in a circle."""
    here = folder.resolve()
    if here in above:
        return
    try:
        found = [*os.scandir(folder)]
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be read: {reason(error)}") from error
    for entry in found:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _inside(path, (*above, here))
        elif entry.is_symlink() and not path.exists():
            raise DataError(f"'{path}' is a link that leads nowhere")
        elif above and path.suffix.lower() in SUFFIXES and entry.is_file():
            yield path
