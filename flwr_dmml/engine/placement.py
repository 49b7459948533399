"""Placement of nodes on workers: few links between workers, equal work for each."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import identity
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

SLACK = 0.05
"""Share of extra work that a worker may get for the sake of fewer links."""
SWEEPS = 8
EXACT = 1000
"""A graph of so many nodes has its Fiedler vector computed exactly, whatever it is like."""
FAR = 0.005
"""So far from 0, as a share of the largest eigenvalue there can be, an approximate one is taken."""


def place(graph: nx.Graph, costs: Sequence[float], workers: int) -> list[int]:
    """Return the worker of every node.

    Nodes in a row are halved by cost, and each half again, until there is a piece for each worker:
    once in the order of their numbers, in which rings and tori are near themselves, and once in
    that of the Fiedler vector of what is being halved. In both, single nodes then move to where
    they have more neighbours, as long as no piece grows beyond the largest, or its share by more
    than :data:`SLACK`. The one with fewer links between workers is taken.

    Parameters
    ----------
    graph : nx.Graph
        On nodes 0 .. n-1.
    costs : sequence of float
        Work of every node, above 0, ``[n]``.
    workers : int
        At least 1.

    Returns
    -------
    list of int
        ``[n]`` in ``[0, workers)``; no worker is idle unless there are more of them than nodes.

    Raises
    ------
    ValueError
        There is no worker.

    References
    ----------
    Fiedler, "Algebraic connectivity of graphs", 1973, for the order; the moves are those of
    Kernighan and Lin, "An efficient heuristic procedure for partitioning graphs", 1970, one node at
    a time.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}: must be at least 1")
    found: list[list[int]] = []
    for order in (sorted, lambda nodes: _in_order(graph, nodes)):
        home: dict[int, int] = {}
        _halve(list(graph), costs, range(workers), order, home)
        _move(graph, costs, home, workers)
        found.append([home[node] for node in range(len(graph))])
    return min(found, key=lambda homes: links_between(graph, homes))


def links_between(graph: nx.Graph, homes: Sequence[int]) -> int:
    """Return how many links join nodes of different workers."""
    return sum(homes[a] != homes[b] for a, b in graph.edges)


def _halve(
    nodes: list[int],
    costs: Sequence[float],
    workers: range,
    order: Callable[[list[int]], list[int]],
    home: dict[int, int],
) -> None:
    """Write into ``home`` which of the ``workers`` gets each of the ``nodes``."""
    if len(workers) == 1 or len(nodes) < 2:
        home |= dict.fromkeys(nodes, workers[0])
        return
    row, left = order(nodes), workers[: len(workers) // 2]
    ordered = np.asarray([costs[node] for node in row])
    middles = np.cumsum(ordered) - ordered / 2
    cut = int(np.searchsorted(middles, ordered.sum() * len(left) / len(workers)))
    if len(row) >= len(workers):  # a node for everybody
        cut = min(max(cut, len(left)), len(row) - len(workers) + len(left))
    _halve(row[:cut], costs, left, order, home)
    _halve(row[cut:], costs, workers[len(left) :], order, home)


def _in_order(graph: nx.Graph, nodes: list[int]) -> list[int]:
    """Return nodes component by component, each in the order of its Fiedler vector."""
    row: list[int] = []
    for part in sorted(sorted(c) for c in nx.connected_components(graph.subgraph(nodes))):
        if len(part) > 2:
            members = graph.subgraph(part)
            part = [n for _, n in sorted(zip(_fiedler(members), members, strict=True))]
        row += part
    return row


def _fiedler(graph: nx.Graph) -> NDArray[np.float64]:
    """Return the Fiedler vector of a connected graph, to the precision that helps.

    It takes solving with the Laplacian, which takes minutes on a large random graph. There its
    eigenvalue is far from 0, and a few products with the Laplacian are enough.
    """
    if len(graph) > EXACT:
        most = 2.0 * max(degree for _, degree in graph.degree())
        shifted = most * identity(len(graph)) - nx.laplacian_matrix(graph).astype(float)
        begin = np.random.default_rng(0).standard_normal(len(graph))
        with suppress(ArpackNoConvergence):
            values, vectors = eigsh(shifted, k=2, which="LA", tol=1e-3, maxiter=100, v0=begin)
            second = int(np.argmin(values))
            if most - values[second] > FAR * most:
                return np.asarray(vectors[:, second])
    return np.asarray(nx.fiedler_vector(graph, method="tracemin_lu", seed=0))


def _move(graph: nx.Graph, costs: Sequence[float], home: dict[int, int], workers: int) -> None:
    """Move nodes in place while that removes links."""
    load = [0.0] * workers
    for node, worker in home.items():
        load[worker] += costs[node]
    hosted = Counter(home.values())
    most = max(*load, sum(load) / workers * (1 + SLACK))
    for _ in range(SWEEPS):
        moved = False
        for node in sorted(home):
            here, near = home[node], [0] * workers
            for neighbour in graph[node]:
                near[home[neighbour]] += 1
            there = max(range(workers), key=lambda w: (near[w], w == here))
            alone = hosted[here] == 1
            if near[there] > near[here] and load[there] + costs[node] <= most and not alone:
                home[node], moved = there, True
                load[here] -= costs[node]
                load[there] += costs[node]
                hosted[here] -= 1
                hosted[there] += 1
        if not moved:
            return
