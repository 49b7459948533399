"""A radio band that the devices share (:class:`SharedBand`), and what a share of it costs."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from .exact import allocate
from .problem import (
    Allocation,
    AllocationError,
    BoolArray,
    FloatArray,
    IntArray,
    Objective,
    RoundProblem,
    require,
)
from .water_filling import next_step


@dataclass(frozen=True, eq=False)
class SharedBand:
    """One band for all devices, each of which sends one payload in its share; see :meth:`of`.

    The budget and the latency of a :class:`RoundProblem` then pay for sending too. A parked device
    gets no share and sends nothing. Source: this project.

    Attributes
    ----------
    total_hz : float
        What there is to share, > 0.
    power_w : FloatArray, shape ``[node]``
        Transmit power, > 0.
    snr_hz : FloatArray, shape ``[node]``
        c = p h / N0, > 0: the bandwidth at which the signal-to-noise ratio is 1.
    payload_bits : FloatArray, shape ``[node]``
        Sent once in the round, >= 0.
    """

    total_hz: float
    power_w: FloatArray
    snr_hz: FloatArray
    payload_bits: FloatArray

    @classmethod
    def of(
        cls,
        total_hz: float,
        power_w: ArrayLike,
        gain: ArrayLike,
        payload_bits: ArrayLike,
        *,
        noise_w_per_hz: float = 4e-21,
    ) -> Self:
        """Return a checked band; the arrays broadcast to ``[node]``. The noise: -174 dBm/Hz.

        Raises
        ------
        AllocationError
            Shapes that do not broadcast, or values that are not finite and positive.
        """
        try:
            arrays = [np.asarray(a, dtype=float) for a in (power_w, gain, payload_bits)]
            power, h, bits = np.broadcast_arrays(*(np.atleast_1d(a) for a in arrays))
        except (TypeError, ValueError) as error:
            raise AllocationError(f"power, gain and payload must be [node]: {error}") from error
        snr = power * h / noise_w_per_hz
        for name, value in (("total_hz", total_hz), ("power_w", power), ("power x gain", snr)):
            good = bool(np.all(np.isfinite(value) & (np.asarray(value) > 0)))
            require(good, f"{name} must be finite and > 0")
        good = power.ndim == 1 and bool((np.isfinite(bits) & (bits >= 0)).all())
        require(good, "payload_bits must be [node], finite and >= 0")
        return cls(float(total_hz), power, snr, bits)

    def rate_bps(self, bandwidth_hz: FloatArray) -> FloatArray:
        """Return b log2(1 + c / b) ``[node]``, 0 where b is 0; it grows with b up to c / ln 2."""
        b = np.maximum(bandwidth_hz, 1e-300)
        with np.errstate(over="ignore"):
            rate = b * np.log1p(self.snr_hz / b) / np.log(2)
        return np.where(bandwidth_hz > 0, rate, 0.0)

    def seconds(self, bandwidth_hz: FloatArray) -> FloatArray:
        """Return the time to send ``[node]``: 0 for no payload, inf for no bandwidth."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                self.payload_bits > 0, self.payload_bits / self.rate_bps(bandwidth_hz), 0
            )

    def remaining(self, problem: RoundProblem, bandwidth_hz: FloatArray) -> RoundProblem:
        """Return the problem that is left when everybody has sent in its share ``[node]``."""
        time = self.seconds(bandwidth_hz)
        sent = np.isfinite(time)
        time = np.where(sent, time, 0.0)
        budget = np.where(sent, problem.budget_j - self.power_w * time, -np.inf)
        return replace(problem, budget_j=budget, latency_s=problem.latency_s - time)

    def least_hz(self, problem: RoundProblem, tau: IntArray) -> FloatArray:
        """Return the least share ``[node]`` that leaves enough for ``tau``; inf: no share does."""
        low, high = np.zeros(len(self.power_w)), np.full(len(self.power_w), self.total_hz)
        possible = self.remaining(problem, high).fits(tau)
        for _ in range(60):  # halve down to total_hz / 2^60
            middle = (low + high) / 2
            fits = self.remaining(problem, middle).fits(tau)
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return np.where(possible, np.where(self.payload_bits > 0, high, 0.0), np.inf)

    def served(self, problem: RoundProblem) -> tuple[BoolArray, FloatArray]:
        """Return who is served ``[node]``, and the least share that each of them needs ``[node]``.

        As many as possible: if tau_min for all needs more than the band, those who need most of it
        are parked.
        """
        least = self.least_hz(problem, problem.lower)
        cheapest = np.argsort(least, kind="stable")
        fits = np.cumsum(least[cheapest]) <= 0.999 * self.total_hz  # room for a solver
        served = np.zeros(len(least), dtype=bool)
        served[cheapest] = fits
        served &= problem.owned.any(axis=1)
        return served, np.where(served, least, 0.0)


def planned_in(
    problem: RoundProblem,
    band: SharedBand,
    bandwidth_hz: FloatArray,
    objective: Objective,
) -> Allocation:
    """Return the best plan for given shares ``[node]``; who is parked gives its share back."""
    plan = allocate(band.remaining(problem, bandwidth_hz), objective)
    return replace(plan, bandwidth_hz=np.where(plan.parked, 0.0, bandwidth_hz))


def spend_band(
    problem: RoundProblem, band: SharedBand, plan: Allocation, objective: Objective
) -> FloatArray:
    """Return the shares ``[node]`` that a better plan needs, which uses what ``plan`` leaves.

    Rounding leaves devices with more bandwidth than their iterations need. It goes to further
    iterations, those first that gain most for a hertz.
    """
    tau = plan.tau
    need = np.where(plan.parked, 0.0, band.least_hz(problem, tau))
    while True:
        trial, gain = next_step(problem, tau, objective)
        spare = (1 - 1e-9) * band.total_hz - need.sum()
        more = np.maximum(band.least_hz(problem, trial) - need, 1e-9 * band.total_hz)
        possible = ~plan.parked & (gain > 0) & (more <= spare)
        if not possible.any():
            return need
        best = np.argsort(np.where(possible, -gain / more, np.inf), kind="stable")
        chosen = np.zeros_like(possible)
        chosen[best] = possible[best] & (np.cumsum(np.where(possible, more, 0)[best]) <= spare)
        tau = np.where(chosen[:, None], trial, tau)
        need = need + np.where(chosen, more, 0.0)


def equal_split(
    problem: RoundProblem, band: SharedBand, *, objective: Objective = "max-min"
) -> Allocation:
    """Return the best plan where every device gets the same share of the band."""
    nodes = len(problem.speed)
    plan = planned_in(problem, band, np.full(nodes, band.total_hz / nodes), objective)
    return replace(plan, status="rule")
