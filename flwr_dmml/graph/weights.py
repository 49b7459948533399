"""Mixing weights of a graph (symmetric, doubly stochastic), and how fast they mix."""

from collections.abc import Collection, Iterable, Mapping

import networkx as nx
import numpy as np
from numpy.typing import NDArray


def components(graph: nx.Graph, nodes: Iterable[int] | None = None) -> list[list[int]]:
    """Return the connected components of the subgraph of ``nodes``, each sorted, by first node."""
    members = graph if nodes is None else graph.subgraph(nodes)
    return sorted(sorted(component) for component in nx.connected_components(members))


def metropolis_rows(
    graph: nx.Graph, nodes: Iterable[int], hubs: Mapping[int, Collection[int]] | None = None
) -> dict[int, dict[int, float]]:
    """Return the Metropolis-Hastings weights of the subgraph induced by ``nodes``, without zeros.

    ``w_ij = 1 / (1 + max(d_i, d_j))`` on a link, ``w_ii = 1 - sum_j w_ij``, with d the degrees in
    the subgraph. Source: Xiao, Boyd and Lall, "A Scheme for Robust Distributed Sensor Fusion Based
    on Average Consensus", IPSN 2005.

    A hub counts as one more neighbour of those around it, and all of them give the mean that it
    sends ``w = 1 / (1 + max d)``, over all of them: so each gives each w / k, itself included, and
    keeps at least ``1 / (1 + d)`` of what it has now (this project).

    Parameters
    ----------
    graph : nx.Graph
        Links from a node to itself do not count.
    nodes : iterable of int
        The members, e.g. the live owners of a block; unknown ids are ignored.
    hubs : mapping of int to collection of int, optional
        The members around each hub, by an id that is no node's.

    Returns
    -------
    dict of int to dict of int to float
        A row for every member, its own weight included, with the weights of means under the ids of
        the hubs. Rows sum to 1; with each mean's weight shared among those whose mean it is, they
        make a symmetric, doubly stochastic matrix in [0, 1].
    """
    members, hubs = set(nodes) & set(graph), hubs or {}
    near = {i: [j for j in sorted(graph[i]) if j in members and j != i] for i in sorted(members)}
    around: dict[int, list[int]] = {}
    for hub, own in hubs.items():
        for i in own:
            around.setdefault(i, []).append(hub)
    degree = {i: len(others) + len(around.get(i, ())) for i, others in near.items()}
    of_hub = {hub: 1.0 / (1.0 + max(degree[i] for i in own)) for hub, own in hubs.items()}
    rows: dict[int, dict[int, float]] = {}
    for i, others in near.items():
        row = {j: 1.0 / (1.0 + max(degree[i], degree[j])) for j in others}
        row |= {hub: of_hub[hub] for hub in around.get(i, ())}
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
