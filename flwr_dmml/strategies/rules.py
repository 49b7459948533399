"""The rules by which a round's energy becomes iterations of every modality."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..allocation import Allocation, RoundProblem, allocate, sync_only, uniform

Rule = Callable[[RoundProblem, bool], Allocation]
RULES: dict[str, Rule] = {
    "auto": lambda problem, trains: uniform(problem),  # no method has chosen
    "uniform": lambda problem, trains: uniform(problem),
    "max-min": lambda problem, trains: allocate(problem, "max-min"),
    "proportional": lambda problem, trains: allocate(problem, "proportional"),
    "least-squares": lambda problem, trains: _least_squares(problem),
    "random": lambda problem, trains: allocate(problem, "max-min"),
    "sync-only": lambda problem, trains: sync_only(problem, server_round=1 if trains else 2),
}
"""What ``allocation.rule`` names: (problem, whether this round trains) -> plan."""


def _least_squares(problem: RoundProblem) -> Allocation:
    """Return the least-squares plan, but uniform where all speeds of a device are alike."""
    plan, even = allocate(problem, "least-squares"), uniform(problem)
    speed = np.where(problem.owned, problem.speed, np.nan)  # [node, modality]
    differs = np.nanmax(speed, axis=1, initial=-1.0) > np.nanmin(speed, axis=1, initial=np.inf)
    return replace(plan, tau=np.where(differs[:, None], plan.tau, even.tau))
