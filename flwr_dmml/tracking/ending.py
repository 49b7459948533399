"""The end of a run: how it ended, and how many devices came that far (``end.json``)."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.errors import UserError
from ..base.files import write_whole
from ..base.formats import first_problem
from .history import read_metrics_file, read_record
from .records import Amount, Count, RoundRecord
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

    rounds: Count
    first: Count
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

    rounds: Count
    of: Count
    begun: list[Count]
    finished: list[Count]
    failures: dict[Count, Failures] = {}

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


class Left(_Written):
    """What a method has left that came to its end.

    Attributes
    ----------
    battery_j : list of float or None
        The devices' batteries, by partition; None on mains power.
    end : MethodEnd
        How far it came.
    """

    battery_j: list[Amount] | None
    end: MethodEnd


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
    came = f"{len(begun) - len(some)} of {len(begun)} devices finished"
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
    return _read(run / END, Ending) if (run / END).exists() else None


def read_left(folder: Path) -> tuple[RoundRecord, Left] | None:
    """Return the last round of a method and what it has left; None if it is not at its end.

    Parameters
    ----------
    folder : Path
        The method's, in that of the run.

    Raises
    ------
    EndingError, HistoryError
        A file is damaged.
    """
    if not (folder / END).exists():
        return None
    left, metrics = _read(folder / END, Left), folder / "metrics.jsonl"
    lines = read_metrics_file(metrics)
    if not lines:
        raise EndingError(f"{metrics}: it is empty, but the method has run to its end")
    try:
        return read_record(lines[-1]), left
    except ValidationError as error:
        raise EndingError(f"{metrics}, line {len(lines)}: {first_problem(error)}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _read(path: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise EndingError(f"{path}: {first_problem(error)}") from error


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
