"""Problems in the files of a data set, collected and reported together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..samples import DataError

SHOWN = 20  # problems that are spelled out; the others are counted
LINES_SHOWN = 3  # the same for the lines of one file


class Problems:
    """Problems found one after the other, to be raised together.

    Parameters
    ----------
    about : str
        What the message begins with, e.g. ``"data-path: 'my/data' cannot be used"``.
    """

    def __init__(self, about: str) -> None:
        self._about = about
        self._found: list[str] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, where: str, reason: object) -> None:
        """Note a problem, e.g. ``("row 3, a.wav", "is truncated")``."""
        self._found.append(f"{where}: {reason}" if where else str(reason))

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Note a :class:`DataError` raised in this block instead of letting it through."""
        try:
            yield
        except DataError as error:
            self.add(where, error)

    def check(self) -> None:
        """Go on if there is no problem.

        Raises
        ------
        DataError
            If there is one at least: a line each for the first 20, then how many more there are.
        """
        if not self._found:
            return
        lines = [f"  {problem}" for problem in self._found[:SHOWN]]
        if len(self._found) > SHOWN:
            lines.append(f"  and {len(self._found) - SHOWN:,} more")
        raise DataError("\n".join([f"{self._about}:", *lines]))


def reason(error: Exception) -> str:
    """Return an error's message, without the path at the end of a system error."""
    return getattr(error, "strerror", None) or str(error)


def refuse(wrong: Sequence[str]) -> None:
    """Go on if no line is wrong.

    Raises
    ------
    DataError
        If there is one at least: the first three, and how many more there are.
    """
    more = len(wrong) - LINES_SHOWN
    if wrong:
        shown = wrong[:LINES_SHOWN]
        raise DataError("; ".join([*shown, *([f"and {more:,} more lines"] if more > 0 else [])]))
