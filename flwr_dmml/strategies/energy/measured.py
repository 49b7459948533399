"""Measured joules of devices: read from their replies, and used to correct the price list."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...clients.metering import MEASURED_J, MEASURED_S
from ...energy.costs import FleetCosts
from ...energy.devices import IterationCosts
from ...energy.ledger import Floats
from ..member import Member

MOST_MEASURED = 1e9
"""No round takes more joules, or seconds."""


class MeasuredPrices:
    """The prices of a fleet, corrected by what its meters have counted.

    A device's modelled joules are multiplied by ``sum measured / sum modelled`` over the rounds so
    far in which it trained and its meter was read; by 1 before that. Long rounds count for more,
    and what a round takes besides training is in it (this project). Seconds stay the model's.

    Parameters
    ----------
    modelled : FleetCosts
        By profile.
    phases : sequence of str
        Of the method's plan, one a round.
    local_iterations : int
        That a round has of every modality at most.
    expected : bool
        Whether any device has a meter.
    """

    def __init__(
        self,
        modelled: FleetCosts,
        phases: Sequence[str],
        local_iterations: int,
        *,
        expected: bool,
    ) -> None:
        self._modelled, self._phases, self._most = modelled, list(phases), local_iterations
        self._expected = expected
        num_nodes = len(modelled.owned)
        self._measured_j, self._modelled_j = np.zeros((2, num_nodes))
        self.metered = np.zeros(num_nodes, np.bool_)
        """Devices whose meter has been read, ``[node]``."""
        self._planned: dict[int, tuple[Floats, Floats]] = {}  # round -> billed, modelled; [node]

    @property
    def factor(self) -> Floats:
        """Measured joules for one that is modelled, ``[node]``, > 0."""
        known = (self._measured_j > 0) & (self._modelled_j > 0)
        return np.divide(self._measured_j, self._modelled_j, np.ones(len(known)), where=known)

    @cached_property
    def costs(self) -> FleetCosts:
        """The price list of the rounds to come."""
        return self._modelled.scaled(self.factor)

    @cached_property
    def full_j(self) -> Floats:
        """Joules that ``local-iterations`` of every modality take, ``[node]``."""
        full: Floats = self.costs.planning.energy_j.sum(axis=1) * self._most
        return full

    @cached_property
    def own_work(self) -> list[IterationCosts]:
        """Cost of the method's own work, by round; ``[node, 1]``."""
        return [self.costs.own_work(phase) for phase in self._phases]

    def bill(
        self, server_round: int, tau: NDArray[np.int64], stagger: float
    ) -> tuple[Floats, Floats]:
        """Return a round's joules and seconds ``[node]``, see :meth:`.FleetCosts.bill`."""
        billed_j, seconds = self.costs.bill(tau, stagger, self._phases[server_round - 1])
        if self._expected:
            self._planned[server_round] = billed_j, billed_j / self.factor
        return billed_j, seconds

    def measured(self, server_round: int, joules: Mapping[int, float]) -> Floats:
        """Take up what devices have measured in a round; return by how much that exceeds its bill.

        Parameters
        ----------
        server_round : int
            That was billed, or the closing one, which is not; none before the last one's.
        joules : mapping of int to float
            By device, finite and >= 0; the others are left as they were billed.

        Returns
        -------
        FloatArray, shape ``[node]``
            Negative where the bill was too high.
        """
        self._planned = {t: bills for t, bills in self._planned.items() if t >= server_round}
        free = np.zeros(len(self.metered))
        billed_j, modelled_j = self._planned.get(server_round, (free, free))
        extra_j = free.copy()
        for k, measured_j in joules.items():
            extra_j[k] = measured_j - billed_j[k]
            self.metered[k] = True
            if modelled_j[k] > 0:
                self._measured_j[k] += measured_j
                self._modelled_j[k] += modelled_j[k]
        self._forget_prices()
        return extra_j

    def state(self) -> dict[str, Any]:
        """Return what was measured so far, as JSON."""
        return {
            "measured_j": self._measured_j.tolist(),
            "modelled_j": self._modelled_j.tolist(),
            "metered": self.metered.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, equal to the bit."""
        self._measured_j = np.array(state["measured_j"], np.float64)
        self._modelled_j = np.array(state["modelled_j"], np.float64)
        self.metered = np.array(state["metered"], np.bool_)
        self._forget_prices()

    def _forget_prices(self) -> None:
        for name in ("costs", "full_j", "own_work"):
            self.__dict__.pop(name, None)


class Reading(NamedTuple):
    """Meter reading of a device for a round's work, >= 0; or why there is no such number."""

    joules: float = 0.0
    seconds: float = 0.0
    problem: str = ""


def read_meter(metrics: Mapping[str, float], problem: str = "") -> Reading:
    """Read what a device with a meter says of a round: ``metrics``, or why it could not measure."""
    if problem or MEASURED_J not in metrics:
        return Reading(problem=problem or "its reply has no joules")
    joules, seconds = metrics[MEASURED_J], metrics.get(MEASURED_S, 0.0)
    if not all(0 <= number <= MOST_MEASURED for number in (joules, seconds)):
        return Reading(problem=f"it counted {joules} J in {seconds} s")
    return Reading(joules, seconds)


def meters_told(members: Iterable[Member]) -> list[str]:
    """Say whose joules are measured, by what, and why those of the others are not."""
    alike: dict[tuple[bool, str, str], list[str]] = {}
    for member in members:
        own = member.equipment
        if own.meter:
            key = own.has_meter, own.meter, own.about_meter
            alike.setdefault(key, []).append(str(member.partition_id))
    lines = []
    for (has_one, meter, about), nodes in sorted(alike.items(), reverse=True):
        how = f"measured by {meter}" if has_one else "modelled, for want of a meter"
        lines.append(f"Joules of node {', '.join(nodes)} are {how}: {about}")
    return lines
