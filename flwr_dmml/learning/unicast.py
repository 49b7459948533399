"""What each neighbour gets by itself: a noisy copy of a block, or a part of a sum that hides it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..payload.blocks import addressed, is_statistic
from ..payload.plan import Inbox, Payload, Plan
from ..privacy.cancelling import cancelling
from ..privacy.masks import is_part, masked, summed

SUM = "privacy.sum."
"""Whose parts a block's sum is of, with their weights, in a device's ``memory``."""


@dataclass(frozen=True)
class Sums:
    """What parts that have come add up to.

    Attributes
    ----------
    found : dict of str to tuple of float and Tensor
        By block, the own weight in the mean, and the sum ``[length]`` that the rest of it is.
    missing : dict of str to list of int
        Of other blocks that are to be summed up, whose parts have not come; none of a round whose
        parts cannot be known.
    """

    found: dict[str, tuple[float, Tensor]]
    missing: dict[str, list[int]]


def _weights(plan: Plan, block: str) -> tuple[float, dict[int, float]]:
    """Return how a device is to mix its own block, and how its recipients are to."""
    own, *others = plan.shares.get(block, (1.0,))
    return own, {j: w for j, w in zip(plan.recipients, others, strict=False) if w > 0}


def noisy_copies(
    blocks: Payload, plan: Plan, deviation: float
) -> tuple[Payload, dict[str, Tensor]]:
    """Return copies of blocks for each recipient, with noise that cancels, and the own ones.

    A block that nobody else is to mix is not sent: an empty vector stands for it.

    Parameters
    ----------
    blocks : Payload
        Flat vectors on the CPU.
    plan : Plan
        With :attr:`~.Plan.shares`.
    deviation : float
        See :func:`~.cancelling.cancelling`.
    """
    sent: Payload = {}
    kept: dict[str, Tensor] = {}
    for block, x in blocks.items():
        own, others = _weights(plan, block)
        if not (len(x) and others and own > 0):
            sent[block] = x[:0]
            continue
        noise = cancelling([own, *others.values()], len(x), deviation)
        kept[block], *copies = x + noise
        sent |= {addressed(block, j): copy for j, copy in zip(others, copies, strict=True)}
    return sent, kept


def parts_of_sums(
    blocks: Payload, plan: Plan, me: int, private: bytes, memory: dict[str, Tensor]
) -> Payload:
    """Return a device's part of each recipient's sum, and note whose parts its own are of.

    A block of which a recipient has no other sender is not sent to it.

    Parameters
    ----------
    blocks, plan
        As above, the plan with :attr:`~.Plan.partners` and their keys.
    me : int
        Partition id.
    private : bytes
        The own key.
    memory : dict of str to Tensor
        The device's, for :func:`sums_of`.

    Raises
    ------
    MaskError
        The numbers are too large.
    """
    found: Payload = {}
    for block, x in blocks.items():
        own, others = _weights(plan, block)
        rows = [(float(plan.server_round), own), *((float(j), w) for j, w in others.items())]
        memory[SUM + block] = torch.tensor(rows, dtype=torch.float64)
        sent: Payload = {}
        for j, weight in others.items() if len(x) else ():
            name = addressed(block, j)
            partners = {k: plan.keys.get(k, b"") for k in plan.partners.get(name, ()) if k != me}
            if partners:
                what = f"{j} {plan.server_round} {block}"
                sent[name] = masked(x, weight, me, partners, private, what)
        found |= sent or {block: x[:0]}
    return found


def sums_of(
    inbox: Inbox,
    server_round: int,
    me: int,
    lengths: Mapping[str, int],
    memory: Mapping[str, Tensor],
) -> Sums:
    """Return what neighbours' parts add up to.

    Blocks that a single neighbour has, or none, are in neither part of it.

    Parameters
    ----------
    inbox : Inbox
        What has come; not trusted.
    server_round : int
        In which it was published: the device must have been told whose parts of that there are.
    me : int
        Partition id.
    lengths : mapping of str to int
        Of the device's blocks.
    memory : mapping of str to Tensor
        As :func:`parts_of_sums` has left it.
    """
    sums = Sums({}, {})
    for block, length in lengths.items():
        if SUM + block not in memory:
            continue
        (noted, own), *others = memory[SUM + block].tolist()
        if len(others) < 2:
            continue
        name = addressed(block, me)
        parts = {int(j): inbox.get(int(j), {}).get(name) for j, _ in others}
        good = {j: x for j, x in parts.items() if x is not None and is_part(x, length)}
        if len(good) == len(parts) and noted == server_round:
            sums.found[block] = own, summed([*good.values()])
        else:
            sums.missing[block] = [j for j in parts if j not in good]
    return sums


def with_sums(plan: Plan, inbox: Inbox, sums: Sums) -> tuple[Plan, Inbox, list[str]]:
    """Return a plan and an inbox in which each sum is the model of one neighbour.

    A block of which a part has not come is not mixed in this round; the lines say whose that is.
    """
    found = {j: {k: x for k, x in own.items() if is_statistic(k)} for j, own in inbox.items()}
    weights = {block: (1.0,) + (0.0,) * len(plan.neighbours) for block in plan.weights}
    for block, (own, rest) in sums.found.items() if plan.neighbours else ():
        first = plan.neighbours[0]
        found.setdefault(first, {})[block] = rest / (1 - own)
        weights[block] = (own, 1 - own) + (0.0,) * (len(plan.neighbours) - 1)
    wrong = [
        f"{j}: block {block} is missing, so that nothing of it is mixed"
        for block, absent in sums.missing.items()
        for j in absent
        if j in plan.neighbours
    ]
    return replace(plan, weights=weights), found, wrong
