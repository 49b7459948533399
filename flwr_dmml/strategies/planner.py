"""Round planner: participants, neighbours and training of every round. Independent of messages."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..energy.ledger import Floats
from ..graph.couriers import Hub
from ..graph.spectral import effective_spectral_gap
from ..graph.topology import Topology
from ..learning.learner import CourierChoice
from ..payload.plan import Averaged, Plan
from ..settings import Settings
from .couriers import Carrying, Couriers
from .energy.energy_constrained import Allocate, EnergyConstrained
from .energy.round_budget import RoundBudget
from .member import Member
from .mixing import FarLink, Neighbourhood, neighbourhoods

Brought = tuple[Mapping[str, Sequence[FarLink]], Mapping[str, Sequence[Hub]]]
"""By block: links of couriers over which copies have come, and means that have come."""


class RoundPlanner:
    """The plans of every round, from the topology and the energy that is left.

    Parameters
    ----------
    topology : Topology
        Who is whose neighbour.
    num_nodes : int
        Partition ids are 0 .. num_nodes - 1.
    energy : EnergyConstrained or None
        Decides on links, joules and iterations; None puts every device on mains power.
    communicates : bool
        False leaves everybody without neighbours.
    local_iterations, evaluate_every, seed : int
        See :class:`~flwr_dmml.strategies.PeerStrategy`.
    addressed : bool (default: False)
        Whether a device sends every neighbour blocks of its own.
    couriers : {"off", "forward", "average"} (default: "off")
        How devices carry blocks that they do not own between owners that are not linked.
    sealed : bool (default: False)
        Whether they cannot read what they carry.
    """

    def __init__(
        self,
        topology: Topology,
        num_nodes: int,
        energy: EnergyConstrained | None,
        *,
        communicates: bool,
        local_iterations: int,
        evaluate_every: int,
        seed: int,
        addressed: bool = False,
        couriers: CourierChoice = "off",
        sealed: bool = False,
    ) -> None:
        for name, value in (
            ("local_iterations", local_iterations),
            ("evaluate_every", evaluate_every),
        ):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        self.topology = topology
        self.num_nodes = num_nodes
        mains = Settings(local_iterations=local_iterations, seed=seed)
        self.energy = energy or EnergyConstrained(mains)
        self.communicates = communicates
        self.local_iterations = local_iterations
        self.evaluate_every = evaluate_every
        self.seed = seed
        self.addressed = addressed
        self._couriers: Couriers | None = None
        if communicates and couriers != "off":
            self._couriers = Couriers(sealed=sealed, average=couriers == "average")
        self._own_graph: Callable[[int], nx.Graph] | None = None
        self._fixed_graph: nx.Graph | None = None

    @property
    def couriers(self) -> bool:
        """Whether devices carry blocks that they do not own."""
        return self._couriers is not None

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""
        name = type(self.topology).__name__ + ", new every round" * self.topology.time_varying
        gap = effective_spectral_gap(self.topology, self.num_nodes, seed=self.seed)
        links = self.graph(1).number_of_edges()
        return [
            f"Topology: {name}, {self.num_nodes} nodes, {links} links",
            f"Spectral gap: {gap:.4f} (Metropolis-Hastings weights)",
            f"Local iterations: {self.local_iterations}",
            *self.energy.summary(),
        ]

    def begin(
        self,
        members: Mapping[int, Member],
        phases: Sequence[str],
        trained: Callable[[str, tuple[str, ...]], Collection[str]],
        graph: Callable[[int], nx.Graph] | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        """Take note of who is there, of every round's phase, and of what is trained in a phase.

        ``graph`` and ``allocate`` are those of a strategy that has its own.
        """
        self._own_graph = graph
        self._trained = trained
        self._members, self._phases, num_rounds = members, list(phases), len(phases)
        self._num_rounds = num_rounds
        work = {p: member.work for p, member in members.items()}
        reach = self.topology.graph(self.num_nodes, seed=self.seed)
        own = {p: member.equipment for p, member in members.items()}
        self.energy.begin(work, self.num_nodes, num_rounds, reach, phases, own, allocate)
        self._live_graph = nx.empty_graph(self.num_nodes)  # of the last planned round
        self._known: tuple[nx.Graph | None, tuple[int, ...], Brought] = (None, (), ({}, {}))
        self._found: dict[int, Neighbourhood] = {}
        self._told: tuple[nx.Graph | None, set[int], dict[int, tuple[int, ...]]] = None, set(), {}
        self._flat: Collection[int] = ()

    def graph(self, server_round: int) -> nx.Graph:
        """Return who is to send to whom in a round, on all nodes."""
        if not self.communicates:
            return nx.empty_graph(self.num_nodes)
        if self._own_graph is None:
            return self.of_topology(server_round)
        found, graph = self._own_graph(server_round), nx.empty_graph(self.num_nodes)
        if unknown := set(found) - set(graph):
            raise ValueError(
                f"round {server_round}: the strategy's graph has the node {min(unknown)!r}; "
                f"allowed: partition ids from 0 to {self.num_nodes - 1}"
            )
        graph.add_edges_from((i, j) for i, j in found.edges if i != j)
        return graph

    def of_topology(self, server_round: int) -> nx.Graph:
        """Return the graph of a round as the topology has it, on all nodes."""
        if self._fixed_graph is None:
            graph = self.topology.graph(self.num_nodes, server_round=server_round, seed=self.seed)
            if self.topology.time_varying:
                return graph
            self._fixed_graph = nx.freeze(graph)
        return self._fixed_graph

    @property
    def battery_j(self) -> Floats | None:
        """What the batteries hold, ``[node]``; None on mains power and before the first plan."""
        return self.energy.left_j

    def end_at(self, server_round: int) -> None:
        """Make a round the last one, before the closing message."""
        self._num_rounds = server_round

    def plans(
        self,
        server_round: int,
        invited: Collection[int],
        payload_bytes: Mapping[int, int],
        speeds: Mapping[int, Mapping[str, float]],
    ) -> tuple[dict[int, Plan], RoundBudget]:
        """Plan a round for the devices that can be asked, and book its energy.

        Parameters
        ----------
        server_round : int
            The round, from 1. Its plans begin with mixing what the round before has published.
        invited : collection of int
            Partition ids.
        payload_bytes : mapping of int to int
            Size of what each device published in the round before; only these can be mixed.
        speeds : mapping of int to mapping of str to float
            Training speed of each modality around each device, where known.
        """
        mixing_graph = self._live_graph
        graph = self.graph(server_round)
        bits = self._payload_bits(payload_bytes, graph)
        trains = self._trains(self._phases[server_round - 1])
        carrying = self._carrying(server_round, mixing_graph, graph, invited, payload_bytes, bits)
        for p, more in carrying.bytes_more.items():
            bits[p] += 8 * more
        budget = self.energy.plan(server_round, graph, invited, bits, speeds, trains)
        self._live_graph, self._flat = budget.graph, budget.flat
        brought = self._brought(mixing_graph, budget.updates, payload_bytes)
        around = self._around(mixing_graph, budget.updates, payload_bytes, brought)
        carrying = self._take(carrying, around)
        averages = self._averages(carrying)
        recipients = self._recipients(budget.graph, budget.updates)
        mixed = server_round - 1
        plans = {
            p: Plan(
                server_round=server_round,
                iterations=self.local_iterations,
                evaluate=mixed >= 1 and mixed % self.evaluate_every == 0,
                neighbours=around[p].neighbours,
                weights=around[p].weights,
                num_rounds=self._num_rounds,
                by_modality=updates,
                budget_j=float(budget.budget_j[p]),
                phase=self._phases[server_round - 1],
                recipients=recipients[p],
                far=around[p].far,
                carries=carrying.by.get(p, ()),
                averages=averages.get(p, ()),
                apart=carrying.apart.get(p, ()),
            )
            for p, updates in budget.updates.items()
        }
        return plans, budget

    def closing_plans(
        self, invited: Collection[int], payload_bytes: Mapping[int, int]
    ) -> dict[int, Plan]:
        """Return the plans that complete the last round: mix and evaluate, train nothing."""
        going = [p for p in invited if p not in self._flat]
        brought = self._brought(self._live_graph, going, payload_bytes)
        around = self._around(self._live_graph, going, payload_bytes, brought)
        return {
            p: Plan(
                server_round=self._num_rounds + 1,
                iterations=0,
                evaluate=True,
                neighbours=near.neighbours,
                weights=near.weights,
                num_rounds=self._num_rounds,
                budget_j=0.0,
                far=near.far,
            )
            for p, near in around.items()
        }

    def state(self) -> dict[str, Any]:
        """Return what the plan of a round depends on besides who is there, as JSON."""
        edges = sorted(sorted(edge) for edge in self._live_graph.edges)
        own = {"edges": edges, "flat": sorted(self._flat), "energy": self.energy.state()}
        return own | ({"couriers": self._couriers.state()} if self._couriers else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, after :meth:`begin`, from what :meth:`state` gave."""
        self._live_graph = nx.empty_graph(self.num_nodes)
        self._live_graph.add_edges_from(map(tuple, state["edges"]))
        self._flat = state["flat"]
        self.energy.load_state(state["energy"])
        if self._couriers:
            self._couriers.load_state(state["couriers"])

    def _trains(self, phase: str) -> NDArray[np.bool_]:
        """Return what is to be trained in a phase, ``[node, modality]``."""
        modalities = self.energy.costs.modalities
        trains = np.zeros((self.num_nodes, len(modalities)), np.bool_)
        for partition, member in self._members.items():
            trained = self._trained(phase, member.modalities)
            trains[partition] = [m in trained for m in modalities]
        return trains

    def _payload_bits(self, payload_bytes: Mapping[int, int], graph: nx.Graph) -> Floats:
        """Return what each device is to send, ``[node]``: as much as last time, or its blocks."""
        bits = np.zeros(self.num_nodes)
        for partition, member in self._members.items():
            copies = max(1, graph.degree(partition)) if self.addressed else 1
            bits[partition] = 8 * payload_bytes.get(partition, copies * member.payload_bytes)
        return bits

    def _recipients(self, graph: nx.Graph, live: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Return whom each device's payload is for."""
        graph_before, live_before, found = self._told
        if graph is not graph_before or live_before != set(live):
            found = {p: tuple(k for k in sorted(graph[p]) if k in live) for p in live}
            self._told = graph, set(live), found
        return found

    def _brought(
        self, graph: nx.Graph, going: Collection[int], published: Collection[int]
    ) -> Brought:
        """Return what couriers have brought, over a round's graph."""
        if self._couriers is None:
            return {}, {}
        there = {p: self._members[p].blocks for p in sorted(going) if p in published}
        return self._couriers.brought(graph, there), self._couriers.means(graph, there)

    def _carrying(
        self,
        server_round: int,
        received: nx.Graph,
        graph: nx.Graph,
        invited: Collection[int],
        published: Collection[int],
        bits: Floats,
    ) -> Carrying:
        """Return what couriers are to carry in a round, of what has just been received."""
        if self._couriers is None:
            return Carrying()
        prospect = self.energy.prospect(server_round, graph, invited, bits)
        live = {p: self._members[p].block_bytes for p in sorted(invited)}
        return self._couriers.plan(received, published, prospect, live)

    def _take(self, carrying: Carrying, around: Mapping[int, Neighbourhood]) -> Carrying:
        """Let those who take part carry what reaches them, and return what that is."""
        by = {
            r: tuple(there for there in own if there.via in around[r].neighbours)
            for r, own in carrying.by.items()
            if r in around
        }
        hubs: list[tuple[tuple[str, ...], Hub]] = []
        for names, hub in carrying.hubs:
            near = around[hub.courier].neighbours if hub.courier in around else ()
            owners = tuple(j for j in hub.owners if j in near)
            if len(owners) > 1:
                hubs.append((names, replace(hub, owners=owners)))
        carrying = replace(carrying, by=by, hubs=hubs)
        if self._couriers:
            self._couriers.begin(carrying)
        return carrying

    def _averages(self, carrying: Carrying) -> dict[int, tuple[Averaged, ...]]:
        """Return of what each hub is to publish the mean."""
        found: dict[int, list[Averaged]] = {}
        for names, hub in carrying.hubs:
            lengths = self._members[hub.owners[0]].blocks
            own = found.setdefault(hub.courier, [])
            own += [Averaged(name, hub.owners, lengths[name]) for name in names]
        return {r: tuple(own) for r, own in found.items()}

    def _around(
        self,
        graph: nx.Graph,
        going: Collection[int],
        published: Collection[int],
        brought: Brought,
    ) -> dict[int, Neighbourhood]:
        """Return who mixes with whom: those that published and go on."""
        owners = tuple(p for p in sorted(going) if p in published)
        before, of, by = self._known
        if graph is not before or owners != of or brought != by:  # most rounds are like the last
            blocks = {p: self._members[p].blocks for p in owners}
            same = before is not None and set(graph.edges) == set(before.edges)
            if not same or owners != of or brought != by:
                self._found = neighbourhoods(graph, blocks, *brought)
            self._known = graph, owners, brought
        return {p: self._found.get(p, Neighbourhood()) for p in sorted(going)}
