"""Spectral gap of a topology per round, also of one that changes from round to round."""

import numpy as np

from .topology import OnePeerExponential, Topology
from .weights import metropolis_weights


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
    product = np.eye(num_nodes)  # of the W_t - 11^T/n, which keeps a small sigma_2 accurate
    for server_round in range(1, rounds + 1):
        weights = metropolis_weights(
            topology.graph(num_nodes, server_round=server_round, seed=seed)
        )
        product = (weights - 1.0 / num_nodes) @ product
    return max(0.0, 1.0 - float(np.linalg.norm(product, ord=2) ** (1.0 / rounds)))
