"""RelaySGD: on a tree, models are relayed so that everybody averages over everybody, once each."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import networkx as nx
import torch
from torch import Tensor

from ..graph.topology import Topology
from .rule import GossipRule, Mix, State, Steps


class RelaySGDRule(GossipRule):
    """Average over all devices of a tree, those further away as they were some rounds ago.

    A device i trains x_i to z_i. The message m_ib to its neighbour b is the sum of all models on
    i's side of the link, those of neighbours c as they came in with this round; n_ib counts them::

        m_ib = z_i + sum_(c != b) m_ci        n_ib = 1 + sum_(c != b) n_ci
        x_i  = (z_i + sum_j m_ji) / n_i       n_i  = 1 + sum_j n_ji

    A model from d links away is d - 1 rounds late, and weighs as much as any other. Each block goes
    over the subgraph of its owners, which is a forest: everybody averages over its own tree.

    What travels is the mean ``m / n``, and n: its numbers are those of a model, however large the
    tree. The average is over what has come: in round t over the devices within t links, and without
    those beyond a device that failed. The paper counts the initial model for each that is missing.

    The momentum is local and kept, as in ``dsgdm``.

    References
    ----------
    Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS 2021,
    algorithm 1.
    """

    name: ClassVar[str] = "relaysgd"
    paper: ClassVar[str] = "Vogels et al., NeurIPS 2021"
    references: ClassVar[tuple[str, ...]] = ("vogels2021relaysum",)
    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block", "number")
    addressed: ClassVar[bool] = True
    momentum: ClassVar[Literal["round", "kept", "own"]] = "kept"
    linear: ClassVar[bool] = True
    static: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def graph_problem(self, topology: Topology, num_nodes: int, seed: int) -> str:
        """Refuse a graph with a cycle: models would come back to where they are from."""
        if topology.time_varying:
            problem = "changes every round"
        elif not nx.is_forest(topology.graph(num_nodes, seed=seed)):
            problem = "has a cycle"
        else:
            return ""
        return (
            f"this graph {problem}, and models are relayed along a tree; allowed: line, star, or "
            "an edge-list without cycles"
        )

    def problem(self, vectors: Sequence[Tensor], num_nodes: int) -> str | None:
        """Refuse a number of devices that there cannot be on the other side of a link."""
        count, most = float(vectors[1]), num_nodes - 1
        if count.is_integer() and 1 <= count <= most:
            return None
        return f"counts {count:g} devices, which is no whole number from 1 to {most}"

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return ``1 / n_i`` and ``n_ji / n_i``; the graph's weights only tell who owns a block."""
        counts = torch.cat([torch.ones_like(weights[:, :1]), near[1][:, :, 0]], dim=1)
        return counts / counts.sum(dim=1, keepdim=True)

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Average over all that are relayed, and hold them until they are passed on."""
        return mix(0), {"means": mix.near[0], "counts": mix.near[1]}

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send to each neighbour the mean over all devices on this side of the link."""
        counts, sums = state["counts"], state["counts"] * state["means"]  # [rows, neighbours, …]
        others = 1 - torch.eye(counts.shape[1], device=z.device)  # all but the one it is sent to
        count = 1 + torch.einsum("bc,rcn->rbn", others, counts)
        total = z[:, None] + torch.einsum("bc,rcp->rbp", others, sums)
        return (total / count, count), {}
