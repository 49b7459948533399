"""The mixing step of one device: every block with the neighbours that own it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..blocks import flatten, load_flat, mix, vector_problem
from ..plan import Inbox


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
