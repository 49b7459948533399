"""Which part of a payload goes to whom, and what couriers pass on or make of it."""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .blocks import COMPANION, STATISTICS, addressed, carried, without_companion
from .compression import Compressor
from .plan import Carried, Inbox, Payload, Plan, mean_of
from .received import received

T = TypeVar("T")


def wanted(plan: Plan, position: int, recipient: int, published: Collection[str]) -> frozenset[str]:
    """Return which blocks of a payload with these names the recipient of a plan is to get.

    The payload is that of its n-th neighbour, from 1. A block that is addressed to the recipient
    takes the place of the one for all.
    """
    names = {
        own if (own := addressed(name, recipient)) in published else name
        for name, weights in plan.weights.items()
        if weights[position] > 0
    }
    sender = plan.neighbours[position - 1]
    for there in (*plan.far, *plan.carries):
        if there.via == sender:
            names |= {_name(block, there) for block in there.blocks}
    names |= {mean.block for mean in plan.averages if sender in mean.origins}
    return frozenset(names)


def correspondents(plan: Plan) -> set[int]:
    """Return those from whom, and for whom, something is in a device's round."""
    readers = {reader for own in plan.apart for reader in own.readers}
    return {*plan.sources, *plan.recipients, *readers}


def cut(payload: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    """Return a payload's blocks of these names, with what belongs to them, and its statistics."""
    return {
        name: value
        for name, value in payload.items()
        if without_companion(name) in names or name.startswith(STATISTICS)
    }


def passed_on(plan: Plan, inbox: Inbox) -> Payload:
    """Return what a courier publishes of what it has received: the same tensors, unread."""
    found: Payload = {}
    for there in plan.carries:
        for block in there.blocks:
            entries = _entries(inbox.get(there.via, {}), _name(block, there))
            found |= {carried(block, there.origin) + more: x for more, x in entries.items()}
    return found


def averaged(
    plan: Plan, inbox: Inbox, compressor: Compressor, me: int
) -> tuple[Payload, list[str]]:
    """Return the means that a courier publishes of what it has received.

    They are rounded once, as ``exchange.precision`` says, without error feedback. What has not come
    or cannot be used is left out of a mean, and so is what its owner does not send in this round.

    Returns
    -------
    tuple of Payload and list of str
        The means, and what was wrong with neighbours' blocks, as :func:`~.received.received` says.
    """
    found: Payload = {}
    problems: list[str] = []
    for mean in plan.averages:
        sent = {j: inbox.get(j, {}) for j in mean.origins}
        opened, why = compressor.decode(sent, {mean.block: torch.empty(mean.length)}, me)
        sends = [j for j, own in opened.items() if mean.block not in own or len(own[mean.block])]
        good, wrong = received(
            opened, mean.block, mean.length, of=sends, called=f"block {mean.block}"
        )
        problems += [why.get(line, line) for line in wrong]
        if good:
            found |= compressor.rounded(carried(mean.block, mean_of(me)), _mean(good.values()))
    return found, problems


def _mean(vectors: Collection[Tensor]) -> Tensor:
    """Return the mean of vectors, added one after the other: equal to the bit everywhere."""
    first, *others = vectors
    total = first.clone()
    for x in others:
        total += x
    return total / len(vectors)


def brought(far: Iterable[Carried], inbox: Inbox) -> Inbox:
    """Return what couriers have brought, by origin, as if it had come from there."""
    found: Inbox = {}
    for there in far:
        payload = found.setdefault(there.origin, {})
        for block in there.blocks:
            entries = _entries(inbox.get(there.via, {}), carried(block, there.origin))
            payload |= {block + more: x for more, x in entries.items()}
    return found


def by_courier(line: str, plan: Plan) -> str:
    """Return a line about what a neighbour has sent; of a courier, where it is about a far block.

    ``"3: block encoder.audio is missing"`` becomes
    ``"2: block encoder.audio of device 3 is missing"``, or of a mean
    ``"2: block encoder.audio as a mean is missing"``.
    """
    sender, _, rest = line.partition(": ")
    for there in plan.far:
        for block in there.blocks:
            called = f"block {block} "
            if sender == str(there.origin) and rest.startswith(called):
                whose = "as a mean" if there.is_mean else f"of device {there.origin}"
                return f"{there.via}: {called}{whose} {rest.removeprefix(called)}"
    return line


def _name(block: str, there: Carried) -> str:
    """Return the name of a block in the payload of the neighbour that has it."""
    return block if there.via == there.origin else carried(block, there.origin)


def _entries(payload: Payload, name: str) -> Payload:
    """Return what a payload holds of a block, by what follows its name."""
    return {
        key.removeprefix(name): x
        for key, x in payload.items()
        if key == name or key.startswith(name + COMPANION)
    }
