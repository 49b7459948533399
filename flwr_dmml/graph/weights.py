"""Mixing weights of a graph (symmetric, doubly stochastic), and how fast they mix."""

from collections.abc import Iterable

import networkx as nx
import numpy as np
from numpy.typing import NDArray


def components(graph: nx.Graph, nodes: Iterable[int] | None = None) -> list[list[int]]:
    """Return the connected components of the subgraph of ``nodes``, each sorted, by first node."""
    members = graph if nodes is None else graph.subgraph(nodes)
    return sorted(sorted(component) for component in nx.connected_components(members))


def metropolis_weights(graph: nx.Graph, nodes: Iterable[int] | None = None) -> NDArray[np.float64]:
    """Return the Metropolis-Hastings weights of the subgraph induced by ``nodes``.

    ``w_ij = 1 / (1 + max(d_i, d_j))`` on a link, 0 without one, ``w_ii = 1 - sum_j w_ij``, with d
    the degrees in the subgraph. Source: Xiao, Boyd and Lall, "A Scheme for Robust Distributed
    Sensor Fusion Based on Average Consensus", IPSN 2005.

    Parameters
    ----------
    graph : nx.Graph with the nodes ``0 .. n - 1``
    nodes : iterable of int, optional
        The members, e.g. the live owners of a block (default: all); unknown ids are ignored.

    Returns
    -------
    NDArray[np.float64], shape ``[n, n]``
        Symmetric, doubly stochastic, in [0, 1]; the rows of those who are no members are identity.
    """
    n = len(graph)
    members = graph if nodes is None else graph.subgraph(nodes)
    adjacency = np.zeros((n, n))  # [n, n]
    for i, j in members.edges:
        adjacency[i, j] = adjacency[j, i] = float(i != j)
    degree = adjacency.sum(axis=1)  # [n]
    weights: NDArray[np.float64] = adjacency / (1.0 + np.maximum.outer(degree, degree))
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def spectral_gap(weights: NDArray[np.float64]) -> float:
    """Return 1 - the second largest |eigenvalue| of symmetric, doubly stochastic [n, n] weights.

    In [0, 1]: 0 (to rounding) for a disconnected graph or an identity row; 1 for weights of 1/n.
    """
    return max(0.0, 1.0 - float(np.linalg.norm(weights - 1.0 / len(weights), ord=2)))
