"""Energy and time of devices that do not wait for one another: each round of each by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ...energy.ledger import Floats, greedy, pacing
from .energy_constrained import EnergyConstrained
from .round_budget import Sending, Updates


@dataclass(frozen=True)
class OwnBudget:
    """Limits and bill of one round of one device.

    Attributes
    ----------
    updates : dict of str to int
        Encoder updates by modality; all 0 where the battery pays for none.
    budget_j : float
        The most that its computing may cost.
    compute_j, radio_j : float
        What it is billed.
    seconds, sending_s : float
        How long it lasts, and how much of that, at its end, is sending.
    receivers : tuple of int
        Those neighbours whose links work, sorted.
    notes : tuple of str
        What the allocation has to say.
    flat : str
        Why the device can do no round any more; empty where it can.
    """

    updates: Updates
    budget_j: float
    compute_j: float
    radio_j: float
    seconds: float
    sending_s: float
    receivers: tuple[int, ...]
    notes: tuple[str, ...] = ()
    flat: str = ""

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> "OwnBudget":
        """Read one that was written as JSON."""
        receivers, notes = tuple(written["receivers"]), tuple(written["notes"])
        return cls(**{**written, "receivers": receivers, "notes": notes})


class OwnRounds(EnergyConstrained):
    """Batteries, radio and iterations of devices that are in rounds of their own.

    A round of a device costs what a round of all costs it: the same prices, the same radio, whose
    fading is that of the device's own round, and the same rule of ``allocation.rule``. What its
    battery holds is paced over the rounds that it is expected to do. A round in which the battery
    pays for no training lasts as long as a full one.
    """

    full_s: Floats
    """Seconds of a round in which each modality gets ``local-iterations``, ``[node]``."""
    _rounds_left = 1
    _sent: dict[int, tuple[int, float]]  # rounds, and what sending took in them on average
    _known: tuple[nx.Graph, bytes, dict[int, Sending]] | None = None

    def expect(self, graph: nx.Graph, payload_bits: Floats, rounds: int) -> dict[int, int]:
        """Return how many rounds each device is to do until all together have done so many.

        Parameters
        ----------
        graph : networkx.Graph
            Who sends to whom.
        payload_bits : FloatArray, shape ``[node]``
            What each of them sends in a round.
        rounds : int
            Of all devices together.

        Returns
        -------
        dict of int to int
            At least 1; of the devices that have work.
        """
        if not self._filled:
            self._fill_batteries(self._sends_over or graph, payload_bits)
        self._sent = {}
        full = self.costs.owned * self.settings.local_iterations
        _, compute_s = self.prices.bill(1, full, self.settings.stagger_share)
        self.full_s = compute_s + self._sends(1, graph, payload_bits).time_s
        works = np.flatnonzero(self.costs.owned.any(axis=1)).tolist()
        until_s = rounds / sum(1 / self.full_s[k] for k in works)
        return {k: max(1, round(until_s / self.full_s[k])) for k in works}

    def one(
        self,
        node: int,
        number: int,
        rounds_left: int,
        graph: nx.Graph,
        payload_bits: Floats,
        speeds: Mapping[int, Mapping[str, float]],
        trains: NDArray[np.bool_],
    ) -> OwnBudget:
        """Plan a round of one device; nothing is booked.

        Parameters
        ----------
        node, number : int
            Whose round, and which of its own, from 1.
        rounds_left : int
            That it may still do, this one included, >= 1.
        graph : networkx.Graph
            Who sends to whom, of those that have not stopped.
        payload_bits : FloatArray, shape ``[node]``
            What each device sends.
        speeds : mapping of int to mapping of str to float
            Training speed of each modality around the device, where known.
        trains : NDArray[np.bool_], shape ``[node, modality]``
            What is to be trained.
        """
        sending = self._sends(number, graph, payload_bits)
        radio_j, sending_s = float(sending.energy_j[node]), float(sending.time_s[node])
        receivers = tuple(sorted(sending.graph[node]))
        if not self._on_mains and not self.ledger.can_afford(sending.energy_j)[node]:
            left_j = self.ledger.remaining_j[node]
            flat = f"its battery holds {left_j:.3g} J, sending takes {radio_j:.3g} J"
            return OwnBudget({}, 0.0, 0.0, 0.0, 0.0, 0.0, (), flat=flat)
        self._rounds_left = rounds_left
        count, mean_j = self._sent.get(node, (0, 0.0))
        self._sent[node] = count + 1, mean_j + (radio_j - mean_j) / (count + 1)
        planned = min(number, self._num_rounds)  # all have the same prices
        problem = self._problem(planned, sending, {node}, speeds)
        allocation = self._allocate(problem, planned)
        only = np.arange(len(trains)) == node
        tau = allocation.tau * trains * only[:, None]
        compute_j, compute_s = self.prices.bill(planned, tau, self.settings.stagger_share)
        seconds = float(compute_s[node]) + sending_s
        return OwnBudget(
            updates=self._by_modality(node, tau[node]),
            budget_j=float(self._limit_j(problem, planned)[node]),
            compute_j=float(compute_j[node]),
            radio_j=radio_j,
            seconds=seconds if tau.any() else max(seconds, float(self.full_s[node])),
            sending_s=sending_s,
            receivers=receivers,
            notes=tuple(allocation.notes),
        )

    def book(self, node: int, budget: OwnBudget) -> None:
        """Book a round that a device has done."""
        only = np.arange(len(self.battery_j)) == node
        self._book(only * budget.compute_j, only * budget.radio_j, 0.0)

    def state(self) -> dict[str, Any]:
        """Return batteries and what planning remembers, as JSON."""
        return super().state() | {"sent": {str(p): sent for p, sent in self._sent.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, after :meth:`expect`, from what :meth:`state` gave, equal to the bit."""
        super().load_state(state)
        self._sent = {int(p): (count, mean_j) for p, (count, mean_j) in state["sent"].items()}

    def _sends(self, number: int, graph: nx.Graph, payload_bits: Floats) -> Sending:
        """Return what sending costs in a round of this number; many devices ask for the same."""
        key = payload_bits.tobytes()
        if self._known is None or self._known[0] is not graph or self._known[1] != key:
            self._known = graph, key, {}
        found = self._known[2]
        if number not in found:
            found[number] = self._broadcast(number, graph, payload_bits)
        return found[number]

    def _spendable_j(self, server_round: int, radio_j: Floats) -> Floats:
        left_j = self.ledger.remaining_j
        if not self.settings.energy.pacing:
            return greedy(left_j, radio_j)
        later_j = np.array([self._sent.get(k, (0, 0.0))[1] for k in range(len(left_j))])
        even = pacing(left_j, radio_j, self._rounds_left, expected_radio_j=later_j)
        return np.minimum(even, greedy(left_j, radio_j))
