"""The manifest of a data folder: rows of ``manifest.csv`` or ``manifest.parquet``, files unread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...base.formats import parse_toml
from ...base.options import kebab
from ..options import Standardise
from ..samples import DataError, Kind, name_problem
from .cells import is_missing, names_rows, read_rows_of_cells
from .problems import Problems, reason
from .tables import Floats

DESCRIPTION, CSV, PARQUET = "dataset.toml", "manifest.csv", "manifest.parquet"
SPLITS = ("train", "test")

Cell = str | BytesIO | Floats | None
"""Of a row and a modality: a file's path in the folder, a file's content, numbers, or nothing."""


class Cells(Protocol):
    """Cells by their row; one that cannot be taken apart raises DataError."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Cell: ...


class Roles(BaseModel):
    """The columns that hold no modality, where they go by other names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = "label"
    split: str = "split"
    id: str = "id"
    node: str = "node"


class Recordings(BaseModel):
    """How files of a folder are recordings that are cut into windows.

    Attributes
    ----------
    label : str
        Column of the files that names the activity of each row; empty: the manifest's label is that
        of the whole file.
    time : str
        Column of the files that has the time of each row; empty: rows follow at ``rate_hz``.
    unit : {"s", "ms", "us", "ns"}
        Of the times.
    rate_hz : float, optional
        Rows in a second, where there is no time.
    max_gap_s : float
        A window that would bridge more without a row is dropped.
    leave_out : tuple of str
        Labels of rows that are in no window.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, alias_generator=kebab
    )

    label: str = ""
    time: str = ""
    unit: Literal["s", "ms", "us", "ns"] = "s"
    rate_hz: float | None = Field(None, gt=0)
    max_gap_s: float = Field(0.2, gt=0)
    leave_out: tuple[str, ...] = ()


class Description(BaseModel):
    """Contents of ``dataset.toml``; every entry is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    name: str = "folder"
    classes: tuple[str, ...] = ()
    columns: Roles = Field(default_factory=Roles)
    modalities: dict[str, Kind] = Field(default_factory=dict)
    channels: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    splits: dict[str, Literal["train", "test", "out"]] = Field(default_factory=dict)
    standardise: Standardise = "off"
    recordings: Recordings | None = None
    ignore: tuple[str, ...] = ()

    def modalities_among(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return which of the columns are modalities.

        Raises
        ------
        DataError
            If columns are missing, there twice, or hold no modality.
        """
        problems = Problems(f"the columns are {', '.join(map(repr, columns))}")
        roles = self.columns
        labelled = self.recordings is not None and self.recordings.label  # in the files
        needed = [roles.split] if labelled else [roles.label, roles.split]
        needed += [name for name in (roles.id, roles.node) if name not in ("id", "node")]
        for name in dict.fromkeys([*needed, *self.modalities, *self.channels, *self.ignore]):
            if name not in columns:
                problems.add("", f"there is no column '{name}'")
        for name in sorted({name for name in columns if columns.count(name) > 1}):
            problems.add("", f"there are {columns.count(name)} columns '{name}'")
        others = {roles.label, roles.split, roles.id, roles.node, *self.ignore}
        modalities = tuple(
            name
            for place, name in enumerate(columns)
            if name not in others and not (place == 0 and names_rows(name))
        )
        if not modalities:
            problems.add("", "none is a modality")
        for problem in filter(None, map(name_problem, modalities)):
            problems.add("", problem)
        problems.check()
        return modalities

    def split_of(self, name: str) -> str:
        """Return "train", "test" or "out" for what a row has as its split, or the name itself."""
        return self.splits.get(name, name)


@dataclass(frozen=True, eq=False)
class Column:
    """A modality: a cell for each row, and its kind, None where the files are to tell.

    Of CSV files only the ``channels`` are read, by their names; all if there are none.
    """

    cells: Cells
    kind: Kind | None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Manifest:
    """The rows of a data set.

    Parameters
    ----------
    about : Description
        What the folder says of itself.
    where : sequence of str
        Names each row, for messages.
    labels, splits, ids, nodes : sequence of str
        Of each row, as they stand there, also where they are missing; ``ids`` and ``nodes`` may be
        empty, and ``labels`` where those of recordings are in their files.
    columns : mapping of str to Column
        The modalities.
    faults : mapping of int to str
        What is wrong with a row that could not be taken apart.
    """

    about: Description
    where: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    columns: Mapping[str, Column]
    ids: Sequence[str] = ()
    nodes: Sequence[str] = ()
    faults: Mapping[int, str] = field(default_factory=dict)


def read_description(root: Path) -> Description:
    """Read ``dataset.toml`` of a folder, if there is one.

    Raises
    ------
    DataError
        If it is no TOML, or says something else.
    """
    path = root / DESCRIPTION
    if not path.exists():
        return Description()
    try:
        return Description.model_validate(parse_toml(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        lines = "; ".join(f"{key}: {message}" for key, message in found)
        raise DataError(f"{DESCRIPTION}: {lines}") from error
    except (OSError, ValueError) as error:  # of its encoding, of TOML
        raise DataError(f"{DESCRIPTION}: {reason(error)}") from error


def csv_columns(root: Path) -> list[str]:
    """Return the names of the columns of ``manifest.csv``.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    return _read_csv(root, only_names=True)[0]


def read_csv_manifest(root: Path, about: Description) -> Manifest:
    """Read ``manifest.csv``.

    Raises
    ------
    DataError
        If it cannot be read, or lacks columns.
    """
    names, rows, lines = _read_csv(root)
    modalities = about.modalities_among(names)
    faults = {
        row: f"{len(cells)} columns, expected {len(names)}"
        for row, cells in enumerate(rows)
        if len(cells) != len(names)
    }
    whole = [cells if row not in faults else [""] * len(names) for row, cells in enumerate(rows)]
    columns: dict[str, Sequence[str]] = dict(
        zip(names, zip(*whole, strict=True) if whole else [()] * len(names), strict=True)
    )
    return Manifest(
        about,
        where=[f"line {line}" for line in lines],
        columns={
            m: Column(
                [None if is_missing(cell) else cell for cell in columns[m]],
                about.modalities.get(m),
                about.channels.get(m, ()),
            )
            for m in modalities
        },
        faults=faults,
        **roles_of(about, columns),
    )


def roles_of(about: Description, columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return ``labels``, ``splits``, ``ids`` and ``nodes`` of a manifest's columns."""
    roles = about.columns
    return {
        "labels": columns.get(roles.label, ()),
        "splits": columns[roles.split],
        "ids": columns.get(roles.id, ()),
        "nodes": columns.get(roles.node, ()),
    }


def _read_csv(
    root: Path, *, only_names: bool = False
) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the names, the cells of each row that is not empty, and the number of its line."""
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for line, cells in read_rows_of_cells(root / CSV):
            if any(cells):
                rows.append(cells)
                lines.append(line)
            if only_names and rows:
                break
    except DataError as error:
        raise DataError(f"{CSV}: {error}") from error
    if not rows:
        raise DataError(f"{CSV}: it is empty")
    return rows[0], rows[1:], lines[1:]
