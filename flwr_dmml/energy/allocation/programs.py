"""The fleet's problem in cvxpy, compiled once for a number of devices and re-solved every round.

Everything that changes from round to round is a ``cp.Parameter`` (DPP), scaled so that a budget,
theta* = tau_max min V and an equal share of the band are 1. Devices that are not ``served`` cost
nothing and are worth nothing.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from .problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Objective,
    RoundProblem,
    log_theta,
    squared_distance,
)
from .shared_band import SharedBand


class SolverFailed(RuntimeError):
    """The solver gave no optimal solution; the message says why."""


def solve(problem: cp.Problem, solver: str, attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Solve with the first options that work; return whether the solution is accurate.

    It begins afresh, not from the last solution: a resumed run has none, and is to be the same.

    Raises
    ------
    SolverFailed
        No attempt gave a solution; the message is that of the last.
    """
    failure = "no attempt was made"
    for options in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "may be inaccurate": returned
                problem.solve(solver=solver, enforce_dpp=True, warm_start=False, **options)
        except (cp.SolverError, ValueError, TypeError, ArithmeticError) as error:
            failure = str(error).strip().partition("\n")[0]
            continue
        if problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            return bool(problem.status == cp.OPTIMAL)
        failure = f"its status is {problem.status}"
    raise SolverFailed(failure)


class IntegerProgram:
    """The fleet problem for given budgets: a mixed-integer linear program."""

    def __init__(self, nodes: int, modalities: int) -> None:
        shape = (nodes, modalities)
        self.tau, phi = cp.Variable(shape, integer=True), cp.Variable(nodes)  # phi: theta / theta*
        free = cp.Variable(shape, boolean=True)
        self.speed = cp.Parameter(shape, nonneg=True)  # V / theta*; 0 where nothing is trained
        self.absent = cp.Parameter(shape, nonneg=True)  # 1 where nothing is trained
        self.lower = cp.Parameter(shape, nonneg=True)
        self.range = cp.Parameter(shape, nonneg=True)  # to the largest tau
        self.energy = cp.Parameter(shape, nonneg=True)  # of an iteration, of the budget
        self.latency = cp.Parameter(shape, nonneg=True)
        self.ahead = cp.Parameter(shape, nonneg=True)  # V (tau_min - 1), or 0
        self.weight = cp.Parameter(nodes, nonneg=True)
        progress = cp.multiply(self.speed, self.tau)
        theta = phi[:, None]
        constraints = [
            phi <= 1,
            theta <= progress + self.absent,
            self.tau >= self.lower,
            cp.sum(cp.multiply(self.energy, self.tau), axis=1) <= 1,
            cp.sum(cp.multiply(self.latency, self.tau), axis=1) <= 1,
            # V tau <= theta + V, or else tau = tau_min (free = 1; RoundProblem.is_balanced)
            progress <= theta + self.speed + cp.multiply(self.ahead, free),
            self.tau <= self.lower + cp.multiply(self.range, 1 - free),
        ]
        self.problem = cp.Problem(cp.Maximize(self.weight @ phi), constraints)

    def fill(self, problem: RoundProblem) -> None:
        """Set the parameters to those of a round."""
        served = problem.servable
        trained, target = problem.owned & served[:, None], _positive(problem.target)
        speed = np.where(trained, problem.speed / target[:, None], 0.0)
        lower = np.where(trained, problem.lower, 0)
        self.speed.value, self.lower.value = speed, lower
        self.absent.value = 1.0 - trained
        self.range.value = np.where(trained, problem.upper, 0) - lower
        self.energy.value = _of_budget(problem.energy_j, problem.budget_j[:, None]) * trained
        self.latency.value = _of_budget(problem.seconds, problem.latency_s[:, None]) * trained
        self.ahead.value = speed * np.maximum(lower - 1, 0)
        self.weight.value = target * served / target.mean()

    def plan(self) -> IntArray:
        """Return tau ``[node, modality]``."""
        tau: IntArray = np.rint(np.asarray(self.tau.value)).astype(np.int64)
        return tau


class BandProgram:
    """The convex relaxation with a shared band: real tau, and a share of the band for each.

    The variables are the progress V tau / theta* beyond that of tau_min; phi = theta / theta*; the
    share of the band; and the rate, relative to that of an equal share. Sending takes radio / rate
    of a budget, so ``rate (1 - what iterations take) >= radio``, a second-order cone. The rate is
    b log(1 + c / b) = -rel_entr(b, b + c), with the second argument divided by s = max(1, c),
    which keeps its cone well scaled: ``b log s - rel_entr(b, (b + c) / s)``. The balance
    constraint needs no place here: the least tau for a theta keeps it.
    """

    def __init__(self, nodes: int, modalities: int, objective: Objective) -> None:
        self.objective = objective
        shape = (nodes, modalities)
        self.start = cp.Parameter(shape, nonneg=True)  # progress at tau_min
        self.weight = cp.Parameter(nodes, nonneg=True)
        more = cp.Variable(shape, bounds=[0, 1])
        self.share, rate = cp.Variable(nodes, nonneg=True), cp.Variable(nodes, nonneg=True)
        self.costs = [cp.Parameter(shape, nonneg=True) for _ in range(2)]  # joules, seconds
        self.left = [cp.Parameter(nodes) for _ in range(2)]  # of a budget, after tau_min
        self.root_radio = [cp.Parameter(nodes, nonneg=True) for _ in range(2)]
        self.channel = [cp.Parameter(nodes, nonneg=True) for _ in range(4)]
        slope, offset, log_s, log1p_c = self.channel
        shannon = cp.multiply(log_s, self.share) - cp.rel_entr(
            self.share, cp.multiply(slope, self.share) + offset
        )
        slack = cp.hstack(
            [
                left - cp.sum(cp.multiply(cost, more), axis=1)
                for left, cost in zip(self.left, self.costs, strict=True)
            ]
        )
        rates = cp.hstack([rate, rate])
        constraints = [
            cp.sum(self.share) <= nodes,
            cp.multiply(log1p_c, rate) <= shannon,
            # rate slack >= radio
            cp.SOC(rates + slack, cp.vstack([2 * cp.hstack(self.root_radio), rates - slack])),
        ]
        if objective == "least-squares":
            behind = cp.Variable(shape)  # the square of a parameter would not be DPP
            constraints.append(behind == 1 - self.start - more)
            goal = cp.Minimize(self.weight @ cp.sum(cp.square(behind), axis=1))
        else:
            phi = cp.Variable(nodes, bounds=[0, 1])
            constraints.append(phi[:, None] <= self.start + more)
            gain = cp.log(phi) if objective == "proportional" else phi
            goal = cp.Maximize(self.weight @ gain)
        self.problem = cp.Problem(goal, constraints)

    def fill(self, problem: RoundProblem, band: SharedBand, served: BoolArray) -> None:
        """Set the parameters to those of a round."""
        self.active = served & (problem.target > 0)  # the others have nothing to gain
        trained, target = problem.owned & self.active[:, None], _positive(problem.target)
        speed = problem.speed / target[:, None]
        self.start.value = np.where(trained, speed * problem.lower, 1.0)
        equal_hz = band.total_hz / len(served)
        time = band.seconds(np.full(len(served), equal_hz))
        for cost, radio, limit, costs, left, root in zip(
            (problem.energy_j, problem.seconds),
            (band.power_w * time, time),
            (problem.budget_j, problem.latency_s),
            self.costs,
            self.left,
            self.root_radio,
            strict=True,
        ):
            iteration = _of_budget(cost, limit[:, None]) * trained
            costs.value = iteration / speed
            left.value = 1.0 - (iteration * problem.lower).sum(axis=1)
            root.value = np.sqrt(_of_budget(radio, limit)) * served
        c = np.where(served, band.snr_hz / equal_hz, 1.0)
        s = np.maximum(1.0, c)
        values = (1 / s, c / s, np.log(s), np.log1p(c))
        for parameter, value in zip(self.channel, values, strict=True):
            parameter.value = value
        power = {"max-min": 1, "proportional": 0, "least-squares": 2}[self.objective]
        self.weight.value = (target / target.mean()) ** power * self.active

    def shares_hz(self, band: SharedBand) -> FloatArray:
        """Return the bandwidth of each device ``[node]``."""
        share = np.maximum(np.asarray(self.share.value, dtype=float), 0.0)
        shares_hz: FloatArray = share * band.total_hz / len(share)
        return shares_hz

    def bound(self, problem: RoundProblem) -> float:
        """Return the objective of the relaxation in the units of the problem."""
        value = float(np.asarray(self.problem.value))
        mean = float(_positive(problem.target).mean())
        if self.objective == "proportional":
            theta = np.where(self.active, problem.target, 0.0)  # phi = 1
            return value + float(log_theta(problem, theta).sum())
        if self.objective == "max-min":
            return value * mean
        lost = squared_distance(problem, np.zeros_like(problem.upper)).sum(axis=1)
        return value * mean**2 + float(lost[~self.active].sum())


def _positive(target: FloatArray) -> FloatArray:
    known = target[target > 0]
    return np.where(target > 0, target, known.mean() if len(known) else 1.0)


def _of_budget(cost: FloatArray, limit: FloatArray) -> FloatArray:
    """Return cost / limit; a budget of 0 (or less) is as good as one of 1e-9 of its cost."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(limit > 0, np.minimum(cost / limit, 1e9), np.where(cost > 0, 1e9, 0.0))
