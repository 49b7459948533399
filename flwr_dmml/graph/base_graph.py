"""Base-(k+1) graphs: a few rounds over few links each that average exactly, for any number."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import ClassVar

from .family import Topology, require
from .weights import Edges

Round = dict[tuple[int, int], float]
"""The mixing weight of each link; what is left is the own weight."""


@dataclass(frozen=True)
class BaseGraph(Topology):
    """At most ``degree`` links a device and round; a period of rounds gives the exact average.

    That takes at most ``2 log(n) / log(degree + 1) + 2`` rounds, whatever the number n of devices.
    Each block has a graph of its own over those of its owners that are there, so that the promise
    holds for all blocks. Where a message or a device is lost on the way, its weight goes to the own
    copy on both sides: the mean is kept, the average of that period is no longer exact.

    Source: Takezawa, Sato and Bao, "Beyond Exponential Graph", NeurIPS 2023 (Base-(k+1) graph).
    """

    time_varying: ClassVar[bool] = True

    degree: int = 1

    @property
    def by_owners(self) -> bool:
        """True."""
        return True

    def period(self, num_nodes: int) -> int:
        """Return after how many rounds the graphs repeat, at least 1."""
        return max(1, len(base_rounds(num_nodes, self.degree)))

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        require(self.degree >= 1, f"base: degree must be at least 1, not {self.degree}")
        rounds = base_rounds(n, self.degree)
        links = rounds[(t - 1) % len(rounds)] if rounds else {}
        return [(i, j, weight) for (i, j), weight in links.items()]


@lru_cache(maxsize=256)
def base_rounds(num_nodes: int, degree: int) -> tuple[Round, ...]:
    """Return the links and weights of each round of the Base-(degree + 1) graph.

    Each round's weights are symmetric and doubly stochastic, with at most ``degree`` links a node;
    the product of all is ``1 1^T / n``. A single node needs no round.
    """
    simple = _simple(range(num_nodes), degree)
    copies = gcd(num_nodes, _powers(num_nodes, degree))
    if copies == 1:
        return tuple(simple)
    size = num_nodes // copies
    rounds: list[Round] = [{} for _ in _simple(range(size), degree)]
    for copy in range(copies):
        own = _simple(range(copy * size, (copy + 1) * size), degree)
        _overlay(rounds, own)
    across: list[Round] = [{} for _ in _hyper(range(copies), degree)]
    for place in range(size):
        _overlay(across, _hyper(range(place, num_nodes, size), degree))
    base = rounds + across
    return tuple(base if len(base) < len(simple) else simple)


def _overlay(rounds: list[Round], others: Sequence[Round]) -> None:
    for links, more in zip(rounds, others, strict=True):
        links |= more


def _powers(n: int, k: int) -> int:
    """Return the product of the largest power of each of 2 .. k + 1 that is at most n."""
    product = 1
    for c in range(2, k + 2):
        power = 1
        while power * c <= n:
            power *= c
        product *= power
    return product


def _factors(n: int, k: int) -> list[int] | None:
    """Return factors of at most k + 1, the smallest first; None where a prime is larger."""
    found: list[int] = []
    for q in range(k + 1, 1, -1):
        while n % q == 0:
            found.append(q)
            n //= q
    return found[::-1] if n == 1 else None


def _hyper(nodes: Sequence[int], k: int) -> list[Round]:
    """Return rounds in which groups of at most k + 1 average, so that in the end all have."""
    rounds: list[Round] = []
    stride = 1
    for q in _factors(len(nodes), k) or ():
        links: Round = {}
        for i in range(len(nodes)):
            if i // stride % q == 0:
                group = [nodes[i + stride * step] for step in range(q)]
                links |= {(a, b): 1 / q for at, a in enumerate(group) for b in group[at + 1 :]}
        rounds.append(links)
        stride *= q
    return rounds


def _simple(nodes: Sequence[int], k: int) -> list[Round]:
    """Return the rounds of the Simple Base-(k+1) graph.

    With n = sum_l a_l b^p_l in base b = k + 1 the nodes are cut into parts of ``a_l b^p_l``, and
    these into a_l subparts. First each part averages. In phase t the later parts hand their share
    of what is missing to part t; then each part spreads what it has got.
    """
    if _factors(len(nodes), k) is not None:
        return _hyper(nodes, k)
    parts: list[list[Sequence[int]]] = []  # subparts of each
    at, left = 0, len(nodes)
    while left:
        size = 1
        while size * (k + 1) <= left:
            size *= k + 1
        count = left // size
        parts.append([nodes[at + i * size : at + (i + 1) * size] for i in range(count)])
        at += count * size
        left -= count * size
    sizes = [sum(map(len, part)) for part in parts]
    whole = [_hyper([node for sub in part for node in sub], k) for part in parts]
    inside: list[list[Round]] = []  # of each part: rounds that spread what its subparts got
    for part, own in zip(parts, whole, strict=True):
        together: list[Round] = [{} for _ in _hyper(part[0], k)]
        for sub in part:
            _overlay(together, _hyper(sub, k))
        inside.append(own if len(part[0]) == 1 else together)
    rounds: list[Round] = [{} for _ in whole[0]]
    for own in whole:
        for number, links in enumerate(rounds if own else ()):
            links |= own[number % len(own)]
    last, done = len(parts) - 1, [0] * len(parts)
    t = 0
    while done[0] < len(inside[0]):
        links = {}
        used = [0] * len(parts[t]) if t <= last else []
        for number in range(last, -1, -1):
            if number > t:
                weight = sizes[t] / sum(sizes[t:]) / len(parts[t])
                for node in (node for sub in parts[number] for node in sub):
                    for place, sub in enumerate(parts[t]):
                        links[node, sub[used[place]]] = weight
                        used[place] += 1
            elif number < t or number == last:
                own = inside[number]
                links |= own[done[number] % len(own)] if own else {}
                done[number] += 1
        rounds.append(links)
        t += 1
    return rounds
