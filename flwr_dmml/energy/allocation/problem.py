"""The problem of one round (:class:`RoundProblem`), and a plan for it (:class:`Allocation`)."""

from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Tau = FloatArray | IntArray

Objective = Literal["max-min", "proportional", "least-squares"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

_SLACK = 1e-12  # relative: 3 x 0.1 J fit in 0.3 J
_ROUND = 1e-9  # iterations: theta / V within this of an integer is that integer


class AllocationError(ValueError):
    """A problem that makes no sense; the message says what is wrong and what is allowed."""


def require(holds: bool, message: str) -> None:
    """Raise :class:`AllocationError` with ``message`` unless ``holds``."""
    if not holds:
        raise AllocationError(message)


@dataclass(frozen=True, eq=False)
class RoundProblem:
    """Limits of a round for each device, and cost and progress of an iteration of each modality.

    Build it with :meth:`of`, which broadcasts and checks. Source: this project.

    Attributes
    ----------
    speed : FloatArray, shape ``[node, modality]``
        V: relative variation of the encoder's parameters per iteration, > 0 where owned.
    energy_j, seconds : FloatArray, shape ``[node, modality]``
        What one iteration costs, >= 0.
    owned : BoolArray, shape ``[node, modality]``
        Where False, the other arrays are ignored and tau is 0.
    budget_j, latency_s : FloatArray, shape ``[node]``
        The most that the iterations of the round may cost; inf is no limit, a negative one parks.
    tau_min, tau_max : IntArray, shape ``[node]``
        Bounds of tau for every owned modality, 0 <= tau_min <= tau_max.
    """

    speed: FloatArray
    energy_j: FloatArray
    seconds: FloatArray
    owned: BoolArray
    budget_j: FloatArray
    latency_s: FloatArray
    tau_min: IntArray
    tau_max: IntArray

    @classmethod
    def of(
        cls,
        speed: ArrayLike,
        energy_j: ArrayLike,
        budget_j: ArrayLike,
        *,
        seconds: ArrayLike = 0.0,
        owned: ArrayLike = True,
        latency_s: ArrayLike = np.inf,
        tau_min: ArrayLike = 1,
        tau_max: ArrayLike = 20,
    ) -> Self:
        """Return a checked problem; all arguments but ``speed`` broadcast to their shapes.

        Raises
        ------
        AllocationError
            A wrong shape, NaN, a speed that is not positive, a negative cost, or bounds that are
            no integers or not in order.
        """
        shape = np.shape(speed)
        require(len(shape) == 2, f"speed must be [node, modality], not of shape {shape}")
        has = _array("owned", owned, shape).astype(bool)
        v, e, s = (
            np.where(has, _array(name, value, shape), absent)
            for name, value, absent in (
                ("speed", speed, 1.0),
                ("energy_j", energy_j, 0.0),
                ("seconds", seconds, 0.0),
            )
        )
        require(bool((np.isfinite(v) & (v > 0)).all()), "speed must be finite and > 0 where owned")
        for name, cost in (("energy_j", e), ("seconds", s)):
            good = bool((np.isfinite(cost) & (cost >= 0)).all())
            require(good, f"{name} must be finite and >= 0 where owned")
        budget, latency, low, high = (
            _array(name, value, shape[:1])
            for name, value in (
                ("budget_j", budget_j),
                ("latency_s", latency_s),
                ("tau_min", tau_min),
                ("tau_max", tau_max),
            )
        )
        for name, limit in (("budget_j", budget), ("latency_s", latency)):
            require(not np.isnan(limit).any(), f"{name} must be a number, or inf for no limit")
        whole = (
            np.isfinite(low) & np.isfinite(high) & (low == np.floor(low)) & (high == np.floor(high))
        )
        ordered = (low >= 0) & (low <= high)
        require(
            bool((whole & ordered).all()),
            "tau_min and tau_max must be integers with 0 <= tau_min <= tau_max",
        )
        return cls(v, e, s, has, budget, latency, low.astype(np.int64), high.astype(np.int64))

    @property
    def lower(self) -> IntArray:
        """tau_min where owned, else 0; shape ``[node, modality]``."""
        return np.where(self.owned, self.tau_min[:, None], 0)

    @property
    def upper(self) -> IntArray:
        """tau_max where owned, else 0; shape ``[node, modality]``."""
        return np.where(self.owned, self.tau_max[:, None], 0)

    @property
    def target(self) -> FloatArray:
        """theta*, the progress of the slowest modality at tau_max; shape ``[node]``."""
        return self.theta(self.upper)

    @property
    def servable(self) -> BoolArray:
        """Devices that own a modality and can afford tau_min; the others are parked; ``[node]``."""
        return self.owned.any(axis=1) & self.fits(self.lower)

    def fits(self, tau: Tau) -> BoolArray:
        """Return who can pay for ``tau`` ``[..., node, modality]`` in joules and in seconds."""
        within = [
            (cost * tau).sum(axis=-1) <= limit * (1 + _SLACK * np.sign(limit))
            for cost, limit in ((self.energy_j, self.budget_j), (self.seconds, self.latency_s))
        ]
        fits: BoolArray = within[0] & within[1]
        return fits

    def theta(self, tau: Tau) -> FloatArray:
        """Return the progress of the slowest owned modality, min V tau; ``[..., node]``."""
        progress = np.where(self.owned, self.speed * tau, np.inf).min(axis=-1, initial=np.inf)
        theta: FloatArray = np.where(np.isinf(progress), 0.0, progress)
        return theta

    def fewest(self, theta: FloatArray) -> FloatArray:
        """Return the fewest iterations that bring every owned modality to ``theta``.

        ``max(tau_min, ceil(theta / V))``, not capped by tau_max; ``[..., node, modality]``.
        """
        needed = np.ceil(theta[..., None] / self.speed - _ROUND)
        return np.where(self.owned, np.maximum(needed, self.tau_min[:, None]), 0.0)

    def is_feasible(self, tau: IntArray) -> BoolArray:
        """Return whose tau is all 0, or within the bounds and affordable; ``[node]``."""
        bounded = ((self.lower <= tau) & (tau <= self.upper)).all(axis=1)
        idle: BoolArray = (tau == 0).all(axis=1)
        return idle | (bounded & self.fits(tau))

    def is_balanced(self, tau: IntArray) -> BoolArray:
        """Return whose modalities keep ``V tau <= theta + V`` or ``tau <= tau_min``; ``[node]``.

        The second case is what the lower bound asks for: a fast modality at tau_min may be ahead of
        a slow one that the budget keeps at tau_min.
        """
        most = np.floor(self.theta(tau)[:, None] / self.speed + _ROUND) + 1
        balanced: BoolArray = (tau <= np.maximum(most, self.lower)).all(axis=1)
        return balanced


@dataclass(frozen=True, eq=False)
class Allocation:
    """A plan for a round.

    Attributes
    ----------
    tau : IntArray, shape ``[node, modality]``
        Iterations of each modality.
    theta : FloatArray, shape ``[node]``
        min V tau over the owned modalities; 0 for who trains nothing.
    parked : BoolArray, shape ``[node]``
        Who trains nothing because the least allowed is not affordable.
    objective : float
        :func:`objective_value` of the plan: for "least-squares" a cost, for the others a gain.
    status : str
        "exact" (proven optimal), "rounded" (a relaxation, then exact for its bandwidths),
        "approximate", "rule" (no optimisation) or "fallback" (a solver failed; see ``notes``).
    notes : list[str]
        What else should be known, in sentences.
    bandwidth_hz : FloatArray or None, shape ``[node]``
        The share of the band, where there is one.
    bound : float or None
        The objective of the relaxation, where one was solved: no plan serving the same devices
        does better.
    """

    tau: IntArray
    theta: FloatArray
    parked: BoolArray
    objective: float
    status: str
    notes: list[str] = field(default_factory=list)
    bandwidth_hz: FloatArray | None = None
    bound: float | None = None

    @classmethod
    def of(cls, problem: RoundProblem, tau: Tau, *, status: str = "rule") -> Self:
        """Return the plan of iterations ``[node, modality]``; who cannot be served gets 0."""
        plan = planned(problem, tau, "max-min", status)
        return cls(plan.tau, plan.theta, plan.parked, plan.objective, plan.status)


def objective_value(problem: RoundProblem, tau: Tau, objective: Objective) -> float:
    """Return what a plan ``tau`` ``[node, modality]`` is worth.

    "max-min": sum of theta; "proportional": sum of log theta, a theta of 0 counted as 1e-9 theta*
    to keep it finite; "least-squares": sum of (V tau - theta*)^2 over owned modalities, a cost,
    where theta* = tau_max min V. Parked devices count too. Source: this project.
    """
    require(objective in OBJECTIVES, f"no objective {objective!r}; allowed: {OBJECTIVES}")
    if objective == "least-squares":
        return float(squared_distance(problem, tau).sum())
    theta = problem.theta(tau)
    return float((log_theta(problem, theta) if objective == "proportional" else theta).sum())


def log_theta(problem: RoundProblem, theta: FloatArray) -> FloatArray:
    """Return log theta ``[node]``, at least log(1e-9 theta*); 0 where theta* is 0."""
    least = 1e-9 * problem.target
    log: FloatArray = np.log(np.where(least > 0, np.maximum(theta, least), 1.0))
    return log


def squared_distance(problem: RoundProblem, tau: Tau) -> FloatArray:
    """Return (V tau - theta*)^2 ``[node, modality]``, 0 where nothing is owned."""
    away = np.where(problem.owned, problem.speed * tau - problem.target[:, None], 0.0)
    return away**2


def planned(
    problem: RoundProblem,
    tau: Tau,
    objective: Objective,
    status: str,
    *notes: str,
    parked: BoolArray | None = None,
) -> Allocation:
    """Return the :class:`Allocation` of ``tau``; who cannot be served, or is ``parked``, gets 0."""
    parked = ~problem.servable if parked is None else parked
    whole = np.where(parked[:, None], 0, tau).astype(np.int64)
    value = objective_value(problem, whole, objective)
    return Allocation(whole, problem.theta(whole), parked, value, status, list(notes))


def _array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    try:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
    except (TypeError, ValueError) as error:
        why = f"{name} must be numbers of shape {shape}, or broadcast to it, not {value!r:.80}"
        raise AllocationError(why) from error
