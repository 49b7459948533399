"""Spectral gap of a topology per round, also of one that changes from round to round."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..base.libraries import needed
from .topology import OnePeerExponential, Topology
from .weights import metropolis_rows, metropolis_weights

DENSE = 500
"""Devices up to which the matrix of all pairs is worked with."""
Floats = NDArray[np.float64]


def effective_spectral_gap(
    topology: Topology, num_nodes: int, *, seed: int = 0, rounds: int | None = None
) -> float:
    """Return the spectral gap per round of a topology with Metropolis weights, in [0, 1].

    ``1 - sigma_2(W_P ... W_1)^(1/P)``, sigma_2 the spectral norm of the product less ``11^T / n``;
    ``rounds`` is P >= 1: by default the period of one-peer exponential, 16 for others that vary
    in time; for static ones P = 1 always, so it is :func:`spectral_gap`.
    """
    if not topology.time_varying:
        rounds = 1
    elif rounds is None:
        rounds = topology.period(num_nodes) if isinstance(topology, OnePeerExponential) else 16
    graphs = [
        topology.graph(num_nodes, server_round=server_round, seed=seed)
        for server_round in range(1, rounds + 1)
    ]
    sigma = _sparse_norm(graphs) if num_nodes > DENSE else _dense_norm(graphs)
    return max(0.0, 1.0 - float(sigma ** (1.0 / rounds)))


def _dense_norm(graphs: Sequence[nx.Graph]) -> float:
    """Return the spectral norm of the product of the ``W_t - 11^T/n``."""
    product = np.eye(len(graphs[0]))  # with W_t alone a small sigma_2 would be inaccurate
    for graph in graphs:
        product = (metropolis_weights(graph) - 1.0 / len(graph)) @ product
    return float(np.linalg.norm(product, ord=2))


def _sparse_norm(graphs: Sequence[nx.Graph]) -> float:
    """Return the same by Lanczos' method, to five digits, without a matrix of all pairs."""
    with needed("scipy"):
        from scipy.sparse import coo_array
        from scipy.sparse.linalg import LinearOperator, eigsh

    count = len(graphs[0])
    factors = []
    for graph in graphs:
        rows = metropolis_rows(graph, graph)
        cells = [(i, j, weight) for i, row in rows.items() for j, weight in row.items()]
        i, j, values = zip(*cells, strict=True)
        factors.append(coo_array((values, (i, j)), shape=(count, count)).tocsr())

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
