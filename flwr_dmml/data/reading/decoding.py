"""From the cells of a manifest to tensors."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, TypeVar

import numpy as np
import torch

from ..forms import RawImage, RawNumbers, RawSound
from ..options import LoadOptions
from ..samples import DataError, Kind, Modality
from .manifest import Cell, Column
from .media import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    audio_shape,
    image_shape,
    read_image,
    read_wave,
    spectrograms,
)
from .problems import Problems, reason
from .tables import TABLE_SUFFIXES, Floats, Table, by_name, masked, read_named, steps_last

Found = Kind | Literal["table"]
"""A kind, or numbers that are a vector or a series."""
SUFFIXES: dict[str, Found] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
}
"""Kinds by the suffix of a file's name, in small letters."""
_SHOWN = 400  # characters of a path that are shown; what is longer is no path
_CHUNK = 200  # waves held at once

T = TypeVar("T")
Decoded = tuple[Modality, torch.Tensor, torch.Tensor]
"""A modality's form; inputs, ``[n, *shape]`` float32; which samples have it, ``[n]`` bool."""


def kind_of(path: str) -> Found | None:
    """Return what a file is by its suffix; None for an unknown one."""
    return SUFFIXES.get(Path(path).suffix.lower())


class Decoder:
    """Reads the cells of one data set; what is wrong with them is noted, not raised.

    Parameters
    ----------
    root : Path
        The folder that paths are relative to, and must not lead out of.
    options : LoadOptions
        How files become tensors.
    where : sequence of str
        Names each row, for messages.
    problems : Problems
        Takes down what cannot be read.
    pool : Executor
        Reads several files at once.

    Attributes
    ----------
    empty : set of int
        The rows of which nothing but empty cells has been met.
    """

    def __init__(
        self,
        root: Path,
        options: LoadOptions,
        where: Sequence[str],
        problems: Problems,
        pool: Executor,
    ) -> None:
        self._root = root
        self._options = options
        self._where = where
        self._problems = problems
        self._pool = pool
        self.empty = set(range(len(where)))

    def decode(self, name: str, column: Column, rows: Sequence[int]) -> Decoded | None:
        """Read the cells of a modality, those of ``rows`` in that order; empty ones become zeros.

        Returns None where something is wrong with all of them.

        Raises
        ------
        DataError
            If the options cannot be.
        """
        kind = column.kind or self._kind_by_suffix(name, column, rows)
        if column.channels and (
            kind in ("image", "audio") or not isinstance(column.cells, Sequence)
        ):
            self._problems.add(
                f"column '{name}'", "channels are chosen of CSV files alone, and it has others"
            )
            return None
        if kind == "image":
            return self._images(name, column, rows)
        if kind == "audio":
            return self._sounds(name, column, rows)
        if kind is None:
            return None
        return self._tables(name, column, rows, kind)

    def _images(self, name: str, column: Column, rows: Sequence[int]) -> Decoded:
        shape = image_shape(self._options.image)
        inputs = torch.zeros(len(rows), *shape)
        present = torch.zeros(len(rows), dtype=torch.bool)

        def read(cell: Cell) -> torch.Tensor:
            return read_image(self._file(cell), self._options.image)

        for place, image in enumerate(self._read(name, column, rows, read)):
            if image is not None:
                inputs[place], present[place] = image, True
        raw = RawImage(**self._options.image.model_dump())
        return Modality("image", shape, raw), inputs, present

    def _sounds(self, name: str, column: Column, rows: Sequence[int]) -> Decoded:
        shape = audio_shape(self._options.audio)
        inputs = torch.zeros(len(rows), *shape)
        present = torch.zeros(len(rows), dtype=torch.bool)

        def read(cell: Cell) -> torch.Tensor:
            return read_wave(self._file(cell), self._options.audio)

        for start in range(0, len(rows), _CHUNK):
            waves = [*self._read(name, column, rows[start : start + _CHUNK], read)]
            places = [start + k for k, wave in enumerate(waves) if wave is not None]
            if places:
                heard = torch.stack([wave for wave in waves if wave is not None])
                inputs[places], present[places] = spectrograms(heard, self._options.audio), True
        raw = RawSound(**self._options.audio.model_dump())
        return Modality("audio", shape, raw), inputs, present

    def _tables(
        self, name: str, column: Column, rows: Sequence[int], kind: Found
    ) -> Decoded | None:
        read = partial(self._table, columns=column.channels, vector=kind in ("vector", "table"))
        found = [*self._read(name, column, rows, read)]
        places = [place for place, table in enumerate(found) if table is not None]
        if not places:
            self._problems.add(f"column '{name}'", "there is nothing in it that can be read")
            return None
        numbers = self._by_name(name, column, [*zip(rows, found, strict=True)])
        if numbers is None:
            return None
        tables, channels = numbers
        if kind == "table":
            lengths = [1 if table.ndim == 1 else len(table) for table in tables]
            if len({table.shape[:-1] for table in tables}) > 1:
                few, many = lengths.index(min(lengths)), lengths.index(max(lengths))
                ends = [(lengths[k], self._where[rows[places[k]]]) for k in (few, many)]
                self._problems.add(
                    f"column '{name}'",
                    f"its tables have from {ends[0][0]} ({ends[0][1]}) to {ends[1][0]} steps "
                    f"({ends[1][1]}); say in dataset.toml whether they are a 'sequence', of any "
                    "length, or a 'series', all of the same",
                )
                return None
            kind = "vector" if tables[0].ndim == 1 else "series"
        tables = [steps_last(table, kind) for table in tables]
        if not self._alike(name, column, [rows[place] for place in places], tables, kind):
            return None
        if kind == "sequence":
            steps = self._options.series.steps or max(table.shape[1] for table in tables)
            tables = [masked(table, steps) for table in tables]
        inputs = torch.zeros(len(rows), *tables[0].shape)
        inputs[places] = torch.from_numpy(np.stack(tables))
        present = torch.zeros(len(rows), dtype=torch.bool)
        present[places] = True
        raw = RawNumbers(channels=channels)
        return Modality(kind, tuple(tables[0].shape), raw), inputs, present

    def _by_name(
        self, name: str, column: Column, found: Sequence[tuple[int, Table | None]]
    ) -> tuple[list[Floats], tuple[str, ...]] | None:
        """Return the numbers of tables, given with their rows, and the names of their columns.

        These are in the order of the first file that can name them. Returns None where they are
        not the same in all; those that differ are noted.
        """
        wanted: tuple[str, ...] | None = None
        tables, first, before = list[Floats](), "", len(self._problems)
        for row, table in found:
            if table is None:
                continue
            numbers = table.numbers
            if table.names is not None:
                if wanted is None:
                    wanted, first = table.names, self._at(row, name, column)
                with self._problems.at(self._at(row, name, column)):
                    numbers = by_name(numbers, table.names, wanted, first)
            tables.append(numbers)
        return (tables, wanted or ()) if len(self._problems) == before else None

    def _alike(
        self,
        name: str,
        column: Column,
        rows: Sequence[int],
        tables: Sequence[Floats],
        kind: Kind,
    ) -> bool:
        """Whether tables, those of ``rows``, can be of one kind; those that differ are noted."""
        shapes = [table.shape[:1] if kind == "sequence" else table.shape for table in tables]
        usual = Counter(shapes).most_common(1)[0][0]
        if kind == "vector" and len(usual) == 2:
            self._problems.add(f"column '{name}'", f"it has {_told(usual)}, expected a vector")
            return False
        for row, shape in zip(rows, shapes, strict=True):
            if shape != usual:
                self._note(row, name, column, f"it has {_told(shape)}, most have {_told(usual)}")
        return len(set(shapes)) == 1

    def _read(
        self, name: str, column: Column, rows: Sequence[int], read: Callable[[Cell], T]
    ) -> Iterator[T | None]:
        """Read the cells of ``rows``; None of those that are empty, or cannot be read."""

        def attempt(row: int) -> T | DataError | None:
            try:
                cell = column.cells[row]
                return None if cell is None else read(cell)
            except DataError as error:
                return error

        for row, result in zip(rows, self._pool.map(attempt, rows), strict=True):
            if result is not None:
                self.empty.discard(row)
            if isinstance(result, DataError):
                self._note(row, name, column, result)
                yield None
            else:
                yield result

    def _note(self, row: int, name: str, column: Column, problem: object) -> None:
        self._problems.add(self._at(row, name, column), problem)

    def _at(self, row: int, name: str, column: Column) -> str:
        cells = column.cells
        shown = f" '{_shortened(cells[row])}'" if isinstance(cells, Sequence) else ""
        return f"{self._where[row]}, {name}{shown}"

    def _file(self, cell: Cell) -> Path | BytesIO:
        if isinstance(cell, BytesIO):
            return cell
        if not isinstance(cell, str):
            raise DataError("there are numbers where a file is expected")
        return file_in(self._root, cell)

    def _table(self, cell: Cell, *, columns: Sequence[str], vector: bool) -> Table:
        if isinstance(cell, np.ndarray):
            return Table(cell)
        file = self._file(cell)
        if not isinstance(file, Path):
            raise DataError("there is a file's content where numbers are expected")
        return read_named(file, columns=columns, vector=vector)

    def _kind_by_suffix(self, name: str, column: Column, rows: Sequence[int]) -> Found | None:
        """Return what the files of a column are; None, with the reason noted, if not all are."""
        if not isinstance(column.cells, Sequence):  # numbers
            return "table"
        first: dict[Found, int] = {}
        unknown = False
        for row in rows:
            if cell := column.cells[row]:
                kind = kind_of(str(cell))
                if kind is not None:
                    first.setdefault(kind, row)
                    continue
                unknown = True
                self._note(
                    row,
                    name,
                    column,
                    f"its type is none of {', '.join(sorted(SUFFIXES))}; let dataset.toml say "
                    "what it is, or ignore the column",
                )
        if len(first) > 1:
            told = " and ".join(f"{kind} ({self._where[row]})" for kind, row in first.items())
            self._problems.add(f"column '{name}'", f"it mixes files of {told}")
        elif not first and not unknown:
            self._problems.add(f"column '{name}'", "it is empty")
        return next(iter(first)) if len(first) == 1 and not unknown else None


def file_in(root: Path, cell: str) -> Path:
    """Return a file that a manifest names: in the folder, wherever links lead.

    Raises
    ------
    DataError
        It is none, or elsewhere.
    """
    root = root.resolve()
    try:
        path = (root / cell).resolve()
        inside, there = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop
        raise DataError(f"it is no path: {reason(error)}") from error
    if Path(cell).is_absolute() or (PureWindowsPath(cell).drive and not there):
        short = f", as '{path.relative_to(root)}'" if inside and there else ""
        raise DataError(f"the path is absolute; give it from the folder on{short}")
    if not inside:
        raise DataError("the path leads out of the folder")
    if not there:
        parts = cell.replace("\\", "/")
        hint = f"; folders are separated by '/': '{PurePosixPath(parts)}'" if parts != cell else ""
        raise DataError(f"there is no such file{hint}")
    return path


def _shortened(cell: object) -> str:
    text = str(cell)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _told(shape: tuple[int, ...]) -> str:
    """Describe the shape of a table, its steps last."""
    if len(shape) == 1:
        return f"{shape[0]} number{'s' * (shape[0] != 1)}"
    return f"{shape[1]} steps of {_told(shape[:1])}"
