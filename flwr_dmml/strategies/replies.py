"""Replies of devices, checked once where they come in: types, ranges, and known sizes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import nan
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ..base.text import one_line
from ..clients.models import HANDED_OVER, Models, read_models
from ..learning.mixing import DROPPED
from ..learning.spending import EPSILON, SIGMA, SPENT, STEPS
from ..payload.blocks import STATISTICS, carried, is_carried, without_companion
from ..payload.plan import Plan, mean_of
from ..payload.routing import correspondents
from ..transport.arrays import array_problem
from ..transport.letter import MAX_LETTER
from ..transport.messages import (
    BEGAN_S,
    CONFUSION,
    ENDED_S,
    FETCHED_BYTES,
    LABEL_BYTES,
    LETTER_AGE,
    LETTER_BYTES,
    METER_PROBLEM,
    METRICS,
    NOTES,
    PAYLOAD,
    PAYLOAD_BYTES,
    REJECTED,
    REPORT,
    STATE,
    parted,
)
from .member import MOST_COUNT, NAME_LENGTH, Member
from .reasons import ReplyError

LARGEST = 1e30
"""No number that a device reports is larger: sums and squares of many stay finite."""
SHARE = 0.0, 1.0 + 1e-9  # 1, and what rounding adds
COUNTED = 0.0, LARGEST
BYTES = 0.0, float(MAX_LETTER)
RANGES = {
    "test.accuracy": SHARE,
    "test.accuracy_own_shares": SHARE,
    "test.macro_f1": SHARE,
    "test.uar": SHARE,
    "test.missing": SHARE,
    "test.ece": SHARE,
    "test.ece_uncalibrated": SHARE,
    "test.temperature.": COUNTED,
    "test.accuracy.": SHARE,
    "test.without.": SHARE,
    "validation.accuracy": SHARE,
    "labels.": SHARE,
    DROPPED: SHARE,
    "mix.disagreement": COUNTED,
    "train.iterations": COUNTED,
    "speed.": COUNTED,
    "near.": COUNTED,
    EPSILON: COUNTED,
    SIGMA: COUNTED,
    STEPS: COUNTED,
    SPENT: SHARE,
    LETTER_BYTES: BYTES,
    LABEL_BYTES: BYTES,
    PAYLOAD_BYTES: BYTES,
    BEGAN_S: COUNTED,
    ENDED_S: COUNTED,
    FETCHED_BYTES: (0.0, float(MOST_COUNT)),
    LETTER_AGE: (0.0, float(MOST_COUNT)),
}
"""Ranges of metrics, by name or what a name begins with; of all others -1e30 to 1e30."""
METER = "energy."
"""What a meter counts is read apart: a broken meter is no broken reply."""
OF_MODALITIES = "test.accuracy.", "test.without.", "test.temperature.", "speed.", "near."
"""After these stands the name of a modality."""
OF_NEIGHBOURS = DROPPED, LETTER_AGE
"""After these stands the partition id of a device."""
MOST_METRICS, MOST_NOTES, MOST_CLAIMS = 500, 10, 100
MOST_ENTRIES = 100_000
"""Arrays of a payload or a state."""
STATISTICS_BYTES = 1 << 28
"""What a payload may hold besides blocks: soft labels of a large public set."""
HEADERS, ALL_HEADERS = 1 << 10, 1 << 21
"""Bytes: more than the header of an array takes, and those of all arrays in a payload."""


@dataclass(frozen=True)
class Claim:
    """A device's word that what a neighbour sent cannot be used.

    Attributes
    ----------
    about : int or None
        The neighbour's partition id; None where the line names none of its own neighbours.
    text : str
        What is wrong, or the whole line.
    """

    about: int | None
    text: str


@dataclass(frozen=True)
class Account:
    """A device's account of one round.

    Attributes
    ----------
    metrics : dict of str to float
        See :class:`~flwr_dmml.payload.plan.Outcome`; finite, and in :data:`RANGES`.
    claims : list of Claim
        What was wrong with its neighbours' payloads, as it says.
    meter_problem : str
        Why it could not measure its joules; empty where it could, or need not.
    """

    metrics: dict[str, float]
    claims: list[Claim] = field(default_factory=list)
    meter_problem: str = ""


@dataclass(frozen=True)
class Reply:
    """A device's reply after the rounds of a message.

    Attributes
    ----------
    rounds : list of Account
        One for each.
    payload : ArrayRecord
        For its neighbours: arrays that can be read, of names and sizes that are expected.
    notes : list of str
        Lines for the run's log.
    confusion : list of int
        After the closing message: how often it takes each class for each, row by row; empty if it
        does not say.
    models : dict of str to ModelFiles
        That it hands over, where it was asked to.
    """

    rounds: list[Account]
    payload: ArrayRecord
    notes: list[str]
    confusion: list[int]
    models: Models = field(default_factory=dict)


def read_reply(
    content: RecordDict, member: Member, plans: Sequence[Plan], modalities: Collection[str]
) -> Reply:
    """Read a reply to a message with these plans; what it publishes is checked apart.

    Parameters
    ----------
    content : RecordDict
        The reply's; not trusted.
    member : Member
        Who sent it.
    plans : sequence of Plan
        Its own, of the message's rounds.
    modalities : collection of str
        Those of all devices.

    Raises
    ------
    ReplyError
        Something in it is not what it should be; the message names it.
    """
    try:
        metrics = parted(content.metric_records.get(METRICS, MetricRecord()), len(plans))
        reports = parted(content.config_records.get(REPORT, ConfigRecord()), len(plans))
    except ValueError as error:
        raise ReplyError(f"it has {error}") from error
    counts = content.metric_records.get(CONFUSION, MetricRecord()).get(CONFUSION, [])
    rounds = [
        Account(
            check_metrics(numbers, modalities),
            read_claims(report.get(REJECTED, []), plan),
            one_line(str(report.get(METER_PROBLEM, ""))),
        )
        for numbers, report, plan in zip(metrics, reports, plans, strict=True)
    ]
    payload = content.array_records.get(PAYLOAD, ArrayRecord())
    told = payload, read_notes(content), check_confusion(counts, member)
    asked = HANDED_OVER in content.config_records and plans[-1].hand_over
    return Reply(rounds, *told, read_models(content.config_records[HANDED_OVER]) if asked else {})


def check_metrics(metrics: Mapping[str, Any], modalities: Collection[str]) -> dict[str, float]:
    """Return a round's metrics as numbers that are finite, and in their ranges.

    Raises
    ------
    ReplyError
        Names the first one that is not.
    """
    ranges = _ranges(tuple(metrics), frozenset(modalities))
    numbers: dict[str, float] = {}
    for (name, value), (lowest, highest) in zip(metrics.items(), ranges, strict=True):
        if isinstance(value, int | float) and lowest <= value <= highest:
            numbers[name] = float(value)
        elif not isinstance(value, int | float):
            raise ReplyError(f"its metric {name} is a {type(value).__name__}; allowed: a number")
        elif name.startswith(METER):
            numbers[name] = nan
        else:
            told = one_line(str(value), 40)
            raise ReplyError(f"its metric {name} is {told}; allowed: {lowest:g} to {highest:g}")
    return numbers


@lru_cache(maxsize=4096)
def _ranges(names: tuple[str, ...], modalities: frozenset[str]) -> list[tuple[float, float]]:
    """Return the ranges of metrics with these names, which are checked, too."""
    if len(names) > MOST_METRICS:
        raise ReplyError(f"it has {len(names)} metrics; allowed: {MOST_METRICS}")
    ranges: list[tuple[float, float]] = []
    for name in names:
        if len(name) > NAME_LENGTH or not name.isprintable():
            raise ReplyError(
                f"it has a metric {one_line(name, 60)!r}; allowed: names of {NAME_LENGTH} "
                "characters that print"
            )
        for start in OF_MODALITIES:
            if name.startswith(start) and name.removeprefix(start) not in modalities:
                raise ReplyError(
                    f"its metric {name} is of no modality of the run; there are "
                    f"{', '.join(sorted(modalities))}"
                )
        for start in OF_NEIGHBOURS:
            about = name.removeprefix(start)
            if name.startswith(start) and not (about.isascii() and about.isdecimal()):
                raise ReplyError(f"its metric {name} is of no neighbour; allowed: {start}<id>")
        own = (r for key, r in RANGES.items() if name == key or _begins(name, key))
        ranges.append(next(own, (-LARGEST, LARGEST)))
    return ranges


def _begins(name: str, key: str) -> bool:
    return key.endswith(".") and name.startswith(key)


def read_claims(lines: Any, plan: Plan) -> list[Claim]:
    """Read what a device found wrong with neighbours' payloads: ``"3: block head is missing"``.

    Raises
    ------
    ReplyError
        These are no lines.
    """
    if not lines:
        return []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ReplyError("what it rejects is no list of lines")
    near, claims = correspondents(plan), list[Claim]()
    for line in lines[:MOST_CLAIMS]:
        sender, _, problem = line.partition(": ")
        about = int(sender) if len(sender) < 10 and sender.isascii() and sender.isdecimal() else -1
        known = about in near
        claims.append(Claim(about if known else None, one_line(problem if known else line)))
    return claims


def read_notes(content: RecordDict) -> list[str]:
    """Read what a device has to say in the run's log."""
    lines = content.config_records.get(NOTES, ConfigRecord()).get(NOTES, [])
    return [one_line(str(line)) for line in lines[:MOST_NOTES]] if isinstance(lines, list) else []


def check_confusion(counts: Any, member: Member) -> list[int]:
    """Return how often a device takes each class for each; empty if it does not say.

    Raises
    ------
    ReplyError
        That is no table of as many classes as it has introduced itself with.
    """
    if not isinstance(counts, list):
        raise ReplyError("its confusion table is no list of counts")
    if counts and len(counts) != member.num_classes**2:
        raise ReplyError(
            f"its confusion table has {len(counts)} cells for {member.num_classes} classes"
        )
    for count in counts:
        if not isinstance(count, int) or not 0 <= count <= MOST_COUNT:
            raise ReplyError(
                f"its confusion table holds {one_line(str(count), 40)}; allowed: whole numbers "
                f"from 0 to {MOST_COUNT}"
            )
    return counts


def check_arrays(record: ArrayRecord, what: str) -> None:
    """Refuse arrays that nobody could read.

    Raises
    ------
    ReplyError
        Names the first one.
    """
    if len(record) > MOST_ENTRIES:
        raise ReplyError(f"its {what} has {len(record)} entries; allowed: {MOST_ENTRIES}")
    for name, array in record.items():
        if problem := array_problem(array):
            raise ReplyError(f"{one_line(name, NAME_LENGTH)!r} in its {what} {problem}")


def check_payload(
    sizes: Mapping[str, int], member: Member, plan: Plan, most_bytes: Mapping[str, int]
) -> None:
    """Refuse a payload whose names or sizes are not those of a round with this plan.

    The numbers are the receivers' business.

    Parameters
    ----------
    sizes : mapping of str to int
        Bytes of its entries.
    member, plan
        Whose it is.
    most_bytes : mapping of str to int
        See :func:`most_bytes`.

    Raises
    ------
    ReplyError
        Says what is wrong with it.
    """
    if problem := member.problem_with(sizes):
        raise ReplyError(problem)
    others = _for_others(member, plan)
    brought = {without_companion(name) for name in sizes if is_carried(name)}
    if unasked := sorted(brought - {carried(*other) for other in others}):
        raise ReplyError(f"its payload carries {one_line(unasked[0], 60)}, which was not asked for")
    statistics = sum(size for name, size in sizes.items() if name.startswith(STATISTICS))
    if statistics > STATISTICS_BYTES:
        raise ReplyError(
            f"its payload has {statistics} bytes of statistics; allowed: {STATISTICS_BYTES}"
        )
    most = most_in_all(member, plan, most_bytes)
    blocks = sum(sizes.values()) - statistics
    if blocks > most:
        raise ReplyError(f"the blocks in its payload have {blocks} bytes; allowed: {most}")


def _for_others(member: Member, plan: Plan) -> list[tuple[str, int]]:
    """Return blocks that a courier is to publish for others, each with its origin."""
    mean = mean_of(member.partition_id)
    found = [(block, there.origin) for there in plan.carries for block in there.blocks]
    return [*found, *((own.block, mean) for own in plan.averages)]


def most_in_all(member: Member, plan: Plan, most_bytes: Mapping[str, int]) -> int:
    """Return more bytes than all blocks in a device's payload take, those of others included.

    ``most_bytes`` may lack blocks of its own, which are then left out.
    """
    own = sum(most_bytes.get(block, 0) for block in member.blocks) * max(1, len(plan.recipients))
    return own + sum(most_bytes[block] for block, _ in _for_others(member, plan))


def most_bytes(members: Iterable[Member]) -> dict[str, int]:
    """Return more bytes than each block takes in any format, by name."""
    found: dict[str, int] = {}
    for member in members:
        for block, length in member.blocks.items():
            size = max(member.block_bytes.get(block, 0), 4 * length)
            found[block] = max(found.get(block, 0), 4 * (size + HEADERS))
    return found


def told_bytes(metrics: Mapping[str, float], there: int) -> tuple[int, int]:
    """Return the bytes of a payload that only its readers can open, and of labels in it, as told.

    ``there`` bytes of it are, or were sent, encrypted or as a letter.

    Raises
    ------
    ReplyError
        It does not tell, or what it tells cannot be.
    """
    if PAYLOAD_BYTES not in metrics:
        raise ReplyError(f"it lacks the metric {PAYLOAD_BYTES}")
    size, labels = int(metrics[PAYLOAD_BYTES]), int(metrics.get(LABEL_BYTES, 0))
    if not labels <= size <= there + ALL_HEADERS:
        raise ReplyError(
            f"it tells of a payload of {size} bytes, {labels} of them labels, and {there} are there"
        )
    return size, labels


def read_state(content: RecordDict) -> tuple[ArrayRecord, list[str]]:
    """Read the state that a device keeps, for a checkpoint; and what it has to say.

    Raises
    ------
    ReplyError
        It is not there, or cannot be read.
    """
    if STATE not in content.array_records:
        raise ReplyError("its state is missing")
    state = content.array_records[STATE]
    check_arrays(state, "state")
    return state, read_notes(content)
