"""Exact allocation: the best plan of every device by itself, for the whole fleet at once."""

import numpy as np

from .problem import Allocation, FloatArray, Objective, RoundProblem, planned
from .water_filling import water_filling

_POINTS = 10_000  # of the enumeration for one device; beyond, water-filling
_CELLS = 1_000_000  # of the enumeration at a time


def allocate(problem: RoundProblem, objective: Objective = "max-min") -> Allocation:
    """Return the best plan where devices share nothing, so that each is a problem of its own.

    "max-min" gives every device its largest theta = min V tau with the fewest iterations that
    reach it; what is not needed for that stays in the battery. The plan is balanced: all owned
    modalities keep ``V tau <= theta + V`` or are at tau_min (:meth:`RoundProblem.is_balanced`).
    "proportional" has the same best plan here, since a sum of log theta over independent devices
    is largest where every theta is. "least-squares" brings every V tau as near to
    theta* = tau_max min V as it can; it has no balance constraint, so it may cut a modality that
    is slow and expensive. It is exact while (tau_max - tau_min + 1)^(modalities - 1) <= 10,000,
    else :func:`water_filling` ("approximate").

    Source: this project (DMML-KD's abstract names the lever, no formula).
    """
    if objective == "least-squares":
        width = int((problem.tau_max - problem.tau_min).max(initial=0)) + 1
        if width ** (problem.speed.shape[1] - 1) > _POINTS:
            return water_filling(problem, objective)
        return planned(problem, _least_squares(problem), objective, "exact")
    return planned(problem, _max_min(problem), objective, "exact")


def _max_min(problem: RoundProblem) -> FloatArray:
    # The best theta is V_m t for some m and integer t, and fewest(theta) only grows with theta:
    # for every m, bisect the largest t that is affordable.
    speed = problem.speed.T  # [modality, node]
    low = np.zeros_like(speed)
    high = problem.upper.T + 1.0
    while (high - low > 1).any():
        middle = (low + high) // 2
        tau = problem.fewest(speed * middle)  # [candidate modality, node, modality]
        reached = (tau <= problem.upper).all(axis=-1) & problem.fits(tau)
        low, high = np.where(reached, middle, low), np.where(reached, high, middle)
    return problem.fewest((speed * low).max(axis=0))


def _least_squares(problem: RoundProblem) -> FloatArray:
    # Nearest to the target first; enumerate only for those who cannot afford that.
    ideal = problem.target[:, None] / problem.speed  # [node, modality], in iterations
    tau = np.clip(np.ceil(ideal - 0.5), problem.lower, problem.upper)
    short = np.flatnonzero(problem.servable & ~problem.fits(tau))
    width = int((problem.tau_max - problem.tau_min).max(initial=0)) + 1
    others = problem.speed.shape[1] - 1
    offsets = (
        np.indices((width,) * others).reshape(others, width**others).T
    )  # [point, modality - 1]
    step = max(1, _CELLS // len(offsets))
    for start in range(0, len(short), step):
        nodes = short[start : start + step]
        tau[nodes] = _enumerate(problem, ideal, offsets, nodes)
    return tau


def _enumerate(
    problem: RoundProblem, ideal: FloatArray, offsets: np.ndarray, nodes: np.ndarray
) -> FloatArray:
    # All tau of all modalities but the last; the best last one is the nearest that is left.
    lower, upper = problem.lower[nodes], problem.upper[nodes]
    first = lower[:, None, :-1] + offsets  # [node, point, modality - 1]
    allowed = (first <= upper[:, None, :-1]).all(axis=-1)  # [node, point]
    last = np.broadcast_to(upper[:, -1:].astype(float), allowed.shape)
    costs = (
        (problem.energy_j[nodes], problem.budget_j[nodes]),
        (problem.seconds[nodes], problem.latency_s[nodes]),
    )
    for cost, limit in costs:
        rest = limit[:, None] * (1 + 1e-12) - (first * cost[:, None, :-1]).sum(axis=-1)
        price = cost[:, -1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(price > 0, np.floor(rest / price), np.where(rest >= 0, np.inf, -1.0))
        last = np.minimum(last, most)
    allowed &= last >= lower[:, -1:]
    last = np.clip(np.ceil(ideal[nodes, -1:] - 0.5), lower[:, -1:], np.maximum(last, lower[:, -1:]))
    weight = np.where(problem.owned, problem.speed**2, 0.0)[nodes]
    cost = weight[:, -1:] * (last - ideal[nodes, -1:]) ** 2
    for m in range(first.shape[-1]):
        cost = cost + weight[:, m, None] * (first[..., m] - ideal[nodes, m, None]) ** 2
    best = np.where(allowed, cost, np.inf).argmin(axis=1)
    row = np.arange(len(nodes))
    return np.concatenate([first[row, best], last[row, best, None]], axis=1).astype(float)
