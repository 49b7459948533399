"""Tables of numbers from ``.npy`` and ``.csv`` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..samples import DataError, Kind
from .cells import read_numbers
from .problems import reason

Floats = NDArray[np.float32]
TABLE_SUFFIXES = frozenset({".npy", ".csv"})
_SHOWN = 3  # columns that are named

AnyFloats = TypeVar("AnyFloats", NDArray[np.float32], NDArray[np.float64])


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers of a file.

    Parameters
    ----------
    numbers : numpy.ndarray
        ``[features]`` or ``[steps, channels]`` float32.
    names : tuple of str, optional
        Of the columns, see :func:`distinct`; None where they cannot have any.
    """

    numbers: Floats
    names: tuple[str, ...] | None = None


def read_table(path: Path, *, columns: Sequence[str] = (), vector: bool = True) -> Floats:
    """Read numbers from a ``.csv`` file, or else a ``.npy`` file.

    Parameters
    ----------
    path : Path
        A CSV file is read as :func:`~.cells.read_numbers` says.
    columns : sequence of str
        Names of the columns of a CSV file that are read; empty for all.
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
    return read_named(path, columns=columns, vector=vector).numbers


def read_named(path: Path, *, columns: Sequence[str] = (), vector: bool = True) -> Table:
    """Read numbers as :func:`read_table` does, and the names of their columns."""
    if path.suffix.lower() != ".csv":
        if columns:
            raise DataError("columns are chosen by name, and a .npy file has no names")
        return Table(as_table(read_npy(path)))
    found = read_numbers(path, columns)
    table = as_table(found.table, found.lines)
    return Table(table[0] if vector and len(table) == 1 else table, distinct(found.names))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that tell columns apart; empty where two are the same."""
    return tuple(names) if len(set(names)) == len(names) else ()


def by_name(
    numbers: AnyFloats, names: Sequence[str], wanted: Sequence[str], other: str
) -> AnyFloats:
    """Return the columns of a file in the order of another one.

    Parameters
    ----------
    numbers : numpy.ndarray
        ``[..., columns]``.
    names, wanted : sequence of str
        Of its columns and of the other's, all different; empty where they have none.
    other : str
        Names the other file, for messages.

    Raises
    ------
    DataError
        They do not have the same names.
    """
    if list(names) == list(wanted):
        return numbers
    alike = "name the columns alike in all files, or choose them in dataset.toml ([channels])"
    if not names or not wanted:
        one, two = ("no names of their own", "have") if wanted else ("names", "have none")
        raise DataError(f"its columns have {one}, and those of {other} {two}; {alike}")
    lacking: list[str] = [f"no column '{name}'" for name in wanted if name not in names]
    more: list[str] = [f"a column '{name}'" for name in names if name not in wanted]
    if told := [*lacking[:_SHOWN], *more[:_SHOWN]]:
        raise DataError(f"there is {' and '.join(told)}, unlike in {other}; {alike}")
    return numbers[..., [names.index(name) for name in wanted]]


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
