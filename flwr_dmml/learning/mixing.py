"""The mixing step of one device: every block with the neighbours that own it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..payload.blocks import flatten, load_flat, mix, vector_problem
from ..payload.plan import Inbox, Plan


def mix_blocks(
    blocks: Mapping[str, nn.Module],
    weights: Mapping[str, tuple[float, ...]],
    neighbours: Sequence[int],
    inbox: Inbox,
) -> tuple[float, list[str]]:
    """Mix each block with the neighbours' copies, in place.

    ``weights[block]`` holds the own weight, then that of each of ``neighbours``; they sum to 1.
    What cannot be mixed is left out and its weight given to the own copy, which keeps the weights
    of all others doubly stochastic.

    Returns
    -------
    tuple of float and list of str
        ``sum_j w_kj ||x_k - x_j||^2`` over all that is mixed (0 at consensus; this project's
        measure), and what was wrong with neighbours' blocks (``"3: block head.audio is missing"``).
    """
    disagreement, rejected = 0.0, list[str]()
    for name, (own_weight, *others) in weights.items():
        own = flatten(blocks[name])
        good: list[tuple[float, Tensor]] = []
        for neighbour, weight in zip(neighbours, others, strict=True):
            if weight == 0.0:
                continue
            vector = inbox[neighbour].get(name)
            problem = "is missing" if vector is None else vector_problem(vector, len(own))
            if problem or vector is None:
                rejected.append(f"{neighbour}: block {name} {problem}")
                own_weight += weight
                continue
            good.append((weight, vector))
            disagreement += weight * float(torch.dist(own, vector)) ** 2
        load_flat(blocks[name], mix(own, own_weight, good))
    return disagreement, rejected


def mix_stacked(
    name: str,
    own: Sequence[Tensor],
    plans: Sequence[Plan],
    inboxes: Sequence[Inbox],
    device: torch.device,
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Mix a block of many devices at once, in float32; :func:`mix_blocks` does it for one.

    A vector that several of them have received is looked at once.

    Parameters
    ----------
    name : str
        The block.
    own : sequence of Tensor
        Their own copies, flat ``[length]`` on the CPU.
    plans, inboxes : sequence of Plan, of Inbox
        Theirs.
    device : torch.device
        Where to compute.

    Returns
    -------
    tuple of Tensor, Tensor and list of list of str
        The mixed block ``[device, length]``, the disagreement ``[device]``, and what was wrong.
    """
    stack, rejected = torch.stack(list(own)).to(device), [list[str]() for _ in own]
    mixed, problems = torch.empty_like(stack), dict[int, str | None]()
    there: dict[int, Tensor] = {}  # vectors on the device, by the id of what was received
    terms: list[tuple[int, float, Tensor]] = []  # who, weight, distance
    for k, (plan, inbox) in enumerate(zip(plans, inboxes, strict=True)):
        own_weight, *others = plan.weights[name]
        good: list[tuple[float, Tensor]] = []
        for neighbour, weight in zip(plan.neighbours, others, strict=True):
            if weight == 0.0:
                continue
            vector = inbox[neighbour].get(name)
            if vector is None:
                problem: str | None = "is missing"
            elif id(vector) in problems:
                problem = problems[id(vector)]
            else:
                problem = problems[id(vector)] = vector_problem(vector, stack.shape[1])
                there[id(vector)] = vector.to(device)
            if problem:
                rejected[k].append(f"{neighbour}: block {name} {problem}")
                own_weight += weight
            else:
                good.append((weight, there[id(vector)]))
        torch.mul(stack[k], own_weight, out=mixed[k])
        for weight, vector in good:
            mixed[k].add_(vector, alpha=weight)
            terms.append((k, weight, torch.dist(stack[k], vector)))
    apart = torch.zeros(len(own), device=device)
    if terms:
        who, weights, distances = zip(*terms, strict=True)
        squares = torch.stack(distances).square() * torch.tensor(weights, device=device)
        apart.index_add_(0, torch.tensor(who, device=device), squares)
    return mixed, apart, rejected
