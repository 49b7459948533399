"""Round planner: participants, neighbours and training of every round. Independent of messages."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..energy.costs import split
from ..energy.ledger import Floats
from ..graph.couriers import Hub
from ..graph.spectral import graph_lines
from ..graph.topology import Topology
from ..graph.weights import Rows, add_links, mixing_rows
from ..learning.hooks import CourierChoice
from ..payload.blocks import addressed
from ..payload.plan import Averaged, Plan
from ..settings import Settings
from .couriers import Carrying, Couriers
from .energy.energy_constrained import Allocate, EnergyConstrained
from .energy.round_budget import RoundBudget, Updates, among
from .gaps import Gaps
from .losses import Losses
from .member import Member
from .merging import FinalMerge
from .mixing import FarLink, Hubs, Neighbourhood, neighbourhoods, over_owners

Links = tuple[nx.Graph, Mapping[str, nx.Graph]]
"""Who is to send to whom, and the graphs of blocks that have one of their own."""
_NONE: Mapping[str, nx.Graph] = {}
_STAYS_OUT = "its battery was flat, and in this round it would have nobody to send to"
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
    pushes : bool (default: False)
        Whether senders divide what they send, see :attr:`.GossipRule.pushes`.
    losses : Losses
        Which messages are lost; by default none.
    coded : bool (default: False)
        Whether devices send what has changed, so that one that misses a message lacks something.
    merge : FinalMerge, optional
        What follows on the last round.
    resets : bool (default: False)
        Whether the gossip rule starts anew when a block's owners change.
    shares : bool (default: False)
        Whether a device is told how its neighbours are to weigh what it sends
        (:attr:`.Plan.shares`), as it sends each another copy.
    sums : bool (default: False)
        Whether that is a part of a sum, which hides it: then also whose else's.
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
        pushes: bool = False,
        losses: Losses | None = None,
        coded: bool = False,
        merge: FinalMerge | None = None,
        resets: bool = False,
        shares: bool = False,
        sums: bool = False,
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
        self.addressed, self._pushes, self._resets = addressed or shares, pushes, resets
        self._shares, self._sums = shares, sums
        self.losses = losses or Losses(0.0, seed)
        self._gaps = Gaps() if coded and communicates else None
        self._merge = merge if communicates else None
        self.merging = 0
        """Rounds of the final merge, which follow on the last one that trains."""
        self.hand_over = False
        """Whether devices hand over their models."""
        self._couriers: Couriers | None = None
        if communicates and couriers != "off":
            self._couriers = Couriers(sealed=sealed, average=couriers == "average")
        self._own_graph: Callable[[int], nx.Graph] | None = None
        self._fixed_graph: nx.Graph | None = None
        self._members: Mapping[int, Member] = {}

    @property
    def couriers(self) -> bool:
        """Whether devices carry blocks that they do not own."""
        return self._couriers is not None

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""
        return [
            *graph_lines(self.topology, self.num_nodes, seed=self.seed),
            *self.losses.summary(),
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
        *,
        alike: bool = True,
    ) -> None:
        """Take note of who is there, of every round's phase, and of what is trained in a phase.

        ``graph`` and ``allocate`` are those of a strategy that has its own. ``alike`` says whether
        all owners of a block start from the same numbers.
        """
        if self._gaps:
            self._gaps = Gaps(alike=alike)
        self._own_graph = graph
        self._trained = trained
        self._members, self._phases, self._num_rounds = members, list(phases), len(phases)
        self._last_drawn: tuple[tuple[int, tuple[int, ...]], Links] = (0, ()), (nx.Graph(), _NONE)
        work = {p: member.work for p, member in members.items()}
        reach = self._draw(1, members)[0]
        own = {p: member.equipment for p, member in members.items()}
        self.merging, self._left = self._count_merging()
        phases = [*phases, *[phases[-1]] * self.merging]
        self.energy.begin(
            work,
            self.num_nodes,
            len(phases),
            reach,
            phases,
            own,
            allocate,
            merging=self.merging,
            merge_bits=8.0 * self._whole_bytes() if self.merging else None,
            samples={p: member.num_train for p, member in members.items()},
        )
        self._live_graph = self._no_links()  # of the last planned round
        self._by_block = _NONE
        self._drawn_for: tuple[int, list[int]] = 0, []  # round, and who is there
        self._known: tuple[Any, ...] = None, _NONE, (), ({}, {})
        self._found: dict[int, Neighbourhood] = {}
        self._told: tuple[nx.Graph | None, set[int], dict[int, tuple[int, ...]]] = None, set(), {}
        self._flat: Collection[int] = ()
        self._there: set[int] = set()  # who takes part, or only rests; in the last planned round
        self._asked: set[int] = set()  # who got a plan of it
        self._owed: dict[int, set[str]] = {}  # blocks to start anew with, of those that rest

    @property
    def last_round(self) -> int:
        """The last round, with those of the final merge."""
        return self._num_rounds + self.merging

    def merge_lines(self) -> list[str]:
        """Return what the final merge does, in a line for the log."""
        if not self.merging:
            return []
        text = "rounds of gossip reduce the spread of the models to"
        left = f"{self._left:.2g} of its value, if nothing is lost"
        return [f"Final merge: {self.merging} {text} {left}"]

    def _count_merging(self) -> tuple[int, float]:
        """Return the rounds of the final merge, and the spread that they leave."""
        if self._merge is None:
            return 0, 1.0

        def graph(number: int, block: str) -> nx.Graph:
            links, by_block = self._draw(self._num_rounds + number, self._members)
            return by_block.get(block, links)

        return self._merge.rounds(
            graph,
            {p: member.blocks for p, member in self._members.items()},
            self._weigh,
            lasting=not self.topology.time_varying,
            couriers=self.couriers,
        )

    def _whole_bytes(self) -> Floats:
        """Return the bytes of the blocks of each device as they are, ``[node]``."""
        size = np.zeros(self.num_nodes)
        for p, member in self._members.items():
            size[p] = 4 * sum(member.blocks.values())
        return size

    def graph(self, server_round: int) -> nx.Graph:
        """Return who is to send to whom in a round, on all nodes, if all are there."""
        return self.links(server_round)[0]

    def links(self, server_round: int) -> Links:
        """Return the same, and the graphs of blocks that have one of their own."""
        return self._links(server_round, self._members)

    def _links(self, server_round: int, there: Collection[int]) -> Links:
        """Return who is to send to whom in a round, of those who are there, on all nodes."""
        if not self.communicates:
            return nx.empty_graph(self.num_nodes), _NONE
        if self._own_graph is None:
            return self._draw(server_round, there)
        found, graph = self._own_graph(server_round), nx.empty_graph(self.num_nodes)
        if unknown := set(found) - set(graph):
            raise ValueError(
                f"round {server_round}: the strategy's graph has the node {min(unknown)!r}; "
                f"allowed: partition ids from 0 to {self.num_nodes - 1}"
            )
        graph.add_edges_from((i, j) for i, j in found.edges if i != j)
        return graph, _NONE

    def of_topology(self, server_round: int) -> nx.Graph:
        """Return the graph of a round as the topology has it, on all nodes."""
        if self._fixed_graph is None:
            graph = self.topology.graph(self.num_nodes, server_round=server_round, seed=self.seed)
            if self.topology.time_varying:
                return graph
            self._fixed_graph = nx.freeze(graph)
        return self._fixed_graph

    def _draw(self, server_round: int, there: Collection[int]) -> Links:
        """Return the topology's graph of a round, over each block's owners if it is one of these.

        Before the devices are known they own everything.
        """
        if not (self.topology.by_owners and self._members):
            return self.of_topology(server_round), _NONE
        key = server_round if self.topology.time_varying else 1, tuple(sorted(there))
        if key == self._last_drawn[0]:
            return self._last_drawn[1]
        blocks = {p: self._members[p].blocks for p in key[1]}
        graphs = over_owners(self.topology, blocks, server_round=server_round, seed=self.seed)
        union = self._no_links()
        for graph in graphs.values():
            union.add_edges_from(graph.edges)
        found = union, graphs
        self._last_drawn = key, found
        return found

    def _no_links(self) -> nx.Graph:
        return nx.empty_graph(self.num_nodes, nx.DiGraph if self.topology.directed else nx.Graph)

    @property
    def battery_j(self) -> Floats | None:
        """What the batteries hold, ``[node]``; None on mains power and before the first plan."""
        return self.energy.left_j

    def end_at(self, server_round: int) -> None:
        """Make a round the last one that trains."""
        self._num_rounds = server_round
        self.energy.end_at(self.last_round)

    def plans(
        self,
        server_round: int,
        invited: Collection[int],
        payload_bytes: Mapping[int, int],
        speeds: Mapping[int, Mapping[str, float]],
        *,
        resting: Collection[int] = (),
        parked: Collection[int] = (),
        unheard: Collection[int] = (),
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
        resting : collection of int
            Devices that could be asked, and take no part in this round.
        parked : collection of int
            Devices that take part and train nothing.
        unheard : collection of int
            Those that have not got something of what they were to mix in the last round.
        """
        mixing_graph, mixing_by_block = self._live_graph, self._by_block
        (graph, self._by_block), bits, flat = self._drawn(server_round, invited, payload_bytes)
        able = sorted(set(invited) - flat.keys())
        self._drawn_for = server_round, able
        merges = server_round > self._num_rounds
        phase = self._phases[min(server_round, self._num_rounds) - 1]
        trains = self.trains(phase) & (not merges)
        trains[sorted(parked)] = False
        carrying = self._carrying(server_round, mixing_graph, graph, able, payload_bytes, bits)
        for p, more in carrying.bytes_more.items():
            bits[p] += 8 * more
        budget = self.energy.plan(server_round, graph, able, bits, speeds, trains)
        budget = replace(budget, flat=flat | budget.flat)
        self._live_graph, self._flat = budget.graph, budget.flat
        brought = self._brought(mixing_graph, budget.updates, payload_bytes)
        around = self._around(mixing_graph, mixing_by_block, budget.updates, payload_bytes, brought)
        carrying = _reached(carrying, around)
        averages = self._averages(carrying)
        recipients = self._recipients(budget.graph, budget.updates)
        shares = self._shares_of(budget.graph, budget.updates)
        partners = self._partners_of(shares, recipients)
        steps = self.mean_steps(budget.updates) if self.communicates else {}
        anew = self._anew(budget.updates, resting, payload_bytes, unheard)
        self._asked = set(budget.updates)
        mixed = server_round - 1
        plans = {
            p: Plan(
                server_round=server_round,
                iterations=self.local_iterations,
                evaluate=self._evaluates(mixed),
                neighbours=around[p].neighbours,
                weights=around[p].weights,
                num_rounds=self._num_rounds,
                by_modality=updates,
                budget_j=float(budget.budget_j[p]),
                phase=phase,
                merges=merges,
                merged=mixed > self._num_rounds,
                hand_over=self.hand_over,
                recipients=recipients[p],
                shares=shares.get(p, {}),
                partners=partners.get(p, {}),
                keys=self._keys_of(p, partners.get(p, {})),
                far=around[p].far,
                carries=carrying.by.get(p, ()),
                averages=averages.get(p, ()),
                apart=carrying.apart.get(p, ()),
                steps=steps,
                anew=anew.get(p, ()),
            )
            for p, updates in budget.updates.items()
        }
        plans = self.losses.left(plans, self.losses.lost(plans))
        if self._gaps:
            failed = [p for p in plans if p not in payload_bytes]
            plans = self._gaps.plan(plans, {*failed, *unheard})
        return self._carry(carrying, plans), budget

    def _drawn(
        self, server_round: int, invited: Collection[int], payload_bytes: Mapping[int, int]
    ) -> tuple[Links, Floats, dict[int, str]]:
        """Return a round's links, what is to be sent, and who drops out before the links are drawn.

        Of graphs over each block's owners, those whose batteries cannot pay for sending: they would
        leave a gap. Who has dropped out stays out until it can pay for a link, not just has none.
        """
        flat: dict[int, str] = {}
        while True:
            able = set(invited) - flat.keys()
            graph, by_block = self._links(server_round, able)
            bits = self.payload_bits(payload_bytes, graph)
            if server_round == self._num_rounds + 1:
                bits = 8 * self._whole_bytes()
            poor = self.energy.too_poor(server_round, graph, able, bits) if by_block else {}
            if by_block and not flat:
                poor |= {p: _STAYS_OUT for p in able.intersection(self._flat) if not graph[p]}
            if not poor:
                return (graph, by_block), bits, flat
            flat |= poor

    def closing_plans(
        self, invited: Collection[int], payload_bytes: Mapping[int, int]
    ) -> dict[int, Plan]:
        """Return the plans that complete the last round: mix and evaluate, train nothing."""
        going = [p for p in invited if p not in self._flat]
        brought = self._brought(self._live_graph, going, payload_bytes)
        around = self._around(self._live_graph, self._by_block, going, payload_bytes, brought)
        plans = {
            p: Plan(
                server_round=self.last_round + 1,
                merged=self.merging > 0,
                iterations=0,
                evaluate=True,
                neighbours=near.neighbours,
                weights=near.weights,
                num_rounds=self._num_rounds,
                budget_j=0.0,
                far=near.far,
                hand_over=self.hand_over,
            )
            for p, near in around.items()
        }
        return self.losses.left(plans, self.losses.lost(plans))

    def state(self) -> dict[str, Any]:
        """Return what the plan of a round depends on besides who is there, as JSON."""
        edges = sorted(map(self._written, self._live_graph.edges(data="weight")))
        own: dict[str, Any] = {"edges": edges, "drawn": self._drawn_for}
        own |= {"flat": sorted(self._flat), "energy": self.energy.state()}
        own |= {"there": sorted(self._there), "asked": sorted(self._asked)}
        own["owed"] = {str(p): sorted(blocks) for p, blocks in self._owed.items()}
        if self._gaps:
            own["gaps"] = self._gaps.state()
        return own | ({"couriers": self._couriers.state()} if self._couriers else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, after :meth:`begin`, from what :meth:`state` gave."""
        self._live_graph = self._no_links()
        add_links(self._live_graph, state["edges"])
        server_round, there = self._drawn_for = state["drawn"]
        self._by_block = self._draw(server_round, there)[1]
        self._flat = state["flat"]
        self._there, self._asked = set(state["there"]), set(state["asked"])
        self._owed = {int(p): set(blocks) for p, blocks in state["owed"].items()}
        self.energy.load_state(state["energy"])
        if self._gaps:
            self._gaps.load_state(state["gaps"])
        if self._couriers:
            self._couriers.load_state(state["couriers"])

    def _evaluates(self, mixed: int) -> bool:
        """Return whether a round is evaluated once it is mixed; the last one always is."""
        every = mixed % self.evaluate_every == 0 or mixed == self._num_rounds
        return 1 <= mixed <= self._num_rounds and every

    def _written(self, edge: tuple[int, int, float | None]) -> list[float]:
        i, j, weight = edge
        ends = [i, j] if self.topology.directed else sorted((i, j))
        return [*ends, *([] if weight is None else [weight])]

    def trains(self, phase: str) -> NDArray[np.bool_]:
        """Return what is to be trained in a phase, ``[node, modality]``."""
        modalities = self.energy.costs.modalities
        trains = np.zeros((self.num_nodes, len(modalities)), np.bool_)
        for partition, member in self._members.items():
            trained = self._trained(phase, member.modalities)
            trains[partition] = [m in trained for m in modalities]
        return trains

    def payload_bits(self, payload_bytes: Mapping[int, int], graph: nx.Graph) -> Floats:
        """Return what each device is to send, ``[node]``: as much as last time, or its blocks."""
        bits = np.zeros(self.num_nodes)
        for partition, member in self._members.items():
            copies = max(1, len(graph[partition])) if self.addressed else 1
            bits[partition] = 8 * payload_bytes.get(partition, copies * member.payload_bytes)
        return bits

    def mean_steps(
        self, updates: Mapping[int, Updates], counts: Mapping[int, float] | None = None
    ) -> dict[str, float]:
        """Return :attr:`.Plan.steps` of a round with these updates.

        ``counts`` says how many such rounds each device does in the time of one; by default 1.
        """
        costs = self.energy.costs
        tau = np.zeros((len(updates), len(costs.modalities)), np.int64)
        for row, own in zip(tau, updates.values(), strict=True):
            row[:] = [own.get(m, 0) for m in costs.modalities]
        owned = costs.owned[np.array(list(updates), np.int64)]
        joint, solo = split(tau, owned, self.energy.settings.stagger_share)
        every = np.column_stack([joint + solo.sum(axis=1), tau])  # [node, 1 + modality]
        trains = np.maximum(1, np.count_nonzero(every, axis=0))
        if counts is not None:
            every = every * np.array([[counts[p]] for p in updates])
        means = every.sum(axis=0) / trains
        return {m: float(n) for m, n in zip(("", *costs.modalities), means, strict=True) if n}

    def _anew(
        self,
        asked: Collection[int],
        resting: Collection[int],
        published: Collection[int],
        unheard: Collection[int],
    ) -> dict[int, tuple[str, ...]]:
        """Return by device the blocks whose owners have changed since it was last asked.

        One that has failed in between has not mixed what the others have, and neither has one to
        which something did not come.
        """
        if not self._resets:
            return {}
        failed, there = self._asked.difference(published), {*asked, *resting}
        before, self._there = self._there, there - failed
        changed = {*(before ^ self._there), *unheard} if before else set()
        blocks = {block for p in changed for block in self._members[p].blocks}
        for p in there if blocks else ():
            self._owed.setdefault(p, set()).update(blocks)
        owed = {p: self._owed.pop(p, set()) for p in asked}
        return {p: tuple(b for b in self._members[p].blocks if b in owed[p]) for p in asked}

    def _recipients(self, graph: nx.Graph, live: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Return whom each device's payload is for."""
        graph_before, live_before, found = self._told
        if graph is not graph_before or live_before != set(live):
            found = {p: tuple(k for k in sorted(graph[p]) if k in live) for p in live}
            self._told = graph, set(live), found
        return found

    def _shares_of(
        self, graph: nx.Graph, live: Collection[int]
    ) -> dict[int, Mapping[str, tuple[float, ...]]]:
        """Return :attr:`.Plan.shares` by device, if all who are there mix what all send."""
        if not self._shares:
            return {}
        blocks = {p: self._members[p].blocks for p in sorted(live)}
        found = neighbourhoods(graph, blocks, over=self._by_block, weigh=self._weigh)
        return {p: near.weights for p, near in found.items()}

    def _partners_of(
        self,
        shares: Mapping[int, Mapping[str, tuple[float, ...]]],
        recipients: Mapping[int, tuple[int, ...]],
    ) -> dict[int, dict[str, tuple[int, ...]]]:
        """Return :attr:`.Plan.partners` by device: nobody is to send the only part of a sum."""
        found: dict[int, dict[str, tuple[int, ...]]] = {}
        for receiver, rows in shares.items() if self._sums else ():
            for block, (_, *others) in rows.items():
                pairs = zip(recipients[receiver], others, strict=True)
                senders = tuple(j for j, weight in pairs if weight > 0)
                for j in senders if len(senders) > 1 else ():
                    found.setdefault(j, {})[addressed(block, receiver)] = senders
        return found

    def _keys_of(self, p: int, partners: Mapping[str, tuple[int, ...]]) -> dict[int, bytes]:
        others = sorted({j for own in partners.values() for j in own if j != p})
        return {j: self._members[j].mask_key for j in others}

    def only_parts(self) -> dict[str, list[int]]:
        """Return by block who would get a sum of one part in the first round, if all are there."""
        found: dict[str, list[int]] = {}
        for p, rows in self._shares_of(self.graph(1), self._members).items():
            for block, (_, *others) in rows.items():
                if sum(weight > 0 for weight in others) == 1:
                    found.setdefault(block, []).append(p)
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

    def _carry(self, carrying: Carrying, plans: Mapping[int, Plan]) -> dict[int, Plan]:
        """Let couriers take on what has arrived, and return the plans with that."""
        if self._couriers is None:
            return dict(plans)
        found = {
            p: replace(plan, averages=tuple(m for m in plan.averages if len(m.origins) > 1))
            for p, plan in plans.items()
        }
        hubs: list[tuple[tuple[str, ...], Hub]] = []
        for names, hub in carrying.hubs:
            means = found[hub.courier].averages
            hubs += [(names, replace(hub, owners=m.origins)) for m in means if m.block == names[0]]
        by = {p: plan.carries for p, plan in found.items() if plan.carries}
        self._couriers.begin(replace(carrying, by=by, hubs=hubs))
        return found

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
        by_block: Mapping[str, nx.Graph],
        going: Collection[int],
        published: Collection[int],
        brought: Brought,
    ) -> dict[int, Neighbourhood]:
        """Return who mixes with whom: those that published and go on."""
        owners = tuple(p for p in sorted(going) if p in published)
        before, own, of, by = self._known
        others = owners != of or brought != by or by_block is not own
        if graph is not before or others:  # most rounds are like the last
            blocks = {p: self._members[p].blocks for p in owners}
            same = before is not None and _weights(graph) == _weights(before)
            if not same or others:
                self._found = self._neighbourhoods(graph, by_block, blocks, brought)
            self._known = graph, by_block, owners, brought
        return {p: self._found.get(p, Neighbourhood()) for p in sorted(going)}

    def among(self, alive: Collection[int]) -> tuple[nx.Graph, dict[int, Neighbourhood]]:
        """Return who sends to whom among these, and who mixes with whom, on links that stay."""
        links, by_block = self._links(1, alive)
        graph = among(links, alive)
        blocks = {p: self._members[p].blocks for p in sorted(alive)}
        return graph, self._neighbourhoods(graph, by_block, blocks, ({}, {}))

    def _neighbourhoods(
        self,
        graph: nx.Graph,
        by_block: Mapping[str, nx.Graph],
        blocks: Mapping[int, Collection[str]],
        brought: Brought,
    ) -> dict[int, Neighbourhood]:
        return neighbourhoods(graph, blocks, *brought, over=by_block, weigh=self._weigh)

    def _weigh(self, graph: nx.Graph, owners: Collection[int], hubs: Hubs) -> Rows:
        lasting = not (self.topology.time_varying or self._own_graph)
        return mixing_rows(graph, owners, hubs, push=self._pushes, lasting=lasting)


def _weights(graph: nx.Graph) -> set[tuple[int, int, float | None]]:
    return set(graph.edges(data="weight"))


def _reached(carrying: Carrying, around: Mapping[int, Neighbourhood]) -> Carrying:
    """Return what those who take part are to carry, of what is sent to them."""
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
    return replace(carrying, by=by, hubs=hubs)
