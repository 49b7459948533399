"""A round's plan under remaining energy: live links, joules, iterations of every modality."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ...energy.allocation import OBJECTIVES, Allocation, RoundProblem
from ...energy.costs import FleetCosts, Work, split
from ...energy.equipment import Equipment, equip
from ...energy.ledger import ROUNDING_J, Floats, Ledger, greedy, pacing
from ...privacy.options import Mechanism
from ...settings import Settings
from .measured import MeasuredPrices
from .round_budget import Decision, Prospect, RoundBudget, Sending, Updates, among
from .rules import RULES, ruling_speeds

Allocate = Callable[[RoundProblem, int], Allocation]
"""(problem, round from 1) to the iterations of that round."""
MOST_MODALITIES = 8
"""Iterations of a round are counted up to so many times those of one modality."""
_TRIAL_ROUNDS = 10  # whose channels tell what sending takes, before the first round


class EnergyConstrained:
    """Batteries, radio and the allocation of iterations of a fleet, round by round.

    Every round: the channel gives the links that work and what sending costs; a device that cannot
    pay for it stays out; what the others have left, paced over the rounds to come, is the budget
    of their computing, never more than ``local-iterations`` of every modality; the rule of
    ``allocation.rule`` makes iterations of it; the ledger books them. Booked is the plan: a device
    that fails on the way has spent its energy all the same.

    Parameters
    ----------
    settings : Settings
        ``energy``, ``allocation`` and ``wireless``, ``local-iterations``, ``stagger``,
        ``topology-side-m`` and ``seed`` are read.
    battery_j : FloatArray, shape ``[node]``, optional
        What the batteries hold at the start, instead of what ``energy`` says.
    """

    def __init__(self, settings: Settings, *, battery_j: Floats | None = None) -> None:
        self.settings = settings
        self._given_j, self._filled = battery_j, False
        self._on_mains = settings.energy.on_mains and battery_j is None

    def summary(self) -> list[str]:
        """Return what is decided before the first round, in a few lines for the log."""
        s, rule = self.settings, self.settings.allocation.rule
        metric = f" by {s.speed_metric} speed" if rule in OBJECTIVES else ""
        power = f"{s.energy.battery_j:g} J" if s.energy.battery_j else "mains power"
        power = f"battery-share {s.energy.battery_share:g}" if s.energy.battery_share else power
        link = "radio" if s.wireless.enabled else "wire"
        return [
            f"Allocation: {rule}{metric}, stagger {s.stagger_share:g}",
            f"Devices: {s.energy.devices}, on {power}, linked by {link}",
        ]

    def begin(
        self,
        work: Mapping[int, Work],
        num_nodes: int,
        num_rounds: int,
        graph: nx.Graph | None = None,
        phases: Sequence[str] = (),
        equipment: Mapping[int, Equipment] | None = None,
        allocate: Allocate | None = None,
        *,
        merging: int = 0,
        merge_bits: Floats | None = None,
        samples: Mapping[int, int] | None = None,
    ) -> None:
        """Take note of the devices' work; the first plan fills their batteries.

        ``battery-share`` pays for sending over ``graph``, by default that of the first round.
        ``phases`` are those of the method's plan, one a round; some cost more than others.
        ``equipment`` is what devices say of themselves; the settings say the rest. ``allocate``
        makes a round's iterations instead of :meth:`by_rule`. The last ``merging`` of the rounds
        train nothing, and send ``merge_bits`` ``[node]``. ``samples`` are the numbers of training
        samples, from which a budget of ``privacy.epsilon`` follows.
        """
        self._merging, self._merge_bits = merging, merge_bits
        s, self._equipment = self.settings, dict(equipment or {})
        self._allocate = allocate or self.by_rule
        self._num_rounds = num_rounds
        self._steps_left = self._allowed_steps(num_nodes, samples or {})
        fleet = equip(s.energy.fleet(num_nodes, s.seed), self._equipment)
        costs, phases = FleetCosts.of(fleet, work), phases or [""] * num_rounds
        metered = any(own.has_meter for own in self._equipment.values())
        self.prices = MeasuredPrices(costs, phases, s.local_iterations, expected=metered)
        self._wireless = s.wireless.make(s.topology_side_m, fleet) if s.wireless.enabled else None
        self._sends_over, self._round_s = graph, 0.0
        self._radio_j = np.zeros((0, num_nodes))  # [round, node], of the rounds so far

    def plan(
        self,
        server_round: int,
        graph: nx.Graph,
        present: Collection[int],
        payload_bits: Floats,
        speeds: Mapping[int, Mapping[str, float]],
        trains: NDArray[np.bool_] | None = None,
    ) -> RoundBudget:
        """Plan a round and book it.

        Parameters
        ----------
        server_round : int
            The round, from 1; each is planned once, in order.
        graph : networkx.Graph
            Who is to send to whom, on all nodes.
        present : collection of int
            The devices that can be asked.
        payload_bits : FloatArray, shape ``[node]``
            What each of them will send.
        speeds : mapping of int to mapping of str to float
            Training speed of each modality around each device, where known.
        trains : NDArray[np.bool_], shape ``[node, modality]``, optional
            What is to be trained; the rest is given no iterations, and costs nothing.
        """
        if server_round == 1 and not self._filled:
            self._fill_batteries(self._sends_over or graph, payload_bits)
        self._bits = payload_bits
        decision = self._decide(server_round, graph, set(present), payload_bits, speeds)
        sending, tau = decision.sending, decision.tau if trains is None else decision.tau * trains
        stagger = self.settings.stagger_share
        compute_j, compute_s = self.prices.bill(server_round, tau, stagger)
        seconds = compute_s + sending.time_s
        if self._steps_left is not None:
            joint, solo = split(tau, self.costs.owned, stagger)
            self._steps_left -= joint + solo.sum(axis=1)
        self._book(compute_j, sending.energy_j, float(seconds.max(initial=0.0)))
        live = sorted(set(present) - set(decision.flat))
        on_air = [k for k in live if sending.graph[k]]
        return RoundBudget(
            graph=sending.graph,
            updates={k: self._by_modality(k, tau[k]) for k in live},
            flat=decision.flat,
            budget_j=decision.budget_j,
            compute_j=compute_j,
            radio_j=sending.energy_j,
            seconds=seconds,
            battery_j=None if self._on_mains else self.ledger.remaining_j,
            sent_bits=np.where(np.isin(np.arange(len(tau)), on_air), payload_bits, 0.0),
            notes=decision.notes,
        )

    def too_poor(
        self,
        server_round: int,
        graph: nx.Graph,
        present: Collection[int],
        payload_bits: Floats,
    ) -> dict[int, str]:
        """Return who cannot pay for sending over a graph, and why; nothing is booked.

        Parameters are those of :meth:`plan`.
        """
        if self._on_mains:
            return {}
        if server_round == 1 and not self._filled:
            self._fill_batteries(self._sends_over or graph, payload_bits)
        return self._sending(server_round, graph, set(present), payload_bits)[1]

    def prospect(
        self,
        server_round: int,
        graph: nx.Graph,
        present: Collection[int],
        payload_bits: Floats,
    ) -> Prospect:
        """Return the links and prices of a round that is not planned yet; nothing is booked.

        What a device may carry for others is paid from an even share of its battery: what a round
        may take, less the own payload.
        """
        if server_round == 1:
            self._fill_batteries(self._sends_over or graph, payload_bits)
        sending, _ = self._sending(server_round, graph, set(present), payload_bits)
        per_byte_j = 8 * sending.energy_j / np.maximum(payload_bits, 1.0)
        if self._on_mains or not per_byte_j.any():
            return Prospect(sending.graph, np.where(per_byte_j > 0, per_byte_j, 1.0), {})
        left_j, rounds = self.ledger.remaining_j, self._num_rounds - server_round + 1
        share_j = left_j / rounds if self.settings.energy.pacing else left_j
        spare_j = np.maximum(0.0, share_j - sending.energy_j)
        pays = np.flatnonzero(per_byte_j > 0).tolist()
        return Prospect(
            sending.graph,
            np.where(per_byte_j > 0, per_byte_j / np.maximum(left_j, ROUNDING_J), 1.0),
            {k: float(spare_j[k] / per_byte_j[k]) for k in pays},
        )

    def measured(self, server_round: int, joules: Mapping[int, float]) -> Floats:
        """Book what devices measured in a round instead of its bill; the next plans go by it.

        Returns what was booked besides the bill, ``[node]``; below 0, given back. See
        :meth:`.MeasuredPrices.measured`. A battery ends at 0, whatever a meter says.
        """
        extra_j = self.prices.measured(server_round, joules)
        if self._on_mains:
            self.ledger.harvest(np.maximum(0.0, extra_j))
        return self.ledger.correct("compute", extra_j)

    @property
    def left_j(self) -> Floats | None:
        """What the batteries hold, ``[node]``; None on mains power and before the first plan."""
        return self.ledger.remaining_j if self._filled and not self._on_mains else None

    @property
    def costs(self) -> FleetCosts:
        """The prices of the next plan."""
        return self.prices.costs

    def state(self) -> dict[str, Any]:
        """Return batteries and what planning remembers, as JSON."""
        ledger = {name: values.tolist() for name, values in self.ledger.state().items()}
        remembered = {"radio_j": self._radio_j.tolist(), "round_s": self._round_s}
        if self._steps_left is not None:
            remembered["steps_left"] = self._steps_left.tolist()
        own = {"battery_j": self.battery_j.tolist(), "prices": self.prices.state()}
        return {**own, "ledger": ledger, **remembered}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, after :meth:`begin`, from what :meth:`state` gave, equal to the bit."""
        self.battery_j = np.array(state["battery_j"])
        self.ledger, self._filled = Ledger.from_state(state["ledger"]), True
        self._radio_j = np.array(state["radio_j"]).reshape(-1, len(self.battery_j))
        self._round_s = float(state["round_s"])
        if self._steps_left is not None:
            self._steps_left = np.array(state["steps_left"])
        self.prices.load_state(state["prices"])

    def _decide(
        self,
        server_round: int,
        graph: nx.Graph,
        present: set[int],
        payload_bits: Floats,
        speeds: Mapping[int, Mapping[str, float]],
    ) -> Decision:
        """Decide on links first, then on iterations: every device sends in a band of its own."""
        sending, flat = self._sending(server_round, graph, present, payload_bits)
        problem = self._problem(server_round, sending, present - set(flat), speeds)
        allocation = self._allocate(problem, server_round)
        return Decision(
            sending, flat, allocation.tau, self._limit_j(problem, server_round), allocation.notes
        )

    def end_at(self, server_round: int) -> None:
        """Make a round the last one."""
        self._num_rounds = server_round

    def by_rule(self, problem: RoundProblem, server_round: int) -> Allocation:
        """Return a round's iterations, by ``allocation.rule``."""
        return RULES[self.settings.allocation.rule](problem, self._trains(server_round))

    def _limit_j(self, problem: RoundProblem, server_round: int) -> Floats:
        """Return the most that computing may cost, a round's own work included, ``[node]``."""
        own_j = self.prices.own_work[server_round - 1].energy_j[:, 0]
        return np.maximum(0.0, problem.budget_j + own_j)

    def _fill_batteries(self, graph: nx.Graph, payload_bits: Floats) -> None:
        """Put in the batteries what the settings say, for a fleet that sends over ``graph``."""
        s, rounds = self.settings, self._num_rounds
        if self._given_j is not None:
            self.battery_j = self._given_j
        elif s.energy.battery_share:
            trial = range(1, min(rounds, _TRIAL_ROUNDS) + 1)
            sent = [self._broadcast(t, graph, payload_bits).energy_j for t in trial]
            training = rounds - self._merging
            own_j = sum(work.energy_j[:, 0] for work in self.prices.own_work[:training])
            training_j = training * self.prices.full_j + own_j
            sent_j = np.mean(sent, axis=0)
            self.battery_j = s.energy.battery_share * training_j + rounds * sent_j
            if self._merge_bits is not None:
                more = self._merge_bits / np.maximum(payload_bits, 1.0) - 1
                self.battery_j += self._merging * more * sent_j
        else:
            self.battery_j = np.full(len(payload_bits), s.energy.battery_j)
        if self._given_j is None and not self._on_mains:
            for k, own in self._equipment.items():
                self.battery_j[k] = own.battery_j or self.battery_j[k]
        self.ledger, self._filled = (
            Ledger(self.battery_j, np.inf if s.energy.on_mains else None),
            True,
        )

    def _sending(
        self, server_round: int, graph: nx.Graph, live: set[int], payload_bits: Floats
    ) -> tuple[Sending, dict[int, str]]:
        """Return what sending costs those who can pay for it, and why the others cannot."""
        flat: dict[int, str] = {}
        left_j = self.ledger.remaining_j
        while True:  # a device with fewer neighbours sends at less cost
            sending = self._broadcast(server_round, among(graph, live), payload_bits)
            if self._on_mains:
                return sending, flat
            empty = self.prices.metered & (left_j <= ROUNDING_J)  # mixing would take some, too
            pays = self.ledger.can_afford(sending.energy_j) & ~empty  # [node]
            poor = [k for k in sorted(live) if not pays[k]]
            if not poor:
                return sending, flat
            for k in poor:
                cost = f"sending takes {sending.energy_j[k]:.3g} J"
                cost = "by its meter nothing is free" if empty[k] else cost
                flat[k] = f"its battery holds {left_j[k]:.3g} J, {cost}"
            live = live - set(poor)

    def _broadcast(self, server_round: int, graph: nx.Graph, payload_bits: Floats) -> Sending:
        free = np.zeros(len(payload_bits))
        if self._wireless is None:
            return Sending(graph, free, free)
        radio = self._wireless.broadcast(
            graph, payload_bits, server_round=server_round, seed=self.settings.seed
        )
        return Sending(radio.graph, radio.energy_j, radio.time_s)

    def _problem(
        self,
        server_round: int,
        sending: Sending,
        live: set[int],
        speeds: Mapping[int, Mapping[str, float]],
        to_send_j: Floats | float = 0.0,
    ) -> RoundProblem:
        """Return the allocation's problem: prices, speeds, and what may be spent.

        Where the allocation has to pay for sending as well, ``to_send_j`` is added to the limit.
        """
        allocation, most = self.settings.allocation, self.settings.local_iterations
        overhead = self.prices.own_work[server_round - 1]
        full_j = self.prices.full_j * (1 + 1e-9)  # rounding must not cost an iteration
        budget_j = full_j + to_send_j
        if not self._on_mains:
            left_j = self._spendable_j(server_round, sending.energy_j) - overhead.energy_j[:, 0]
            budget_j = np.minimum(budget_j, left_j)
        most_steps = self._step_limit(server_round)
        return RoundProblem.of(
            ruling_speeds(self.settings, self.costs, server_round, speeds),
            self.costs.planning.energy_j,
            budget_j,
            seconds=self.costs.planning.time_s,
            owned=self.costs.owned & np.isin(np.arange(len(budget_j)), sorted(live))[:, None],
            latency_s=allocation.latency_limit_s - sending.time_s - overhead.time_s[:, 0],
            tau_min=np.minimum(min(allocation.min_iterations, most), most_steps),
            tau_max=np.minimum(allocation.max_iterations or 2 * most, most_steps),
        )

    def _allowed_steps(self, num_nodes: int, samples: Mapping[int, int]) -> Floats | None:
        """Return how many steps each device's budget of epsilon allows; None without pacing."""
        s = self.settings
        if not s.privacy.pacing:
            return None
        allowed = np.zeros(num_nodes)
        most = self._num_rounds * 2 * s.local_iterations * MOST_MODALITIES
        for p, n in samples.items():
            how = Mechanism.of(s.privacy, n, s.batch_size, most, num_nodes)
            allowed[p] = how.steps_within(most)
        return allowed

    def _step_limit(self, server_round: int) -> Floats | float:
        """Return the most iterations of a modality in a round, ``[node]``: an even share.

        With ``stagger`` an iteration may be of one modality, so that all of them share it.
        """
        if self._steps_left is None:
            return np.inf
        rounds = range(server_round, self._num_rounds + 1)
        training = max(1, sum(self._trains(t) for t in rounds))
        kinds = self.costs.owned.sum(axis=1) if self.settings.stagger_share else 1
        limit: Floats = np.floor(self._steps_left / training / np.maximum(kinds, 1))
        return np.maximum(limit, 0.0)

    def _spendable_j(self, server_round: int, radio_j: Floats) -> Floats:
        """Return what computing may take in this round, ``[node]``."""
        if not self.settings.energy.pacing:
            return greedy(self.ledger.remaining_j, radio_j)
        self._radio_j = np.concatenate([self._radio_j, radio_j[None]])
        rounds = range(server_round, self._num_rounds + 1)
        training = [t for t in rounds if self._trains(t)]
        least_j = self.costs.per_round.energy_j[:, 0]
        more_j = [w.energy_j[:, 0] - least_j for w in self.prices.own_work[server_round - 1 :]]
        even = pacing(
            # what phases add is set aside, and what the final merge sends more than other rounds
            np.maximum(0.0, self.ledger.remaining_j - sum(more_j) - self._merge_more_j()),
            radio_j,
            len(rounds),
            expected_radio_j=self._radio_j.mean(axis=0),
            training_rounds=max(1, len(training)),
        )
        return np.minimum(even + more_j[0], greedy(self.ledger.remaining_j, radio_j))

    def _merge_more_j(self) -> Floats | float:
        """Return what the rounds of the final merge send beyond what rounds send on average."""
        if self._merge_bits is None:
            return 0.0
        more = self._merge_bits / np.maximum(self._bits, 1.0) - 1
        mean_j: Floats = self._radio_j.mean(axis=0)
        return self._merging * np.maximum(0.0, more) * mean_j

    def _trains(self, server_round: int) -> bool:
        if server_round > self._num_rounds - self._merging:
            return False
        rule = self.settings.allocation
        return rule.rule != "sync-only" or (server_round - 1) % rule.train_every == 0

    def _by_modality(self, node: int, tau: NDArray[np.int64]) -> Updates:
        owned = self.costs.owned[node]
        return dict(zip(self.costs.modalities_of(node), tau[owned].tolist(), strict=True))

    def _book(self, compute_j: Floats, radio_j: Floats, round_s: float) -> None:
        if self._on_mains:
            self.ledger.harvest(compute_j + radio_j)  # drawn as it is spent
        self.ledger.charge("compute", compute_j)
        self.ledger.charge("radio", radio_j)
        if not self._on_mains:
            self._round_s = round_s or self._round_s  # where nobody can work, as long as the last
            self.ledger.harvest(self.settings.energy.harvesting_w * self._round_s)
