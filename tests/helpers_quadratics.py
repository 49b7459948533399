"""Sixteen devices that minimise different quadratics by a gossip rule, on rows, in float64.

``(x - b_k)^T A_k (x - b_k) / 2`` in ten dimensions, eigenvalues of A_k from 0.2 to 1.8.
"""

from collections.abc import Callable
from math import inf

import networkx as nx
import torch
from torch import Tensor

from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.gossip.trial import Trial

NODES, LENGTH = 16, 10
RULES = find_gossip()


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Return A ``[node, length, length]``, b ``[node, length]`` and the optimum ``[length]``."""
    g = torch.Generator().manual_seed(0)
    some = torch.randn(NODES, LENGTH, LENGTH, generator=g, dtype=torch.float64)
    q, _ = torch.linalg.qr(some)
    eigenvalues = torch.linspace(0.2, 1.8, LENGTH, dtype=torch.float64)
    a = q @ torch.diag(eigenvalues) @ q.mT
    b = 2 * torch.randn(NODES, LENGTH, generator=g, dtype=torch.float64)
    return a, b, torch.linalg.solve(a.sum(dim=0), (a @ b[:, :, None]).sum(dim=0))[:, 0]


def make(name: str, **options: float) -> GossipRule:
    """Return a rule by its name."""
    return RULES[name](RULES[name].options_type(**options))


def error(
    rule: GossipRule,
    weights: Tensor | Callable[[int], Tensor],
    *,
    rounds: int,
    tau: Tensor | int = 1,
    lr: float = 0.02,
    momentum: float = 0.0,
    top: float = 1.0,
    spread: bool = True,
) -> float:
    """Return how far a rule ends from the optimum, root mean square of the nodes.

    Parameters
    ----------
    rule : GossipRule
        What they do.
    weights : Tensor or callable
        ``[node, node]`` of all rounds, or of each.
    rounds, tau, lr, momentum
        How many rounds, and the local steps of each node in one.
    top : float
        The share of the numbers of a change that is sent, the largest.
    spread : bool
        Whether nodes count; otherwise the distance of their mean.
    """
    a, b, best = problem()

    def code(change: Tensor) -> Tensor:
        count = round(top * LENGTH)
        least = change.abs().topk(count, dim=1).values[:, -1:]
        return torch.where(change.abs() >= least, change, 0.0)

    trial = Trial(
        rule,
        torch.zeros_like(b),
        lambda x: (a @ (x - b)[:, :, None])[:, :, 0],
        lr=lr,
        momentum=momentum,
        normalises=True,
        code=code,
        kept=top,
    )
    taus = torch.as_tensor(tau).expand(NODES)
    for t in range(rounds):
        w = weights if isinstance(weights, Tensor) else weights(t)
        trial.round(w, taus)
        if not float(trial.x.abs().max()) < 1e9:
            return inf
    trial.mix(weights if isinstance(weights, Tensor) else weights(rounds))
    away = trial.x - best
    if not spread:
        return float(away.mean(dim=0).norm())
    return float(away.square().sum(dim=1).mean().sqrt())


def er() -> nx.Graph:
    """Return a connected random graph."""
    graph = nx.fast_gnp_random_graph(NODES, 0.3, seed=1)
    assert nx.is_connected(graph)
    return graph


def digraph() -> nx.DiGraph:
    """Return a ring one way with more links: some are heard by five, others by one."""
    graph = nx.gnp_random_graph(NODES, 0.12, seed=3, directed=True)
    graph.add_edges_from((i, (i + 1) % NODES) for i in range(NODES))
    return graph
