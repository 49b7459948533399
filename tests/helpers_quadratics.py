"""Sixteen devices with different quadratics, stepped by a gossip rule at once, in float64.

``f_i(x) = (x - b_i)^T A_i (x - b_i) / 2`` in ten dimensions, eigenvalues from 0.2 to 1.8: the
optimum of the sum is far from that of each device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_dmml.base.options import Group
from flwr_dmml.gossip.aggregation.mean import Mean
from flwr_dmml.gossip.rule import GossipRule, Mix, Steps

NODES, DIM = 16, 10
Weights = Callable[[int], NDArray[np.float64]]
"""The matrix ``[receiver, sender]`` of a round, from 0."""


@cache
def quadratics() -> tuple[Tensor, Tensor, Tensor]:
    """Return A ``[node, dim, dim]``, b ``[node, dim]`` and the optimum ``[dim]``."""
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] for _ in range(NODES)]
    a = np.stack([q @ np.diag(np.linspace(0.2, 1.8, DIM)) @ q.T for q in turns])
    b = rng.normal(size=(NODES, DIM)) * 2 + rng.normal(size=DIM)
    best = np.linalg.solve(a.sum(0), np.einsum("nij,nj->i", a, b))
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(best)


@dataclass(frozen=True)
class Distance:
    """How far from the optimum: of the mean model, and of the nodes, root mean square."""

    mean: float
    rms: float


def distance(
    rule: GossipRule,
    weights: Weights,
    *,
    rounds: int,
    lr: float = 0.02,
    taus: Sequence[int] | int = 1,
    scaled: bool = True,
    code: Callable[[int, Tensor], Tensor] | None = None,
    kept: float = 1.0,
) -> Distance:
    """Return where a rule ends.

    Parameters
    ----------
    rule : GossipRule
        On rows, one a node.
    weights : callable
        What a round mixes with, whatever has been lost.
    rounds : int
        How many.
    lr : float
        Of a local step.
    taus : sequence of int, or int
        Local steps of each node.
    scaled : bool
        Whether progress is scaled by mean(tau) / tau, as ``gossip-normalise`` does.
    code : callable, optional
        What arrives of the i-th vector that is sent: compression.
    kept : float
        The share of numbers that it keeps.
    """
    a, b, best = quadratics()
    x, mean = torch.zeros(NODES, DIM, dtype=torch.float64), Mean(Group())
    tau = torch.as_tensor(taus).expand(NODES).double()[:, None]
    state, own = rule.start(x), tuple[Tensor, ...]()
    for t in range(rounds):
        if not own:
            sizes = [DIM if kind == "block" else 1 for kind in rule.sends]
            own = tuple(x if not i else x.new_zeros(NODES, n) for i, n in enumerate(sizes))
            w = np.eye(NODES)
        else:
            w = weights(t - 1)
        row = torch.from_numpy(np.concatenate([np.diag(w)[:, None], w - np.diag(np.diag(w))], 1))
        near = tuple(vector.expand(NODES, *vector.shape) for vector in own)
        mix = Mix(own, near, rule.weigh(row, near), mean, trained=x, kept=kept)
        x, state = rule.mixed(mix, state)
        begun = z = x
        for step in range(int(tau.max())):
            g = torch.einsum("nij,nj->ni", a, z - b)
            goes = (step < tau).double()
            z = z - goes * lr * rule.direction(g, state, Steps(lr, 0.0, torch.zeros(1, 1)))
        if scaled:
            z = begun + (z - begun) * tau.mean() / tau
        own, state = rule.publish(begun, z, state, Steps(lr, 0.0, tau))
        own = tuple(code(i, vector) if code else vector for i, vector in enumerate(own))
        x = z
        if not bool(torch.isfinite(x).all()) or float(x.abs().max()) > 1e9:
            return Distance(inf, inf)
    away = x - best
    return Distance(float(away.mean(0).norm()), float(away.norm(dim=1).square().mean().sqrt()))
