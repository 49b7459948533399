"""Plans, payloads and states as Flower's records. Never a pickle."""

from collections.abc import Iterable, Iterator, Mapping
from math import inf, isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from .. import __version__
from ..base.text import one_line
from ..payload.plan import Apart, Averaged, Carried, Inbox, Outcome, Payload, Plan
from .arrays import TensorArray, record_of

ABOUT, PLAN, INITIAL, STATE = "about", "plan", "initial", "flwr-dmml.state"
PEERS, BLOCKS, LETTER_BYTES, LABEL_BYTES = "peers", "blocks", "letter.bytes", "letter.label-bytes"
OWN_PACE, MAX_STALENESS = "own-pace", "max-staleness"
"""The record of a message to a device that does not wait for its neighbours, and what is in it."""
BEGAN_S, ENDED_S, LETTER_AGE, FETCHED_BYTES = (
    "round.began-s", "round.ended-s", "letter.age.", "letter.fetched-bytes",
)  # fmt: skip
"""What such a device tells of a round: when it was, in seconds since the message came; in how many
of its own rounds before a letter had been there, by sender; what was fetched of its letters since
the round before."""
PAYLOAD, METRICS, REPORT, CONFUSION = "payload", "metrics", "report", "confusion"
NOTES, METER_PROBLEM, REJECTED = "notes", "meter-problem", "rejected"
PUBLIC_KEY, PAYLOAD_BYTES = "public-key", "payload.bytes"
Value = TypeVar("Value")
INBOX, FLOPS_IN = "inbox.", "flops-in."
PARTITION = "partition"
"""The reason of a device that fails begins with this and its partition id."""
_WEIGHTS, _UPDATES, _STEPS, _ANEW = "weights.", "updates.", "steps.", "anew"
_SHARES, _PARTNERS, _KEYS = "shares.", "partners.", "keys."
SECRET, PRIVATE = "flwr-dmml.secret", "private-key"
"""The record of a node's state that never leaves it, and the key in it."""
MASK_KEY = "mask-key"
_FAR, _CARRIES, _AVERAGES, _APART = "far.", "carries.", "averages.", "apart."
PROTOCOL, VERSION = "protocol", "version"
SPOKEN: dict[str, int | str] = {PROTOCOL: 1, VERSION: __version__}
"""Goes with the handshake, both ways. The protocol is raised when messages change their meaning."""
SIMULATED = "simulated"
"""In the node config of a device that an engine of this package hosts."""


def protocol_problem(said: Mapping[str, Any], who: str, here: str) -> str:
    """Return why a device and a coordinator do not understand each other; empty if they do.

    Parameters
    ----------
    said : mapping
        The other's part of the handshake.
    who, here : str
        What the other is, and what this is.
    """
    if said.get(PROTOCOL) == SPOKEN[PROTOCOL]:
        return ""
    number, version = (one_line(str(said.get(key, "?")), 40) for key in (PROTOCOL, VERSION))
    return (
        f"{who} speaks protocol {number} (flwr-dmml {version}), {here} "
        f"{SPOKEN[PROTOCOL]} (flwr-dmml {__version__}): install one version on all devices and the "
        "coordinator (flwr-dmml fleet push)"
    )


def pack(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Write named tensors as a record that shares them: they must not be changed any more."""
    return record_of({name: TensorArray(value) for name, value in tensors.items()})


def unpack(record: ArrayRecord) -> Payload:
    """Read named tensors from a record; they may be shared: do not change them in place.

    Only plain arrays are read: Flower's ``Array.numpy()`` loads with ``allow_pickle=False``. An
    array that cannot be read at all becomes an empty tensor, which no block accepts.
    """
    payload: Payload = {}
    for name, array in record.items():
        if isinstance(array, TensorArray):
            payload[name] = array.tensor
            continue
        try:
            payload[name] = torch.from_numpy(np.array(array.numpy()))
        except Exception:  # a peer's bytes can make the reader raise anything
            payload[name] = torch.empty(0)
    return payload


def write_plan(plan: Plan, method: str) -> ConfigRecord:
    """Write a plan for a method; empty lists are left out, Flower cannot count their bytes."""
    record = ConfigRecord(
        {
            "method": method,
            "server-round": plan.server_round,
            "iterations": plan.iterations,
            "num-rounds": plan.num_rounds,
            "evaluate": plan.evaluate,
        }
    )
    if isfinite(plan.budget_j):
        record["budget-j"] = plan.budget_j
    for key, is_so in (
        ("merges", plan.merges),
        ("merged", plan.merged),
        ("hand-over", plan.hand_over),
    ):
        if is_so:
            record[key] = True
    if plan.phase:
        record["phase"] = plan.phase
    for key, partitions in (
        ("neighbours", plan.neighbours),
        ("recipients", plan.recipients),
        ("resend", plan.resend),
    ):
        if partitions:
            record[key] = list(partitions)
    for modality, updates in plan.by_modality.items():
        record[_UPDATES + modality] = updates
    for modality, count in plan.steps.items():
        record[_STEPS + modality] = count
    if plan.anew:
        record[_ANEW] = list(plan.anew)
    for prefix, rows in ((_WEIGHTS, plan.weights), (_SHARES, plan.shares)):
        for block, weights in rows.items():
            record[prefix + block] = list(weights)
    for name, partners in plan.partners.items():
        record[_PARTNERS + name] = list(partners)
    record.update({f"{_KEYS}{partition}": key for partition, key in plan.keys.items()})
    for prefix, brought in ((_FAR, plan.far), (_CARRIES, plan.carries)):
        for position, there in enumerate(brought):
            record[f"{prefix}{position}"] = [there.origin, there.via, there.couriers]
            record[f"{prefix}{position}.blocks"] = list(there.blocks)
    for position, mean in enumerate(plan.averages):
        record[f"{_AVERAGES}{position}"] = [mean.length, *mean.origins]
        record[f"{_AVERAGES}{position}.blocks"] = [mean.block]
    for position, own in enumerate(plan.apart):
        record[f"{_APART}{position}"] = list(own.readers)
        record[f"{_APART}{position}.blocks"] = list(own.blocks)
    return record


def read_plan(record: Mapping[str, Any]) -> Plan:
    """Read what :func:`write_plan` wrote."""
    return Plan(
        server_round=int(record["server-round"]),
        iterations=int(record["iterations"]),
        num_rounds=int(record["num-rounds"]),
        evaluate=bool(record["evaluate"]),
        budget_j=float(record.get("budget-j", inf)),
        phase=str(record.get("phase", "")),
        neighbours=tuple(record.get("neighbours", [])),
        recipients=tuple(record.get("recipients", [])),
        resend=tuple(record.get("resend", [])),
        merges=bool(record.get("merges", False)),
        merged=bool(record.get("merged", False)),
        hand_over=bool(record.get("hand-over", False)),
        weights=_read_rows(record, _WEIGHTS),
        shares=_read_rows(record, _SHARES),
        partners=_read_rows(record, _PARTNERS),
        keys={
            int(k.removeprefix(_KEYS)): bytes(v) for k, v in record.items() if k.startswith(_KEYS)
        },
        by_modality={
            key.removeprefix(_UPDATES): int(value)
            for key, value in record.items()
            if key.startswith(_UPDATES)
        },
        steps={
            key.removeprefix(_STEPS): float(value)
            for key, value in record.items()
            if key.startswith(_STEPS)
        },
        anew=tuple(record.get(_ANEW, [])),
        far=_read_carried(record, _FAR),
        carries=_read_carried(record, _CARRIES),
        averages=tuple(
            Averaged(block, tuple(origins), length)
            for (length, *origins), (block,) in _numbered(record, _AVERAGES)
        ),
        apart=tuple(Apart(blocks, tuple(readers)) for readers, blocks in _numbered(record, _APART)),
    )


def _read_rows(record: Mapping[str, Any], prefix: str) -> dict[str, tuple[Any, ...]]:
    return {k.removeprefix(prefix): tuple(v) for k, v in record.items() if k.startswith(prefix)}


def _read_carried(record: Mapping[str, Any], prefix: str) -> tuple[Carried, ...]:
    return tuple(
        Carried(origin, via, blocks, couriers)
        for (origin, via, couriers), blocks in _numbered(record, prefix)
    )


def _numbered(
    record: Mapping[str, Any], prefix: str
) -> Iterator[tuple[list[int], tuple[str, ...]]]:
    """Yield the numbers and the names of blocks that a plan has under a prefix."""
    position = 0
    while (key := f"{prefix}{position}") in record:
        yield record[key], tuple(record[f"{key}.blocks"])
        position += 1


def join(rounds: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """Return the records of a message's rounds as one: Flower makes several requests for each.

    Those of the first round keep their keys; ``2:key`` is of the third.
    """
    return {
        f"{position}:{key}" if position else key: value
        for position, record in enumerate(rounds)
        for key, value in record.items()
    }


def parted(joined: Mapping[str, Value], count: int | None = None) -> list[dict[str, Value]]:
    """Return the records of ``count`` rounds from what :func:`join` gave.

    By default every round is taken to have an entry.

    Raises
    ------
    ValueError
        An entry is of a round beyond these.
    """
    found: dict[int, dict[str, Value]] = {0: {}}
    for key, value in joined.items():
        number, colon, rest = key.partition(":")
        numbered = colon and number.isascii() and number.isdecimal()
        position, name = (int(number[:10]), rest) if numbered else (0, key)
        found.setdefault(position, {})[name] = value
    count = len(found) if count is None else count
    if (last := max(found)) >= count:
        raise ValueError(f"an entry of round {last + 1} of {count}")
    return [found.get(position, {}) for position in range(count)]


def read_plans(content: RecordDict) -> list[Plan]:
    """Read the plans of all rounds of a message."""
    return [read_plan(record) for record in parted(content.config_records[PLAN])]


def read_peers(content: RecordDict) -> dict[int, str]:
    """Read the addresses of the neighbours, by partition id; empty for one that has none."""
    return {int(k): str(v) for k, v in content.config_records[PEERS].items()}


def read_blocks(content: RecordDict) -> dict[str, int]:
    """Read the lengths of the blocks that letters hold: those of two devices at least."""
    return {str(k): int(str(v)) for k, v in content.config_records[BLOCKS].items()}


def write_report(outcome: Outcome) -> ConfigRecord:
    """Write what went wrong in a round that a device has done; empty if nothing did."""
    record = ConfigRecord()
    if outcome.rejected:
        record[REJECTED] = outcome.rejected
    if outcome.meter_problem:
        record[METER_PROBLEM] = outcome.meter_problem
    return record


def add_note(content: RecordDict, line: str) -> None:
    """Add a line to what a node has to say in the run's log."""
    lines = content.config_records.get(NOTES, ConfigRecord()).get(NOTES, [])
    content[NOTES] = ConfigRecord({NOTES: [*map(str, lines), line]})  # type: ignore[arg-type]


def read_inbox(content: RecordDict) -> Inbox:
    """Read the neighbours' payloads that came with a plan."""
    return {
        int(key.removeprefix(INBOX)): unpack(record)
        for key, record in content.array_records.items()
        if key.startswith(INBOX)
    }
