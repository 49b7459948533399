"""The end of a run: how it ended, and how many devices came that far (``end.json``)."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.errors import UserError
from .files import write_whole
from .records import RoundRecord
from .run_folder import END

Ended = Literal["finished", "stopped", "interrupted", "failed"]


class EndingError(UserError, ValueError):
    """A run folder without an end that can be read; the message says what is wrong."""


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True)


class Failures(_Written):
    """Rounds in which a device failed.

    Attributes
    ----------
    rounds : int
        How many.
    first : int
        The first of them, and ``reason`` why it failed then.
    """

    rounds: int
    first: int
    reason: str


class MethodEnd(_Written):
    """How far a method came.

    Attributes
    ----------
    rounds, of : int
        Complete rounds, and those that were to be.
    begun : list of int
        Devices that took part, by partition.
    finished : list of int
        Devices that came to its end; of a method that did not come to its own, those that were
        there last.
    failures : dict of int to Failures
        Of devices that failed in a round.
    """

    rounds: int
    of: int
    begun: list[int]
    finished: list[int]
    failures: dict[int, Failures] = {}

    @property
    def missing(self) -> list[int]:
        """Devices that did not come to the end."""
        return sorted(set(self.begun) - set(self.finished))


class Ending(_Written):
    """How a run ended.

    Attributes
    ----------
    ended : str
        "finished": all of it ran. "stopped": after a round, with a checkpoint, when it was asked to
        or too few devices were left. "interrupted": at once. "failed": with an error.
    reason : str
        Why it did not finish.
    methods : dict of str to MethodEnd
        Those that have begun, in order.
    """

    ended: Ended
    reason: str = ""
    methods: dict[str, MethodEnd] = {}


def failures_of(records: Iterable[RoundRecord]) -> dict[int, Failures]:
    """Return which devices failed in these rounds, how often, and why at first."""
    found: dict[int, list[tuple[int, str]]] = {}
    for record in records:
        for partition, reason in record.failed.items():
            found.setdefault(partition, []).append((record.round, reason))
    return {
        partition: Failures(rounds=len(all_of), first=all_of[0][0], reason=all_of[0][1])
        for partition, all_of in sorted(found.items())
    }


def absence(method: str, begun: Collection[int], missing: Collection[int]) -> str:
    """Return a warning about devices that did not come to the end; nothing if all did."""
    if not missing:
        return ""
    some = sorted(missing)
    who = ", ".join(map(str, some[:10])) + f" and {len(some) - 10} more" * (len(some) > 10)
    came = f"{len(begun) - len(some)} of {len(begun)} devices came to the end"
    return f"{method}: {came}; the last accuracies are theirs. Missing: {who}"


def write_ending(run: Path, ending: Ending) -> None:
    """Write the end of a run into its folder."""
    write_whole(run / END, ending.model_dump_json(indent=2) + "\n")


def read_ending(run: Path) -> Ending | None:
    """Return how a run ended; None of one that goes on, or was killed.

    Raises
    ------
    EndingError
        There is no run folder, or the file is damaged.
    """
    if not (run / "config.json").is_file():
        raise EndingError(f"{run}: not a run folder (it has no config.json)")
    if not (run / END).exists():
        return None
    try:
        return Ending.model_validate_json((run / END).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise EndingError(f"{run / END}: {where}: {first['msg']}") from error


def told(ends: Mapping[str, MethodEnd]) -> list[str]:
    """Return a line for each method, and one for each device that failed in it."""
    lines = []
    for method, end in ends.items():
        devices = f"{len(end.finished)} of {len(end.begun)} devices"
        lines.append(f"{method}: {end.rounds} of {end.of} rounds, {devices} at the end")
        for partition, own in end.failures.items():
            rounds = "1 round" if own.rounds == 1 else f"{own.rounds} rounds"
            lines.append(
                f"  device {partition} failed in {rounds}, first in round {own.first}: {own.reason}"
            )
    return lines
