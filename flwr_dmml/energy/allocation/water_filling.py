"""Water-filling: the continuous optimum by bisection, floor, spend the rest (no solver needed)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .problem import (
    Allocation,
    FloatArray,
    IntArray,
    Objective,
    RoundProblem,
    log_theta,
    planned,
    squared_distance,
)

_STEPS = 60  # of a bisection: below the rounding of a float


def relaxed_theta(problem: RoundProblem) -> FloatArray:
    """Return the largest theta ``[node]`` with real-valued tau: a bound on any plan's theta.

    ``tau(theta) = clip(theta / V, tau_min, tau_max)`` costs more with more theta, so bisection
    finds the theta that spends the budget; 0 for parked devices. Source: this project.
    """
    tau = _bisect(problem, lambda share: _fill(problem, share * problem.target))
    return np.where(problem.servable, problem.theta(tau), 0.0)


def water_filling(problem: RoundProblem, objective: Objective = "max-min") -> Allocation:
    """Return a plan from the continuous optimum, rounded down, with the rest spent one by one.

    For "max-min" and "proportional" the rest goes to the modality with the least progress. What
    rounding left ahead of the slowest is taken back first, which makes this exact: from a plan
    with the fewest iterations for its theta, such steps visit every better one. For
    "least-squares" tau = theta* / V - lam g / (2 V^2), g the share of the budgets that an
    iteration takes; the rest goes where it helps most for its cost: good, but not exact.

    Source: this project.
    """
    if objective == "least-squares":
        tau = _spend(problem, np.floor(_lagrangian(problem)), lambda t: _steepest(problem, t))
        return planned(problem, tau, objective, "approximate")
    tau = np.floor(_fill(problem, relaxed_theta(problem)) + 1e-9)
    tau = problem.fewest(problem.theta(tau))
    tau = _spend(problem, tau, lambda t: _slowest(problem, t))
    return planned(problem, problem.fewest(problem.theta(tau)), objective, "exact")


def next_step(
    problem: RoundProblem, tau: IntArray, objective: Objective
) -> tuple[IntArray, FloatArray]:
    """Return the next better tau ``[node, modality]`` at any cost, and what it gains ``[node]``.

    0 is gained where nothing better is within the bounds.
    """
    if objective == "least-squares":
        free = replace(problem, energy_j=problem.energy_j * 0, seconds=problem.seconds * 0)
        trial = tau + _steepest(free, tau.astype(float)).astype(np.int64)
        worth = [-squared_distance(problem, t).sum(axis=1) for t in (tau, trial)]
    else:  # all modalities at theta take a step
        theta = problem.theta(tau)
        slowest = problem.owned & (problem.speed * tau <= theta[:, None] * (1 + 1e-9))
        trial = tau + slowest
        worth = [theta, problem.theta(trial)]
        if objective == "proportional":
            worth = [log_theta(problem, w) for w in worth]
    possible = (trial <= problem.upper).all(axis=1)
    return trial, np.where(possible, worth[1] - worth[0], 0.0)


def _bisect(problem: RoundProblem, tau_of: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Return tau of the largest share [node] in [0, 1] that fits; tau must grow with the share."""
    low, high = np.zeros(len(problem.speed)), np.ones(len(problem.speed))
    low = np.where(problem.fits(tau_of(high)), 1.0, low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fits = problem.fits(tau_of(middle))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return tau_of(low)


def _fill(problem: RoundProblem, theta: FloatArray) -> FloatArray:
    return np.clip(theta[:, None] / problem.speed, problem.lower, problem.upper)


def _price(problem: RoundProblem) -> FloatArray:
    """Return the share of the budgets that one iteration takes; [node, modality]."""
    limits = [np.maximum(limit, 1e-100)[:, None] for limit in (problem.budget_j, problem.latency_s)]
    return problem.energy_j / limits[0] + problem.seconds / limits[1]


def _lagrangian(problem: RoundProblem) -> FloatArray:
    # lam from 0 (share 1) up to where every modality is at tau_min (share 0), on a log scale
    ideal = problem.target[:, None] / problem.speed
    slope = _price(problem) / (2 * problem.speed**2)  # [node, modality]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        most = np.where(slope > 0, ideal / slope, 0.0).max(axis=1, initial=1e-100)  # [node]

    def tau(share: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            lam = (1 - share) / share * most
            cut = np.where(slope > 0, lam[:, None] * slope, 0.0)
        return np.clip(ideal - cut, problem.lower, problem.upper)

    return _bisect(problem, tau)


def _slowest(problem: RoundProblem, tau: FloatArray) -> FloatArray:
    """Return 1 for the modality with the least progress, else 0; [node, modality]."""
    progress = np.where(problem.owned, problem.speed * tau, np.inf)
    step: FloatArray = np.eye(tau.shape[1])[progress.argmin(axis=1)]
    return step


def _steepest(problem: RoundProblem, tau: FloatArray) -> FloatArray:
    """Return 1 for the affordable iteration that gains most for its price; [node, modality]."""
    modalities = tau.shape[1]
    gain = problem.speed * (2 * (problem.target[:, None] - problem.speed * tau) - problem.speed)
    trial = tau[None] + np.eye(modalities)[:, None]  # [candidate modality, node, modality]
    possible = (problem.fits(trial) & (trial <= problem.upper).all(axis=-1)).T & (gain > 0)
    worth = np.where(possible, gain / (_price(problem) + 1e-100), -np.inf)
    step: FloatArray = np.eye(modalities)[worth.argmax(axis=1)] * possible.any(1, keepdims=True)
    return step


def _spend(
    problem: RoundProblem, tau: FloatArray, step_of: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    going = problem.servable
    while going.any():
        step = step_of(tau)
        trial = tau + step
        going = going & (trial <= problem.upper).all(axis=1) & problem.fits(trial)
        going &= step.any(axis=1)
        tau = np.where(going[:, None], trial, tau)
    return tau
