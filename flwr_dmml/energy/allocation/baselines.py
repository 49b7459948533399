"""Simple rules to compare with: all are called with a problem, like :func:`allocate`."""

import numpy as np

from .problem import Allocation, RoundProblem, planned, require


def uniform(problem: RoundProblem) -> Allocation:
    """Return the same number for all modalities of a device: the largest that it can afford.

    The fair comparison: the budget is the same, the speeds are not looked at.
    """
    low, high = problem.tau_min, problem.tau_max + 1  # bisect
    while (high - low > 1).any():
        middle = (low + high) // 2
        fits = problem.fits(problem.owned * middle[:, None])
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return planned(problem, problem.owned * low[:, None], "max-min", "rule")


def fixed(problem: RoundProblem, *, iterations: int = 10) -> Allocation:
    """Return ``iterations``, kept within the bounds, everywhere; who cannot pay is parked."""
    require(iterations >= 0, f"iterations must be at least 0, not {iterations}")
    tau = np.clip(problem.owned * iterations, problem.lower, problem.upper)
    parked = ~(problem.owned.any(axis=1) & problem.fits(tau))
    return planned(problem, tau, "max-min", "rule", parked=parked)


def sync_only(problem: RoundProblem, *, server_round: int = 1, train_every: int = 2) -> Allocation:
    """Return :func:`uniform` in rounds 1, 1 + train_every, ...; in the others nobody trains.

    Devices still exchange and mix their models in every round. Source: the idea of SkipTrain,
    Dhasade et al., "Energy-Aware Decentralized Learning with Intermittent Model Training", 2024.
    """
    require(train_every >= 1, f"train_every must be at least 1, not {train_every}")
    if (server_round - 1) % train_every == 0:
        return uniform(problem)
    tau = np.zeros_like(problem.upper)
    note = f"round {server_round}: devices only exchange, they train every {train_every} rounds"
    return planned(problem, tau, "max-min", "rule", note)
