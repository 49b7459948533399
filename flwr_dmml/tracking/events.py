"""What devices did in simulated seconds, one line a round of a device (``events.jsonl``)."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.errors import UserError
from ..base.formats import first_problem
from .records import Amount, Count

EVENTS = "events.jsonl"


class EventsError(UserError, ValueError):
    """A file of events that cannot be read; the message names the line and what is wrong."""


class DeviceRound(BaseModel):
    """A round of one device that does not wait for others.

    Attributes
    ----------
    device, number : int
        Whose, and which of its own, from 1.
    start_s, sends_s, end_s : float
        When it began, when it had trained and began to send, and when that had arrived; simulated
        seconds since the run began.
    compute_j, radio_j : float
        What it took.
    letters : list of (int, int)
        Whose letters it mixed, and in how many of its own rounds before each had been there.
    missed : list of int
        Neighbours that its own letter did not reach: the link was down, or it was lost.
    failed : str
        Why it published nothing; empty where it did.
    """

    model_config = ConfigDict(frozen=True)

    device: Count
    number: Count
    start_s: Amount
    sends_s: Amount
    end_s: Amount
    compute_j: Amount = 0.0
    radio_j: Amount = 0.0
    letters: list[tuple[Count, Count]] = []
    missed: list[Count] = []
    failed: str = ""


def lines_of(rounds: Sequence[DeviceRound]) -> str:
    """Return the lines of a file of events."""
    return "".join(each.model_dump_json(exclude_defaults=True) + "\n" for each in rounds)


def read_events(path: Path) -> list[DeviceRound]:
    """Return the rounds in a file of events; a last line that is cut off is left out.

    Raises
    ------
    EventsError
        Another line cannot be read.
    OSError
        The file cannot be read.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    found: list[DeviceRound] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(DeviceRound.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # the run was killed while it wrote
            raise EventsError(f"{path}, line {number}: {first_problem(error)}") from error
    return found
