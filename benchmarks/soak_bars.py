"""What a rehearsal (``benchmarks/soak.py``) has to show, from what it has left behind."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, linear_regression
from typing import Any

from soak_plan import Event

Lines = Sequence[Mapping[str, Any]]
QUIET_ROUNDS = 5
"""Rounds after the last recovery, over which accuracies are compared."""
AHEAD = 2
"""Rounds by which a run is ahead of its complete ones: one is evaluated, the next one trained."""
MOST_LESS = 0.05
"""Of accuracy, than in the undisturbed run."""
MOST_MB, MOST_FILES = 1.0, 1.0
"""By which a process may grow in a minute."""
SETTLES_S, LONG_S = 120.0, 180.0
"""Seconds of a process before its growth counts, and least seconds over which it is measured."""


@dataclass(frozen=True)
class Happened:
    """An event, and the rounds that were complete when it began, and when it was mended."""

    event: Event
    begun: int
    ended: int
    ended_s: float
    """Seconds since the start."""


@dataclass(frozen=True)
class Recovery:
    """What an event has cost.

    Attributes
    ----------
    round : int or None
        The first one in which the device takes part again, or that was run after an event of the
        coordinator's or the SuperLink's; None if there is none.
    lost : int
        Rounds until then in which the device has failed.
    """

    event: Event
    round: int | None
    lost: int


def takes_part(line: Mapping[str, Any], device: int) -> bool:
    """Return whether a device has trained in a round, and has not failed."""
    trained = (n for n in line["nodes"] if n["partition"] == device and any(n["updates"].values()))
    return str(device) not in line["failed"] and any(trained)


def recovery(one: Happened, lines: Lines) -> Recovery:
    """Return when what an event has disturbed went on."""
    device = one.event.device
    if device is None:
        new = lines[one.ended :]
    else:  # it may have done its part of those on their way before
        new = [line for line in lines[one.ended + AHEAD :] if takes_part(line, device)]
    back = new[0]["round"] if new else None
    concerned = lines[one.begun : back]
    lost = 0 if device is None else sum(not takes_part(line, device) for line in concerned)
    return Recovery(one.event, back, lost)


def unexplained(happened: Iterable[Happened], lines: Lines) -> Counter[str]:
    """Return why devices have failed in rounds in which nothing of theirs was broken."""
    broken: dict[int, set[int]] = defaultdict(set)
    for one in happened:
        if one.event.device is not None:
            back = recovery(one, lines).round or len(lines)
            broken[one.event.device] |= set(range(one.begun, back + 1))
    members = [node["partition"] for node in lines[0]["nodes"]]
    return Counter(
        line["failed"].get(str(device), "it is not in the run")
        for line in lines
        for device in members
        if not takes_part(line, device) and line["round"] not in broken[device]
    )


def wrong_lines(text: bytes, whole: bytes, undisturbed: int) -> int:
    """Return how many rounds are not as they should be.

    Those before the first disturbance are those of the undisturbed run, byte for byte; all others
    are there, once, in order.
    """
    lines, expected = text.splitlines(), whole.splitlines()
    wrong = sum(a != b for a, b in zip(lines[:undisturbed], expected, strict=False))
    rounds = [f'"round": {number},'.encode() for number in range(1, len(lines) + 1)]
    return wrong + sum(mark not in line for mark, line in zip(rounds, lines, strict=True))


def impossible(lines: Lines) -> int:
    """Return how many accuracies are none."""
    return sum(
        not 0 <= node["accuracy"] <= 1
        for line in lines
        for node in line["nodes"]
        if node["accuracy"] is not None
    )


def last_accuracy(lines: Lines) -> float:
    """Return the mean accuracy of the last rounds."""
    return fmean(line["accuracy"] for line in lines[-QUIET_ROUNDS:])


@dataclass
class Process:
    """A process as it was seen: what it is, and (seconds, MB, open files) at each look."""

    what: str
    seen: list[tuple[float, float, int]] = field(default_factory=list)

    def growth(self) -> tuple[float, float] | None:
        """Return MB and open files a minute, by least squares; None if it was seen too briefly."""
        seen = [one for one in self.seen if one[0] - self.seen[0][0] >= SETTLES_S]
        if not seen or seen[-1][0] - seen[0][0] < LONG_S:
            return None
        seconds = [one[0] for one in seen]
        mb, files = ([float(one[k]) for one in seen] for k in (1, 2))
        return (
            60 * linear_regression(seconds, mb).slope,
            60 * linear_regression(seconds, files).slope,
        )


@dataclass(frozen=True)
class Growth:
    """The most that a process of a kind has grown in a minute, of how many."""

    processes: int
    mb: float
    files: float


def growths(processes: Iterable[Process]) -> dict[str, Growth]:
    """Return the growth of processes that were there for long, by what they are."""
    by: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for process in processes:
        if (found := process.growth()) is not None:
            by[process.what].append(found)
    return {
        what: Growth(len(found), max(mb for mb, _ in found), max(files for _, files in found))
        for what, found in sorted(by.items())
    }
