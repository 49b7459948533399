"""Whitespace-separated text files of published data sets: one row a line."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..samples import DataError
from .problems import reason, refuse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LARGEST = float(np.finfo(np.float32).max)
_EXACT = 2.0**53  # of larger floats not all whole numbers are there


def read_activities(path: Path) -> dict[int, str]:
    """Read the activities, ``id name`` a line, in their order in the file.

    Raises
    ------
    DataError
        If a line is something else, or an id or name is there twice.
    """
    found: dict[int, str] = {}
    wrong = []
    for number, line in enumerate(read_lines(path), start=1):
        match = re.fullmatch(r"\s*(\d{1,18})\s+(\S+)\s*", line)
        if match is None:
            wrong.append(f"line {number}: '{line}', expected an id and a name, e.g. '1 WALKING'")
        elif int(match[1]) in found or match[2] in found.values():
            wrong.append(f"line {number}: '{line.strip()}', the id or the name is there twice")
        else:
            found[int(match[1])] = match[2]
    refuse(wrong)
    return found


def read_rows(path: Path, columns: int) -> Floats:
    """Read numbers between blanks, a row a line.

    Returns
    -------
    numpy.ndarray
        ``[rows, columns]``, at least one row.

    Raises
    ------
    DataError
        If it is missing, empty, or has lines that are something else; the first three are named.
    """
    lines = read_lines(path)
    try:
        rows = np.loadtxt(lines, ndmin=2, comments=None, encoding=None)
    except ValueError:
        rows = np.empty((0, 0))
    if rows.shape != (len(lines), columns) or not (np.abs(rows) <= _LARGEST).all():
        wrong = [(number, _problem(line, columns)) for number, line in enumerate(lines, start=1)]
        refuse([f"line {number}: {problem}" for number, problem in wrong if problem])
        raise DataError(f"it does not hold {columns} numbers a line, between blanks")
    return rows


def read_whole(path: Path, columns: int) -> Ints:
    """Read whole numbers as :func:`read_rows` does, ``[rows, columns]`` int64."""
    rows = read_rows(path, columns)
    refuse(
        [
            f"line {row + 1}: {rows[row, column]:g} is not a whole number"
            for row, column in np.argwhere(
                (rows != np.round(rows)) | (np.abs(rows) > _EXACT)
            ).tolist()
        ]
    )
    return rows.astype(np.int64)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, without blank ones at its end."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError as error:
        raise DataError("it is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read: {reason(error)}") from error
    if not lines:
        raise DataError("it is empty")
    return lines


def _problem(line: str, columns: int) -> str | None:
    """Say what is wrong with a line of numbers."""
    words = line.split()
    if len(words) != columns:
        return f"{len(words)} numbers, expected {columns}"
    for word in words:
        try:
            if not abs(float(word)) <= _LARGEST:
                return f"{word} is not a finite number (float32)"
        except ValueError:
            return f"'{word}' is not a number"
    return None
