"""Gaps: which devices lack something of what a neighbour has sent, where changes are sent."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..payload.plan import Plan


class Gaps:
    """Sees to it that whoever has missed a change gets a copy with the next one.

    Parameters
    ----------
    alike : bool
        Whether all owners of a block start from the same numbers; otherwise all get copies first.
    """

    def __init__(self, *, alike: bool = True) -> None:
        # sender and receiver of what the last round has sent in full; None: nobody lacks anything
        self._copied: set[tuple[int, int]] | None = None if alike else set()

    def plan(self, plans: Mapping[int, Plan], lacking: Collection[int]) -> dict[int, Plan]:
        """Return the plans of a round, with whom to send copies to.

        Parameters
        ----------
        plans : mapping of int to Plan
            By partition; what they begin with mixing arrives.
        lacking : collection of int
            Devices that have not kept what arrived in the round before: they failed, or could not
            read something of it.
        """
        begins = self._copied is None
        copied = self._copied or set()
        complete = {
            (sender, p)
            for p, plan in plans.items()
            for sender in plan.neighbours
            if p not in lacking or (sender, p) in copied
        }
        found: dict[int, Plan] = {}
        self._copied = set()
        for p, plan in plans.items():
            lack = () if begins else tuple(r for r in plan.recipients if (p, r) not in complete)
            self._copied |= {(p, r) for r in lack}
            found[p] = replace(plan, resend=lack) if lack else plan
        return found

    def state(self) -> list[list[int]] | None:
        """Return what the next round depends on, as JSON."""
        return None if self._copied is None else sorted(map(list, self._copied))

    def load_state(self, state: Any) -> None:
        """Go on from what :meth:`state` gave."""
        self._copied = None if state is None else {(int(a), int(b)) for a, b in state}
