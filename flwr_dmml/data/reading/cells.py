"""Cells of CSV files: what is a name, a number, a label, or missing. Decided here, for all readers.

docs/howto/own-data.md has the rules in words.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ..samples import DataError
from .problems import reason, refuse

_MISSING = frozenset(
    ["", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat"]
)  # pandas has these, in some spellings
_ROW_NAMES = re.compile(r"|Unnamed: 0(_level_0)?|__index_level_0__")
_LONGEST = 1000  # digits of a label that is a number


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value: empty, or NaN, NA, null and the like."""
    return cell.strip().lower() in _MISSING


def names_rows(name: str) -> bool:
    """Whether a column's name is that of pandas' or R's row names, which are no data."""
    return _ROW_NAMES.fullmatch(name) is not None


def as_number(label: str) -> int | float | None:
    """Return the number that a label is, None if it is none."""
    if len(label) > _LONGEST or "_" in label or not label.isascii():
        return None
    try:
        return int(label)
    except ValueError:
        pass
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def ordered(names: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct names but missing ones, sorted: as numbers if all are."""
    distinct = sorted({name for name in names if not is_missing(name)})
    numbers = {name: as_number(name) for name in distinct}
    if all(number is not None for number in numbers.values()):
        distinct.sort(key=numbers.__getitem__)  # type: ignore[arg-type]
    return tuple(distinct)


def label_problems(labels: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return what is wrong with labels whose classes are not declared, as a whole.

    Parameters
    ----------
    labels, splits : sequence of str
        Of each row; rows that are neither "train" nor "test" do not count.
    """
    of = {
        split: ordered([x for x, s in zip(labels, splits, strict=True) if s == split])
        for split in ("train", "test")
    }
    known = ordered([*of["train"], *of["test"]])
    numbers = {name: as_number(name) for name in known}
    real = [name for name, x in numbers.items() if isinstance(x, float) and not x.is_integer()]
    if real and None not in numbers.values():
        problem = (
            f"its labels are real numbers, such as '{real[0]}': labels are classes, there is no "
            "regression; put the numbers into classes, such as 'low' and 'high'"
        )
        return [problem]
    problems, twice, looks = [], dict[int | float, str](), dict[str, str]()
    for name in known:
        if (other := looks.setdefault(normalize("NFC", name), name)) != name:
            problems.append(
                f"the labels {other!a} and {name!a} both look like '{name}' (Unicode's "
                "NFC and NFD); write them alike"
            )
        number = numbers[name]
        if number is not None and (other := twice.setdefault(number, name)) != name:
            problems.append(f"the labels '{other}' and '{name}' are one number; write them alike")
    unknown = [name for name in of["test"] if name not in of["train"]]
    if of["train"] and unknown and not problems:
        problems.append(
            f"no training row has the label {', '.join(map(repr, unknown))}; training rows have "
            f"{', '.join(map(repr, of['train']))}"
        )
    return problems


def read_rows_of_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line, from 1, and its cells, stripped; ``[]`` for a blank line.

    A record that goes over several lines has the number of its last one.

    Raises
    ------
    DataError
        The file is missing, not in UTF-8, no CSV, or its cells are not separated by commas.
    """
    began, before = False, 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                before = reader.line_num
                cells = [cell.strip() for cell in row]
                if cells == [""]:
                    cells = []
                if cells and not began:
                    began = True
                    _check_separator(reader.line_num, cells)
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"it is not in UTF-8 ({error}); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise DataError("it is missing") from error
    except csv.Error as error:
        raise DataError(
            f"line {before + 1}: it cannot be read as CSV: {error}; a cell that begins with a "
            'quotation mark ends with the next one, and one inside it is written ""'
        ) from error
    except OSError as error:
        raise DataError(f"it cannot be read as CSV: {reason(error)}") from error


def _check_separator(line: int, cells: Sequence[str]) -> None:
    if len(cells) == 1:
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if separator in cells[0]:
                raise DataError(
                    f"line {line}: {name} are between its cells; save it with commas, and a point "
                    "in numbers"
                )


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers of a CSV file.

    Parameters
    ----------
    table : numpy.ndarray
        ``[rows, columns]`` float64; NaN where a value is missing and may be.
    lines : list of int
        The line of each row, from 1.
    names : tuple of str
        Of the columns; empty where the file has none.
    texts : list of str
        Of each row the cell of the column that was asked for as text; else empty.
    """

    table: NDArray[np.float64]
    lines: list[int]
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def read_numbers(
    path: Path, columns: Sequence[str] = (), *, text: str = "", gaps: bool = False
) -> Numbers:
    """Read the numbers of a CSV file.

    The first line holds names if none of its cells is a number, or if the numbers in it count 0, 1,
    2, ... as pandas names columns. A first column that pandas or R wrote for the names of rows is
    left out.

    Parameters
    ----------
    path : Path
        In UTF-8, cells separated by commas.
    columns : sequence of str
        Names of those that are read, in that order; empty for all.
    text : str
        Name of a column that is read as text besides; empty for none.
    gaps : bool
        Whether values may be missing.

    Raises
    ------
    DataError
        If it is anything else; the first three lines that are wrong are named.
    """
    rows = _Rows(tuple(columns), text, gaps)
    blank = 0
    for line, cells in read_rows_of_cells(path):
        if not cells:
            blank = blank or line
            continue
        if blank and rows.width == 1:
            raise DataError(
                f"line {blank} is blank: a value is missing; fill it in, or leave it out"
            )
        blank = 0
        rows.add(line, cells)
    return rows.finish()


class _Rows:
    """Lines of numbers, one after the other."""

    def __init__(self, columns: tuple[str, ...], text: str, gaps: bool) -> None:
        self._columns, self._text, self._gaps = columns, text, gaps
        self.width = 0
        """Cells of a line; 0 before the first."""
        self._names: tuple[str, ...] = ()
        self._picked: list[int] | None = None  # of the cells of a line; None: all
        self._text_at = -1
        self._counting: tuple[int, list[str]] | None = None  # first line, if it counts 0, 1, 2, ...
        self._only_fractions = True  # no cell of the other lines is a bare whole number
        self._rows: list[list[float]] = []
        self._lines: list[int] = []
        self._texts: list[str] = []
        self._wrong: list[str] = []

    def add(self, line: int, cells: list[str]) -> None:
        if not self.width:
            self.width = len(cells)
            if self._begin(line, cells):
                return
        if self._counting and self._only_fractions:
            self._only_fractions = not any(cell.lstrip("+-").isdigit() for cell in cells)
        self._number(line, cells)

    def _begin(self, line: int, cells: list[str]) -> bool:
        """Take the first line; return whether it holds names."""
        given = [as_number(cell) for cell in cells]
        numbers = [number for number in given if number is not None]
        counts = [cell for cell in cells if cell.isdigit()] == [*map(str, range(len(numbers)))]
        if all(map(is_missing, cells)) or (numbers and not counts):
            if self._columns or self._text:
                raise DataError(
                    f"line {line} does not name its columns, and some are asked for by name"
                )
            return False
        if counts and len(numbers) == len(cells) and not (self._columns or self._text):
            self._counting = line, cells  # what follows will tell
            return True
        self._name(line, cells)
        return True

    def _name(self, line: int, cells: list[str]) -> None:
        asked = (*self._columns, *([self._text] if self._text else []))
        if lacking := [name for name in asked if name not in cells]:
            raise DataError(
                f"line {line}: there is no column {', '.join(map(repr, lacking))}; there are "
                f"{', '.join(cells)}"
            )
        if twice := [name for name in asked if cells.count(name) > 1]:
            raise DataError(f"line {line}: several columns are named '{twice[0]}'")
        if self._text:
            self._text_at = cells.index(self._text)
        picked = [*map(cells.index, self._columns)]
        if not self._columns:
            first = 1 if names_rows(cells[0]) and len(cells) > 1 else 0
            picked = [k for k in range(first, len(cells)) if k != self._text_at]
            if unnamed := [k + 1 for k in picked if is_missing(cells[k])]:
                raise DataError(f"line {line}: column {unnamed[0]} has no name; give it one")
        self._picked = picked
        self._names = tuple(cells[k] for k in picked)

    def _number(self, line: int, cells: list[str]) -> None:
        if len(cells) != self.width:
            self._wrong.append(f"line {line} has {len(cells)} columns, not {self.width}")
            return
        at = range(len(cells)) if self._picked is None else self._picked
        chosen = [cells[k] for k in at]
        try:
            row = [*map(float, chosen)]
        except ValueError:
            row = [math.nan]
        if not all(map(math.isfinite, row)) or "_" in "".join(chosen):
            row = []
            for k, cell in zip(at, chosen, strict=True):
                number = self._cell(cell)
                if isinstance(number, str):
                    of = f" ({self._names[len(row)]})" if self._names else ""
                    self._wrong.append(f"line {line}, column {k + 1}{of}: {number}")
                    return
                row.append(number)
        self._rows.append(row)
        self._lines.append(line)
        if self._text:
            self._texts.append(cells[self._text_at])

    def _cell(self, cell: str) -> float | str:
        """Return the number in a cell, or what is wrong with it."""
        if is_missing(cell):
            told = f"'{cell}' is a missing value" if cell else "a value is missing"
            return math.nan if self._gaps else f"{told}; fill it in, or leave the line out"
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if "_" in cell or math.isnan(number):
            return f"'{cell}' is not a number"
        if math.isinf(number):
            return f"{cell} is not a finite number (float32)"
        return number

    def finish(self) -> Numbers:
        """Return the numbers."""
        if self._counting is not None:
            self._decide(*self._counting)
        refuse(self._wrong)
        table = np.array(self._rows, dtype=np.float64)
        return Numbers(table, self._lines, self._names, tuple(self._texts))

    def _decide(self, line: int, cells: list[str]) -> None:
        """Take a first line that counts 0, 1, 2, ... for names or numbers, by the other lines."""
        single, alone = len(cells) == 1, not self._rows and not self._wrong
        if alone or (single and not self._only_fractions):
            rows, lines = self._rows, self._lines
            self._rows, self._lines = [], []
            self._number(line, cells)
            self._rows, self._lines = self._rows + rows, self._lines + lines
        elif single or not self._only_fractions:
            more = ", ..." * (len(cells) > 3)
            raise DataError(
                f"line {line}, {', '.join(cells[:3])}{more}, may be the names that pandas gives to "
                "columns, or numbers; put names above it, or in its place"
            )
        else:
            self._names = tuple(cells)
