"""Mixing weights of a graph (symmetric, doubly stochastic), and how fast they mix."""

from collections.abc import Iterable

import networkx as nx
import numpy as np
from numpy.typing import NDArray


def components(graph: nx.Graph, nodes: Iterable[int] | None = None) -> list[list[int]]:
    """Return the connected components of the subgraph of ``nodes``, each sorted, by first node."""
    members = graph if nodes is None else graph.subgraph(nodes)
    return sorted(sorted(component) for component in nx.connected_components(members))


def metropolis_rows(graph: nx.Graph, nodes: Iterable[int]) -> dict[int, dict[int, float]]:
    """Return the Metropolis-Hastings weights of the subgraph induced by ``nodes``, without zeros.

    ``w_ij = 1 / (1 + max(d_i, d_j))`` on a link, ``w_ii = 1 - sum_j w_ij``, with d the degrees in
    the subgraph. Source: Xiao, Boyd and Lall, "A Scheme for Robust Distributed Sensor Fusion Based
    on Average Consensus", IPSN 2005.

    Parameters
    ----------
    graph : nx.Graph
        Links from a node to itself do not count.
    nodes : iterable of int
        The members, e.g. the live owners of a block; unknown ids are ignored.

    Returns
    -------
    dict of int to dict of int to float
        A row for every member, its own weight included: symmetric, doubly stochastic, in [0, 1].
    """
    members = set(nodes) & set(graph)
    near = {i: [j for j in sorted(graph[i]) if j in members and j != i] for i in sorted(members)}
    rows: dict[int, dict[int, float]] = {}
    for i, others in near.items():
        row = {j: 1.0 / (1.0 + max(len(others), len(near[j]))) for j in others}
        rows[i] = {i: 1.0 - sum(row.values()), **row}
    return rows


def metropolis_weights(graph: nx.Graph, nodes: Iterable[int] | None = None) -> NDArray[np.float64]:
    """Return the weights of :func:`metropolis_rows` as a matrix.

    Parameters
    ----------
    graph : nx.Graph with the nodes ``0 .. n - 1``
    nodes : iterable of int, optional
        The members (default: all).

    Returns
    -------
    NDArray[np.float64], shape ``[n, n]``
        The rows of those who are no members are identity.
    """
    weights: NDArray[np.float64] = np.eye(len(graph))
    for i, row in metropolis_rows(graph, graph if nodes is None else nodes).items():
        for j, weight in row.items():
            weights[i, j] = weight
    return weights


def spectral_gap(weights: NDArray[np.float64]) -> float:
    """Return 1 - the second largest |eigenvalue| of symmetric, doubly stochastic [n, n] weights.

    In [0, 1]: 0 (to rounding) for a disconnected graph or an identity row; 1 for weights of 1/n.
    """
    return max(0.0, 1.0 - float(np.linalg.norm(weights - 1.0 / len(weights), ord=2)))
