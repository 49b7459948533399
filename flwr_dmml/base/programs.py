"""Programs that are installed beside this package."""

from collections.abc import Callable
from importlib.metadata import entry_points

from .errors import UserError


class ProgramError(UserError):
    """A program that is not there; the message names it."""


def program(name: str) -> Callable[[], object]:
    """Return what a console script of an installed package runs.

    Raises
    ------
    ProgramError
        There is no such script.
    """
    for point in entry_points(group="console_scripts", name=name):
        found: Callable[[], object] = point.load()
        return found
    raise ProgramError(f"there is no program {name}: install Flower, pip install flwr")
