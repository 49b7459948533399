"""The rules by which a round's energy becomes iterations of every modality."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ...base.seeding import numpy_generator
from ...energy.allocation import Allocation, RoundProblem, allocate, sync_only, uniform
from ...energy.costs import FleetCosts
from ...energy.ledger import Floats
from ...learning.balance import effective_speeds
from ...settings import Settings

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
"""Rules by their name in ``allocation.rule``: (problem, whether this round trains) -> plan."""


def _least_squares(problem: RoundProblem) -> Allocation:
    """Return the least-squares plan, but uniform where all speeds of a device are alike."""
    plan, even = allocate(problem, "least-squares"), uniform(problem)
    speed = np.where(problem.owned, problem.speed, np.nan)  # [node, modality]
    differs = np.nanmax(speed, axis=1, initial=-1.0) > np.nanmin(speed, axis=1, initial=np.inf)
    return replace(plan, tau=np.where(differs[:, None], plan.tau, even.tau))


def ruling_speeds(
    settings: Settings,
    costs: FleetCosts,
    server_round: int,
    speeds: Mapping[int, Mapping[str, float]],
) -> Floats:
    """Return the speeds ``[node, modality]`` that the rule goes by; all 1 is uniform."""
    rule, shape = settings.allocation, costs.owned.shape
    if rule.rule == "random":
        draws = numpy_generator(settings.seed, "allocation", server_round).random(shape)
        return np.asarray(rule.max_ratio**draws)
    table = np.ones(shape)
    if rule.rule not in ("auto", "uniform", "sync-only") and server_round > rule.warm_up:
        for k, known in speeds.items():
            own = costs.modalities_of(k)
            around = {m: known.get(m, np.nan) for m in own}
            values = effective_speeds(around, exponent=rule.exponent, max_ratio=rule.max_ratio)
            table[k, costs.owned[k]] = [values[m] for m in own]
    return table
