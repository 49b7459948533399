"""``feature-table``: features of several modalities that were extracted before, and labels."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..forms import RawNumbers
from ..looks import channel_doubts
from ..options import LoadOptions
from ..reading.cells import (
    is_missing,
    label_problems,
    names_rows,
    ordered,
    read_rows_of_cells,
)
from ..reading.problems import Problems, refuse
from ..reading.tables import distinct, read_npy
from ..registry import Dataset
from ..samples import DataError, Doubt, Modality, Samples, Source, name_problem

Floats = NDArray[np.float32]

LABELS = "labels.csv"
GROUPS = ("node", "speaker")
"""Columns of ``labels.csv`` that may hold a natural id."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SPLITS = ("train", "test")
_UNREAD = frozenset(
    {".npz", ".parquet", ".pkl", ".pickle", ".tsv", ".xlsx", ".h5", ".hdf5", ".mat"}
)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """The features of a modality: of each id ``[steps, features]``, no step where it lacks them.

    Their names are empty where the file has none.
    """

    rows: list[Floats]
    width: int
    is_sequence: bool
    names: tuple[str, ...] = ()

    def modality(self, steps: int) -> Modality:
        """Return what a sample is; ``steps`` of a sequence, 0 for as many as the longest has."""
        if not self.is_sequence:
            return Modality("vector", (self.width,), RawNumbers(channels=self.names))
        shape = self.width + 1, steps or max(map(len, self.rows))
        return Modality("sequence", shape, RawNumbers(channels=self.names))

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the samples ``[n, *shape]``; longer sequences are cut."""
        found = np.zeros((len(self.rows), *shape), np.float32)
        for sample, row in zip(found, self.rows, strict=True):
            if self.is_sequence:
                sample[:-1, : len(row)] = row[: shape[1]].T
                sample[-1, : len(row)] = 1
            elif len(row):
                sample[:] = row[0]
        return torch.from_numpy(found)


def load(options: LoadOptions) -> Source:
    """Load feature files and their labels from ``options.path``.

    ``labels.csv`` has a header with the columns ``id``, ``label``, ``split`` (``train`` or
    ``test``) and, if there are natural ids, ``node`` or ``speaker``; others are not read. Beside it
    is a file a modality, whose name is that of the modality:

    ``NAME.csv``
        A header of ``id`` and the features' names, then numbers. Several rows of an id are, in
        their order, the steps of a sequence. What has no row lacks the modality.
    ``NAME.npy``
        ``[n, features]``, or ``[n, steps, features]`` of sequences, row by row as ``labels.csv``.
        Steps of zeros at the end are padding; what has only zeros lacks the modality.

    Modalities are in alphabetical order. One is of the kind "sequence" if an id of its CSV file has
    several rows, or its array three dimensions, else "vector". Sequences have ``series.steps``
    steps, or as many as the longest of that modality: longer ones are cut, shorter ones masked.
    Numbers stay as they are. Classes and natural ids are in the order of their numbers if all are
    whole numbers, else of the alphabet.

    Returns
    -------
    Source
        Vectors ``[features]`` and sequences ``[features + 1, steps]``, the last channel of which is
        1 where there is a step. Groups are indices of ``group_names``.

    Raises
    ------
    DataError
        If files are missing, disagree, or hold anything that is not a finite number; all is named,
        with the line or id.
    """
    root = Path(options.path)
    names = _modalities(options)
    problems = Problems(f"data-path: '{root}' cannot be used")
    columns: dict[str, list[str]] = {"id": []}
    with problems.at(LABELS):
        _read_labels(root / LABELS, columns)
    tables: dict[str, Table] = {}
    for name, path in _tables(root).items():
        with problems.at(path.name):
            read = _read_csv if path.suffix.lower() == ".csv" else _read_npy
            tables[name] = read(path, columns["id"])
    if columns["id"] and len(tables) == len(names):
        steps = [[len(row) for row in table.rows] for table in tables.values()]
        lengths = zip(columns["id"], *steps, strict=True)
        with problems.at(LABELS):
            refuse([f"id '{i}' has no features of any modality" for i, *n in lengths if not any(n)])
    problems.check()
    modalities = {name: table.modality(options.series.steps) for name, table in tables.items()}
    classes, groups = ordered(columns["label"]), ordered(columns.get("group", []))
    whole = Samples(
        inputs={name: table.tensor(modalities[name].shape) for name, table in tables.items()},
        labels=torch.tensor([*map(classes.index, columns["label"])]),
        groups=torch.tensor([*map(groups.index, columns["group"])]) if groups else None,
        present={
            name: torch.tensor([len(row) > 0 for row in table.rows])
            for name, table in tables.items()
        },
    )
    source = Source(
        name="feature-table",
        modalities=modalities,
        num_classes=len(classes),
        train=_part(whole, [split == "train" for split in columns["split"]]),
        test=_part(whole, [split == "test" for split in columns["split"]]),
        class_names=classes,
        group_names=groups,
    )
    unread = [path.name for path in _visible(root) if path.suffix.lower() in _UNREAD]
    doubts = [Doubt("file", f"{name} is not read; write it as CSV or .npy") for name in unread]
    return replace(source, doubts=(*doubts, *channel_doubts(source)))


def _tables(root: Path) -> dict[str, Path]:
    """Return the files of the modalities, by their names in alphabetical order."""
    paths = [path for path in _visible(root) if path.suffix.lower() in (".csv", ".npy")]
    return {path.stem: path for path in paths if path.name != LABELS}


def _visible(root: Path) -> list[Path]:
    paths = [path for path in root.glob("*") if not path.name.startswith(".")]
    return sorted(paths, key=lambda path: (path.stem.lower(), path.name))


def _modalities(options: LoadOptions) -> tuple[str, ...]:
    """Return the modalities that the folder has.

    Raises
    ------
    DataError
        If there is none, one has two files, or a name cannot be.
    """
    root = Path(options.path)
    names = tuple(_tables(root))
    if not names or not (root / LABELS).is_file():
        raise DataError(
            f"data-path: '{root}' cannot be used: expected {LABELS} with the columns id, label and "
            "split, and for each modality a file NAME.csv or NAME.npy"
        )
    files = [path for path in _visible(root) if path.suffix.lower() in (".csv", ".npy")]
    for name in names:
        if len(both := [path.name for path in files if path.stem == name]) > 1:
            raise DataError(f"data-path: '{root}' has both {both[0]} and {both[1]}; keep one")
        if problem := name_problem(name):
            raise DataError(f"data-path: '{root}' has {_tables(root)[name].name}: {problem}")
        if not _NAME.fullmatch(name):
            raise DataError(
                f"data-path: '{root}' has a file for a modality '{name}'; allowed: letters, "
                "digits, '-' and '_', a letter first"
            )
    return names


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a CSV file that are not blank, with their numbers from 1."""
    return ((line, cells) for line, cells in read_rows_of_cells(path) if any(cells))


def _read_labels(path: Path, columns: dict[str, list[str]]) -> None:
    """Add the columns id, label, split and perhaps group, with those of lines that are wrong."""
    rows = _rows(path)
    _, header = next(rows, (0, []))
    names = {"id": "id", "label": "label", "split": "split"}
    names |= {name: "group" for name in GROUPS if name in header}
    if len(names) > 4 or any(header.count(name) != 1 for name in names):
        raise DataError(
            f"its first line is '{','.join(header)}', expected the columns id, label, split and, "
            f"if there are natural ids, {' or '.join(GROUPS)}, each once"
        )
    columns |= {column: [] for column in names.values()}
    wrong = []
    for number, row in rows:
        if len(row) != len(header):
            wrong.append(f"line {number}: {len(row)} columns, expected {len(header)}")
            row = (row + [""] * len(header))[: len(header)]
        for name, column in names.items():
            cell = row[header.index(name)]
            columns[column].append(cell)
            if name == "split" and cell not in _SPLITS:
                wrong.append(
                    f"line {number}: split '{cell}', expected train or test (leave other rows out)"
                )
            elif is_missing(cell):
                wrong.append(f"line {number}: {name} '{cell}' is a missing value")
    wrong += [f"id '{i}' is there {n} times" for i, n in Counter(columns["id"]).items() if n > 1]
    lacking = [split for split in _SPLITS if split not in columns["split"]]
    wrong += [f"no row has the split {split}" for split in lacking]
    refuse([*label_problems(columns["label"], columns["split"]), *wrong])


def _read_csv(path: Path, ids: Sequence[str]) -> Table:
    """Read the rows of each id; ids that ``labels.csv`` does not have are an error."""
    rows = _rows(path)
    _, header = next(rows, (0, []))
    first = 1 if header and names_rows(header[0]) else 0  # a column of pandas' row names
    if len(header) - first < 2 or header[first] != "id":
        raise DataError(
            f"its first line is '{','.join(header)[:80]}', expected id and the names of features"
        )
    steps: dict[str, list[Floats]] = {name: [] for name in ids}
    wrong = []
    for number, row in rows:
        if len(row) != len(header):
            wrong.append(f"line {number}: {len(row)} columns, expected {len(header)}")
        elif ids and row[first] not in steps:
            wrong.append(f"line {number}: id '{row[first]}' is not in {LABELS}")
        elif (numbers := _numbers(row[first + 1 :])) is None:
            cells = zip(header[first + 1 :], row[first + 1 :], strict=True)
            bad = next(f"{name} is '{cell}'" for name, cell in cells if _numbers([cell]) is None)
            wrong.append(f"line {number}: {bad}, not a finite number (float32)")
        else:
            steps.setdefault(row[first], []).append(numbers)
    refuse(wrong or ([] if any(steps.values()) else ["it has no rows"]))
    names = header[first + 1 :]
    found = [np.array(steps[name], dtype=np.float32).reshape(-1, len(names)) for name in ids]
    return Table(found, len(names), any(len(row) > 1 for row in found), distinct(names))


def _numbers(cells: Sequence[str]) -> Floats | None:
    """Return the numbers in cells, or None if one is not finite or none."""
    try:
        numbers = np.array([*map(float, cells)], dtype=np.float64)
    except ValueError:
        return None
    if "_" in "".join(cells):
        return None
    return numbers.astype(np.float32) if bool((np.abs(numbers) <= _LARGEST).all()) else None


def _read_npy(path: Path, ids: Sequence[str]) -> Table:
    array = read_npy(path)
    if array.ndim not in (2, 3) or not array.any():
        raise DataError(
            f"it holds {array.dtype} {array.shape}, expected numbers [n, features] or "
            "[n, steps, features], not only zeros"
        )
    if ids and len(array) != len(ids):
        raise DataError(f"it has {len(array):,} rows, {LABELS} has {len(ids):,}")
    finite = (np.abs(array) <= _LARGEST).reshape(len(array), -1).all(axis=1)
    refuse(
        [
            f"row {row + 1} has a number that is not finite (float32)"
            for row in np.flatnonzero(~finite).tolist()
        ]
    )
    steps = array if array.ndim == 3 else array[:, None]  # [n, steps, features]
    there = np.any(steps != 0, axis=2)
    lengths = np.where(there.any(axis=1), there.shape[1] - there[:, ::-1].argmax(axis=1), 0)
    found = [row[:n].astype(np.float32) for row, n in zip(steps, lengths, strict=True)]
    return Table(found, array.shape[-1], is_sequence=array.ndim == 3)


def _part(whole: Samples, rows: Sequence[bool]) -> Samples:
    part = whole.subset(np.flatnonzero(rows)).gathered()
    lacks = any(not bool(has.all()) for has in (part.present or {}).values())
    return part if lacks else replace(part, present=None)


def _files(options: LoadOptions) -> list[Path]:
    root = Path(options.path)
    return [root / LABELS, *_tables(root).values()]


FEATURE_TABLE = Dataset(
    name="feature-table",
    modalities=_modalities,
    needs_path=True,
    natural_ids=True,
    load=load,
    description="features of several modalities that were extracted before, with labels",
    files=_files,
    uses=("series",),
)
