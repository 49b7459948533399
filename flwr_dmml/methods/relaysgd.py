"""RelaySGD: on a tree, models are relayed so that everybody averages over everybody, once each."""

from collections.abc import Collection
from typing import ClassVar, NamedTuple

import networkx as nx
import torch
from torch import Tensor

from ..graph.topology import Topology
from ..learning.learner import Learner
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..payload.blocks import addressed, flatten, load_flat, mix, vector_problem
from ..payload.plan import Inbox, Payload, Plan


class RelayOptions(Options):
    """None of its own, but what it needs of the others."""

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse to send a part of a mean: what is left out would not be of all its devices."""
        problems = super().problems(settings)
        if settings.exchange.top_k < 1:
            problems.append(
                f"exchange.top-k = {settings.exchange.top_k:g}: relaysgd averages over all devices "
                "beyond a link and needs all of what is relayed; allowed: 1"
            )
        return problems

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


class Relayed(NamedTuple):
    """A block as a neighbour relays it: of how many devices, and the mean of their copies."""

    devices: int
    mean: Tensor  # [length]


class RelaySGD(Learner):
    """Average over all devices of a tree, those further away as they were some rounds ago.

    A device i trains x_i to y_i. The message m_ib to its neighbour b is the sum of all models on
    i's side of the link, those of neighbours c as they came in with this round; n_ib counts them::

        m_ib = y_i + sum_(c != b) m_ci        n_ib = 1 + sum_(c != b) n_ci
        x_i  = (y_i + sum_j m_ji) / n_i       n_i  = 1 + sum_j n_ji

    A model from d links away is d - 1 rounds late, and weighs as much as any other. Each block goes
    over the subgraph of its owners, which is a forest: everybody averages over its own tree.

    What travels is the mean ``m / n`` with n appended, ``[length + 1]``: its numbers are those of a
    model, however large the tree. The average is over what has come: in round t over the devices
    within t links, and without those beyond a device that failed. The paper counts the initial
    model for each that is missing.

    The momentum is local and kept, as in ``dsgdm``.

    References
    ----------
    Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS 2021,
    algorithm 1.
    """

    name: ClassVar[str] = "relaysgd"
    paper: ClassVar[str] = "Vogels et al., NeurIPS 2021"
    options_type: ClassVar[type[Options]] = RelayOptions
    keeps_optimizer: ClassVar[bool] = True
    addressed: ClassVar[bool] = True

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Average each block with what neighbours relay of it, in place.

        Returns
        -------
        tuple of float and list of str
            ``sum_j n_ji / n_i ||y_i - m_ji / n_ji||^2`` over all blocks (0 at consensus; this
            project's measure), and what was wrong with neighbours' messages.
        """
        disagreement, rejected = 0.0, list[str]()
        self._received: dict[str, dict[int, Relayed]] = {}  # block -> neighbour -> message
        me, most, blocks = self.partition.partition_id, self.settings.num_nodes - 1, self.blocks()
        for name, (_, *others) in plan.weights.items():
            own, received = flatten(blocks[name]), dict[int, Relayed]()
            for neighbour, weight in zip(plan.neighbours, others, strict=True):
                if weight == 0.0:  # it does not own the block
                    continue
                message = inbox[neighbour].get(addressed(name, me))
                problem = _problem(message, len(own), most)
                if problem or message is None:
                    rejected.append(f"{neighbour}: block {name} {problem}")
                    continue
                received[neighbour] = Relayed(int(message[-1]), message[:-1])
            count, mean = average(own, received.values())
            load_flat(blocks[name], mean)
            for n, theirs in received.values():
                away = own.double() - theirs.double()
                disagreement += n / count * float(torch.sum(away**2))
            self._received[name] = received
        return disagreement, rejected

    def outgoing(self, plan: Plan, inbox: Inbox, blocks: Payload) -> Payload:
        """Address to each recipient the mean over all devices on this side of the link."""
        if not plan.recipients:
            return blocks  # nobody gets it, but a payload that lacks a block counts as a failure
        payload: Payload = {}
        for name, trained in blocks.items():
            received = self._received.get(name, {})
            for b in plan.recipients:
                count, mean = average(trained, [m for c, m in received.items() if c != b])
                payload[addressed(name, b)] = torch.cat([mean, mean.new_tensor([count])])
        return payload


def average(own: Tensor, received: Collection[Relayed]) -> Relayed:
    """Return the mean ``[length]`` over one's own block and all those relayed, and their number."""
    count = 1 + sum(n for n, _ in received)
    return Relayed(count, mix(own, 1 / count, [(n / count, mean) for n, mean in received]))


def _problem(message: Tensor | None, length: int, most: int) -> str | None:
    """Say what is wrong with a message ``[length + 1]`` of up to ``most`` devices, if anything."""
    if message is None:
        return "is missing"
    if problem := vector_problem(message, length + 1):
        return problem
    count = float(message[-1])
    if count.is_integer() and 1 <= count <= most:
        return None
    return f"counts {count:g} devices, which is no whole number from 1 to {most}"
