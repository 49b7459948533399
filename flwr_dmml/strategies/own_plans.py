"""Plans of devices that do not wait for one another: the next round of each, by itself."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

import networkx as nx

from ..energy.ledger import Floats
from ..payload.plan import Plan
from .energy.own_rounds import OwnBudget, OwnRounds
from .energy.round_budget import Updates
from .logbook import Logbook
from .planner import RoundPlanner
from .roster import Roster


class OwnPlans:
    """Who is there, how far each device is, and what its next round may take.

    Parameters
    ----------
    planner : RoundPlanner
        Its ``energy`` is :class:`~.energy.own_rounds.OwnRounds`; it has begun.
    roster, logbook
        Of the run.
    num_rounds : int
        Rounds of a device on average.
    adds_up : bool
        Whether every letter counts once, see :attr:`.GossipRule.letters`.

    Attributes
    ----------
    alive : list of int
        Devices that have not stopped, ascending.
    graph, around
        Who sends to whom among them, and who mixes with whom.
    size : int
        Devices at the start: a record covers as many rounds.
    total : int
        Rounds of all devices together that the run is to last.
    done : int
        How many of them are over.
    begun : dict of int to int
        Rounds that each device has begun.
    expected : dict of int to int
        Rounds that each device is likely to do, by its profile.
    mean_s : dict of int to float
        Seconds of a round of each device so far.
    sizes : dict of int to int
        Bytes of the last payload of each device, where known.
    """

    def __init__(
        self,
        planner: RoundPlanner,
        roster: Roster,
        logbook: Logbook,
        *,
        num_rounds: int,
        adds_up: bool,
    ) -> None:
        energy = planner.energy
        assert isinstance(energy, OwnRounds)
        self.energy = energy
        self._planner, self._roster, self._logbook = planner, roster, logbook
        self._adds_up = adds_up
        self.alive = sorted(roster.members)
        self.size = len(self.alive)
        self._links()
        self.sizes: dict[int, int] = {}
        self.total, self.done = num_rounds * self.size, 0
        self.expected = energy.expect(self.graph, self.bits, self.total)
        self.begun = dict.fromkeys(self.alive, 0)
        self.mean_s = {p: float(energy.full_s[p]) for p in self.alive}  # a full first
        self._updates: dict[int, Updates] = {
            p: dict.fromkeys(roster.members[p].modalities, planner.local_iterations)
            for p in self.alive
        }

    def summary(self) -> str:
        """Return how many rounds there are to do, as a line for the log."""
        counts = sorted(self.expected.values())
        each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        return f"Nobody waits: {self.total} rounds of devices, about {each} of each"

    @property
    def bits(self) -> Floats:
        """What each device is to send in a round, ``[node]``."""
        return self._planner.payload_bits(self.sizes, self.graph)

    def mixes(self, p: int) -> Plan:
        """Return the plan of a device's next round, with all neighbours, as far as mixing."""
        number, near = self.begun[p] + 1, self.around[p]
        return Plan(
            server_round=number,
            iterations=0,
            neighbours=near.neighbours,
            weights=near.weights,
            num_rounds=max(self.expected[p], number),
            hand_over=self._planner.hand_over,
        )

    def budget(
        self, p: int, speeds: Mapping[int, Mapping[str, float]], *, ahead: int = 0
    ) -> OwnBudget:
        """Return what a device's next round may take; nothing is booked.

        ``ahead`` are rounds before it that the device has been given and that are not over.
        """
        number, rounds_left = self.begun[p] + 1, max(1, self.to_come(p) - ahead)
        return self.energy.one(
            p, number, rounds_left, self.graph, self.bits, speeds, self._planner.trains("")
        )

    def begin(self, p: int, plan: Plan, budget: OwnBudget) -> Plan:
        """Let a device begin its next round; return the plan with what it is to train."""
        self._updates[p] = budget.updates
        self.begun[p] = plan.server_round
        return replace(
            plan,
            iterations=self._planner.local_iterations,
            by_modality=budget.updates,
            budget_j=budget.budget_j,
            recipients=budget.receivers,
            steps=self._steps(p) if self._planner.communicates else {},
        )

    def to_come(self, p: int) -> int:
        """Return how many rounds a device may still do, at its pace: one more than is likely."""
        pace = {k: 1 / self.mean_s[k] for k in self.alive}
        left = max(0, self.total - self.done)
        return ceil(left * pace[p] / sum(pace.values())) + 1

    def stop(self, p: int, why: str) -> None:
        """Let a device stop for good, and go on without the rounds that it was to do."""
        self._logbook.leaves(p, why)
        self.alive.remove(p)
        self.total -= max(0, self.expected[p] - self.begun[p])
        self._links()

    def end(self) -> None:
        """Let no device begin another round."""
        self.total = 0

    def state(self) -> dict[str, Any]:
        """Return how far the devices are, as JSON."""
        tables: dict[str, Mapping[int, float]] = {
            "sizes": self.sizes,
            "begun": self.begun,
            "mean_s": self.mean_s,
        }
        own = {name: {str(p): n for p, n in table.items()} for name, table in tables.items()}
        updates = {str(p): updates for p, updates in self._updates.items()}
        counts = {"alive": self.alive, "total": self.total, "done": self.done}
        return {**own, **counts, "updates": updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.alive = list(state["alive"])
        self.total, self.done = state["total"], state["done"]
        self.sizes, self.begun, self.mean_s, self._updates = (
            {int(p): value for p, value in state[name].items()}
            for name in ("sizes", "begun", "mean_s", "updates")
        )
        self._links()

    def _links(self) -> None:
        self.graph: nx.Graph
        self.graph, self.around = self._planner.among(self.alive)

    def _steps(self, p: int) -> dict[str, float]:
        """Return the mean steps of a round, see :attr:`.Plan.steps`.

        Where letters are mixed again, a slow device weighs the more in the mean that all come to
        the fewer rounds it does, so that its data count as much as others'. Where each counts once
        they do not: a round of it is to come to what others do in the same time.
        """
        updates = {k: self._updates[k] for k in self.alive}
        if not self._adds_up:
            return self._planner.mean_steps(updates)
        full_s = self.energy.full_s
        return self._planner.mean_steps(
            updates, {k: float(full_s[p] / full_s[k]) for k in self.alive}
        )
