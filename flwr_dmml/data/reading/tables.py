"""Tables of numbers from ``.npy`` and ``.csv`` files."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..samples import DataError, Kind
from .problems import reason

Floats = NDArray[np.float32]
TABLE_SUFFIXES = frozenset({".npy", ".csv"})


def read_table(path: Path, *, vector: bool = True) -> Floats:
    """Read numbers from a ``.csv`` file, or else a ``.npy`` file.

    Parameters
    ----------
    path : Path
        The first line of a CSV file may name its columns.
    vector : bool
        Whether a single line of numbers in a CSV file is a vector, or else a step of a series.

    Returns
    -------
    numpy.ndarray
        ``[features]`` or ``[steps, channels]`` float32, not empty.

    Raises
    ------
    DataError
        If it is anything else, or a number is not finite; the message says which.
    """
    if path.suffix.lower() != ".csv":
        return as_table(read_npy(path))
    numbers, lines = _read_csv(path)
    table = as_table(numbers, lines)
    return table[0] if vector and len(table) == 1 else table


def as_table(numbers: NDArray[Any], lines: Sequence[int] = ()) -> Floats:
    """Return numbers as ``[features]`` or ``[steps, channels]`` float32, none of them infinite.

    Parameters
    ----------
    numbers : numpy.ndarray
        Of any type of real numbers.
    lines : sequence of int, optional
        The lines that they come from, for messages.

    Raises
    ------
    DataError
        If they are anything else; the message says which number.
    """
    if numbers.ndim not in (1, 2) or numbers.size == 0:
        raise DataError(
            f"it holds an array of shape {numbers.shape}, expected [features] or [steps, channels]"
        )
    with np.errstate(over="ignore"):
        table: Floats = numbers.astype(np.float32)
    if len(wrong := np.argwhere(~np.isfinite(table))):
        at = wrong[0]
        where = f"line {lines[at[0]]}, column {at[1] + 1}" if lines else f"index {at.tolist()}"
        raise DataError(f"{where}: {numbers[tuple(at)]} is not a finite number (float32)")
    return table


def steps_last(table: Floats, kind: Kind) -> Floats:
    """Return a table as a vector (a column is as good as a line), or as ``[channels, steps]``."""
    if kind == "vector" and table.size == max(table.shape):
        return table.ravel()
    return table.T if kind == "vector" else table.reshape(len(table), -1).T


def masked(table: Floats, steps: int) -> Floats:
    """Return a sequence ``[features, any]`` as ``[features + 1, steps]``, the last a mask."""
    found = np.zeros((len(table) + 1, steps), dtype=np.float32)
    there = min(steps, table.shape[1])
    found[:-1, :there] = table[:, :there]
    found[-1, :there] = 1
    return found


def read_npy(path: Path) -> NDArray[Any]:
    """Read a ``.npy`` file of real numbers.

    Raises
    ------
    DataError
        It is anything else.
    """
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of a damaged header, whatever Python's tokenizer raises
        raise DataError(f"it is not a whole .npy file of numbers: {reason(error)}") from error
    if found.dtype.kind not in "buif":
        raise DataError(f"it holds {found.dtype}, expected real numbers")
    return found


def _read_csv(path: Path) -> tuple[NDArray[np.float64], list[int]]:
    """Return the numbers, ``[lines, columns]``, and the number of each line, from 1."""
    rows: list[list[float]] = []
    lines: list[int] = []
    width = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                width, first = width or len(cells), width == 0
                if len(cells) != width:
                    raise DataError(f"line {reader.line_num} has {len(cells)} columns, not {width}")
                if first and not any(_is_number(cell) for cell in cells):
                    continue  # names
                if wrong := [k for k, cell in enumerate(cells) if not _is_number(cell)]:
                    at = f"line {reader.line_num}, column {wrong[0] + 1}"
                    raise DataError(f"{at}: '{cells[wrong[0]]}' is not a number")
                rows.append([float(cell) for cell in cells])
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"it cannot be read as CSV: {reason(error)}") from error
    return np.array(rows, dtype=np.float64), lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
