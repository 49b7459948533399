"""Mixing weights of a graph, and how fast they mix."""

from collections.abc import Callable, Collection, Iterable, Mapping

import networkx as nx
import numpy as np
from numpy.typing import NDArray

Rows = dict[int, dict[int, float]]
"""The weights of each member: its own, and those of whom it hears from, without zeros."""
Edges = Iterable[tuple[int, int] | tuple[int, int, float]]
"""Links (i, j), from i to j where they go one way; with a mixing weight each, where these are not
to be Metropolis-Hastings."""


def components(graph: nx.Graph, nodes: Iterable[int] | None = None) -> list[list[int]]:
    """Return the connected components of the subgraph of ``nodes``, each sorted, by first node.

    Where links go one way: the strongly connected ones.
    """
    members = graph if nodes is None else graph.subgraph(nodes)
    find = nx.strongly_connected_components if graph.is_directed() else nx.connected_components
    return sorted(sorted(component) for component in find(members))


def with_links(graph: nx.Graph, keeps: Callable[[int, int], bool]) -> nx.Graph:
    """Return all nodes of a graph, with those of its links that ``keeps`` keeps, and their weights.

    Links that go one way are asked for from the sender to the receiver.
    """
    kept = nx.create_empty_copy(graph)
    kept.add_edges_from((i, j, link) for i, j, link in graph.edges(data=True) if keeps(i, j))
    return kept


def weighted(graph: nx.Graph) -> bool:
    """Return whether links have mixing weights of their own."""
    return any("weight" in link for _, _, link in graph.edges(data=True))


def add_links(graph: nx.Graph, links: Edges) -> None:
    """Add links to a graph, with their weights."""
    for i, j, *weight in links:
        graph.add_edge(i, j, **({"weight": weight[0]} if weight else {}))


def heard_by(graph: nx.Graph, node: int) -> list[int]:
    """Return from whom a node receives, sorted."""
    return sorted(graph.pred[node] if graph.is_directed() else graph[node])


def mixing_rows(
    graph: nx.Graph,
    nodes: Iterable[int],
    hubs: Mapping[int, Collection[int]] | None = None,
    *,
    push: bool = False,
    lasting: bool = False,
) -> Rows:
    """Return the mixing weights of the subgraph induced by ``nodes``.

    Those of the links where they have any, which are symmetric; else :func:`metropolis_rows`;
    :func:`receiver_rows` where links go one way; :func:`sender_rows` for ``push``, a rule that
    undoes what is uneven in them.

    Parameters
    ----------
    graph : nx.Graph or nx.DiGraph
        Links from a node to itself do not count.
    nodes : iterable of int
        The members, e.g. the live owners of a block; unknown ids are ignored.
    hubs : mapping of int to collection of int, optional
        See :func:`metropolis_rows`; the others know none.
    push : bool
        Whether senders divide what they send.
    lasting : bool
        Whether the graph stays as it is: then a link that nothing leads back from is not used, as
        all weight would end up where it leads to.
    """
    if push:
        return sender_rows(graph, nodes, lasting=lasting)
    if graph.is_directed():
        return receiver_rows(graph, nodes)
    if weighted(graph):
        return _given_rows(graph, nodes)
    return metropolis_rows(graph, nodes, hubs)


def _given_rows(graph: nx.Graph, nodes: Iterable[int]) -> Rows:
    """Return the weights of the links; a node keeps what is left."""
    members = set(nodes) & set(graph)
    rows: Rows = {}
    for i in sorted(members):
        row = {j: float(graph[i][j]["weight"]) for j in sorted(graph[i]) if j in members and j != i}
        rows[i] = {i: 1.0 - sum(row.values()), **row}
    return rows


def receiver_rows(graph: nx.DiGraph, nodes: Iterable[int]) -> Rows:
    """Return equal weights of what a node has and of all that it hears; rows sum to 1."""
    members = set(nodes) & set(graph)
    rows: Rows = {}
    for i in sorted(members):
        near = [j for j in heard_by(graph, i) if j in members and j != i]
        rows[i] = dict.fromkeys((i, *near), 1.0 / (1 + len(near)))
    return rows


def sender_rows(graph: nx.Graph, nodes: Iterable[int], *, lasting: bool = False) -> Rows:
    """Return weights by which a node deals out what it has, equally, itself included.

    ``p_ij = 1 / (1 + number of receivers of j)``: what a sender deals out sums to 1, what a
    receiver gets need not. See :func:`mixing_rows`.
    """
    members = set(nodes) & set(graph)
    place: dict[int, int] = dict.fromkeys(members, 0)
    if lasting:
        groups = enumerate(components(graph, members))
        place = {node: number for number, group in groups for node in group}
    heard: dict[int, list[int]] = {i: [] for i in sorted(members)}
    share: dict[int, float] = {}
    for j in sorted(members):
        to = [i for i in graph[j] if i in members and i != j and place[i] == place[j]]
        share[j] = 1.0 / (1 + len(to))
        for i in to:
            heard[i].append(j)
    return {i: {j: share[j] for j in (i, *near)} for i, near in heard.items()}


def metropolis_rows(
    graph: nx.Graph, nodes: Iterable[int], hubs: Mapping[int, Collection[int]] | None = None
) -> Rows:
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
    rows: Rows = {}
    for i, others in near.items():
        row = {j: 1.0 / (1.0 + max(degree[i], degree[j])) for j in others}
        row |= {hub: of_hub[hub] for hub in around.get(i, ())}
        rows[i] = {i: 1.0 - sum(row.values()), **row}
    return rows


def metropolis_weights(graph: nx.Graph, nodes: Iterable[int] | None = None) -> NDArray[np.float64]:
    """Return the weights of :func:`metropolis_rows` as :func:`as_matrix` does."""
    members = graph if nodes is None else nodes
    return as_matrix(metropolis_rows(graph, members), len(graph))


def as_matrix(rows: Rows, num_nodes: int) -> NDArray[np.float64]:
    """Return weights as a matrix ``[n, n]``; the rows of those who are no members are identity."""
    weights: NDArray[np.float64] = np.eye(num_nodes)
    for i, row in rows.items():
        for j, weight in row.items():
            weights[i, j] = weight
    return weights


def spectral_gap(weights: NDArray[np.float64]) -> float:
    """Return 1 - the second largest |eigenvalue| of symmetric, doubly stochastic [n, n] weights.

    In [0, 1]: 0 (to rounding) for a disconnected graph or an identity row; 1 for weights of 1/n.
    """
    return max(0.0, 1.0 - float(np.linalg.norm(weights - 1.0 / len(weights), ord=2)))
