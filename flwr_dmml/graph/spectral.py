"""Spectral gap of a topology per round, also of one that changes from round to round."""

from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..base.libraries import needed
from .family import Topology
from .weights import Rows, as_matrix, components, mixing_rows

DENSE = 500
"""Devices up to which the matrix of all pairs is worked with."""
SAMPLED = 16
"""Rounds that are looked at of graphs that never repeat."""
Floats = NDArray[np.float64]


def effective_spectral_gap(
    topology: Topology, num_nodes: int, *, seed: int = 0, rounds: int | None = None
) -> float:
    """Return the spectral gap per round of a topology with its weights, in [0, 1].

    ``1 - sigma_2(W_P ... W_1)^(1/P)``, sigma_2 the spectral norm of the product less ``11^T / n``.
    Where links go one way, the weights are those by which senders deal out
    (:func:`~.weights.sender_rows`), and in place of sigma_2 is the second largest |eigenvalue| of
    the product: how fast push-sum agrees.

    ``rounds`` is P >= 1: by default the period of the graphs, :data:`SAMPLED` for those that never
    repeat; for static ones P = 1 always, so it is :func:`~.weights.spectral_gap`.
    """
    if not topology.time_varying:
        rounds = 1
    count = rounds or topology.period(num_nodes) or SAMPLED
    graphs = _graphs(topology, num_nodes, seed, count)
    push = topology.directed
    rows = [mixing_rows(graph, graph, push=push) for graph in graphs]
    if push:
        sigma = _second_eigenvalue(rows)
    else:
        sigma = _sparse_norm(rows) if num_nodes > DENSE else _dense_norm(rows)
    return max(0.0, 1.0 - float(sigma ** (1.0 / count)))


def graph_lines(topology: Topology, num_nodes: int, *, seed: int = 0) -> list[str]:
    """Return what is known of the graphs of a run before it starts, in two or three lines."""
    period, name = topology.period(num_nodes), type(topology).__name__
    gap = effective_spectral_gap(topology, num_nodes, seed=seed)
    links = topology.graph(num_nodes, seed=seed).number_of_edges()
    if topology.time_varying:
        name += ", new every round" + f", again after {period}" * bool(period)
    name += ", links one way" * topology.directed
    over = f" a round, over {period or SAMPLED} rounds" * topology.time_varying
    lines = [f"Topology: {name}, {num_nodes} nodes, {links} links"]
    lines.append(f"Spectral gap: {gap:.4f}{over}")
    groups = groups_over_time(topology, num_nodes, seed=seed)
    both = " both ways" * topology.directed
    if len(groups) > 1:
        lines.append(f"Connectivity: {len(groups)} groups that cannot reach one another{both}")
    elif topology.time_varying or topology.directed:
        rounds = f" within {period or SAMPLED} rounds" * topology.time_varying
        lines.append(f"Connectivity: every device reaches every other{rounds}")
    return lines


def groups_over_time(topology: Topology, num_nodes: int, *, seed: int = 0) -> list[list[int]]:
    """Return who can reach one another within a period, or :data:`SAMPLED` rounds, both ways."""
    count = topology.period(num_nodes) or SAMPLED
    first, *others = _graphs(topology, num_nodes, seed, count)
    union = first.copy()
    for graph in others:
        union.add_edges_from(graph.edges)
    return components(union)


def rounds_to_agree(
    rounds: Iterable[Rows], groups: Sequence[Sequence[int]], tolerance: float
) -> tuple[int, float]:
    """Return after how many rounds of gossip little is left of differences, and how much.

    What is looked at is 8 random vectors a node, and the root mean square distance of nodes from
    the mean of their group, as a share of what it was. If the rounds end before, all of them.

    Parameters
    ----------
    rounds : iterable of dict
        The weights of each round.
    groups : sequence of sequence of int
        Nodes that can reach one another.
    tolerance : float
        How much may be left, in (0, 1).
    """
    members = sorted(node for group in groups for node in group)
    place = {node: k for k, node in enumerate(members)}
    cells = [np.array([place[node] for node in group]) for group in groups]
    x = np.random.default_rng(0).standard_normal((len(members), 8))
    a, left, count = np.ones((len(members), 1)), 1.0, 0
    begun = _spread(x, cells)
    for rows in rounds:
        if begun == 0 or left <= tolerance:
            break
        near = [(place[i], place[j], w) for i, row in rows.items() for j, w in row.items()]
        i, j, w = (np.array(column) for column in zip(*near, strict=True))
        new_x, new_a = np.zeros_like(x), np.zeros_like(a)
        np.add.at(new_x, i, w[:, None] * x[j])
        np.add.at(new_a, i, w[:, None] * a[j])
        x, a, count = new_x, new_a, count + 1
        left = _spread(x / a, cells) / begun
    return count, 0.0 if begun == 0 else left


def _spread(x: Floats, groups: Sequence[NDArray[np.int64]]) -> float:
    away = [x[group] - x[group].mean(axis=0) for group in groups]
    return float(np.sqrt(sum(float((part**2).sum()) for part in away)))


def _graphs(topology: Topology, num_nodes: int, seed: int, count: int) -> list[nx.Graph]:
    return [
        topology.graph(num_nodes, server_round=server_round, seed=seed)
        for server_round in range(1, count + 1)
    ]


def _dense_norm(rounds: Sequence[Rows]) -> float:
    """Return the spectral norm of the product of the ``W_t - 11^T/n``."""
    count = len(rounds[0])
    product = np.eye(count)  # with W_t alone a small sigma_2 would be inaccurate
    for rows in rounds:
        product = (as_matrix(rows, count) - 1.0 / count) @ product
    return float(np.linalg.norm(product, ord=2))


def _sparse_norm(rounds: Sequence[Rows]) -> float:
    """Return the same by Lanczos' method, to five digits, without a matrix of all pairs."""
    with needed("scipy"):
        from scipy.sparse.linalg import LinearOperator, eigsh

    count = len(rounds[0])
    factors = [_sparse(rows) for rows in rounds]

    def squared(x: Floats) -> Floats:  # P^T P x; every W_t is symmetric
        for weights in [*factors, *reversed(factors)]:
            x = weights @ (x - x.mean())
        centred: Floats = x - x.mean()
        return centred

    start = np.random.default_rng(0).standard_normal(count)
    if np.linalg.norm(squared(start)) < 1e-12:  # exact consensus; ARPACK has no answer
        return 0.0
    operator = LinearOperator((count, count), matvec=squared, dtype=np.float64)
    found = eigsh(operator, k=1, which="LM", v0=start, tol=1e-6, return_eigenvectors=False)
    return float(np.sqrt(max(0.0, found[0])))


def _second_eigenvalue(rounds: Sequence[Rows]) -> float:
    """Return the second largest |eigenvalue| of a product of column-stochastic matrices.

    On the numbers that sum to 0, which such a product keeps, its largest.
    """
    count = len(rounds[0])
    if count == 1:
        return 0.0
    if count <= DENSE:
        product = np.eye(count)
        for rows in rounds:
            product = as_matrix(rows, count) @ product
        product = product - product.mean(axis=1, keepdims=True)
        return float(np.abs(np.linalg.eigvals(product)).max())
    with needed("scipy"):
        from scipy.sparse.linalg import LinearOperator, eigs

    factors = [_sparse(rows) for rows in rounds]

    def mixed(x: Floats) -> Floats:
        x = x - x.mean()
        for weights in factors:
            x = weights @ x
        return x

    start = np.random.default_rng(0).standard_normal(count)
    if np.linalg.norm(mixed(start)) < 1e-12:
        return 0.0
    operator = LinearOperator((count, count), matvec=mixed, dtype=np.float64)
    found = eigs(operator, k=1, which="LM", v0=start, tol=1e-6, return_eigenvectors=False)
    return float(abs(found[0]))


def _sparse(rows: Rows) -> Any:
    from scipy.sparse import coo_array

    cells = [(i, j, weight) for i, row in rows.items() for j, weight in row.items()]
    i, j, values = zip(*cells, strict=True)
    return coo_array((values, (i, j)), shape=(len(rows), len(rows))).tocsr()
