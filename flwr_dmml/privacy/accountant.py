"""What a device has spent of its privacy: epsilon of repeated Gaussian noise on sampled batches."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, sqrt
from typing import Literal

import torch
from torch import Tensor

from .loss_distribution import loss_epsilon
from .renyi import Event, renyi_epsilon

Accountant = Literal["rdp", "pld"]
"""How epsilon is found: a bound by Renyi divergences, or by the privacy loss's distribution."""
_EPSILON = {"rdp": renyi_epsilon, "pld": loss_epsilon}
_SIGMAS = 0.05, 2.0**20
_DIGITS = 1e4
"""A noise multiplier that is found is rounded up to its fourth decimal place."""


def epsilon_of(events: Iterable[Event], delta: float, by: Accountant = "rdp") -> float:
    """Return the epsilon at ``delta`` of steps whose noise and batches are drawn independently.

    Data sets are neighbours if one has a sample more than the other.

    Parameters
    ----------
    events : iterable of (float, float, int)
        Noise multiplier, at least 0, sampling rate in (0, 1], and number of steps, each.
    delta : float
        In (0, 1).
    by : {"rdp", "pld"} (default: "rdp")
        The accountant: :func:`.renyi_epsilon`, or :func:`.loss_epsilon`, which is never more, and
        is slower.

    Raises
    ------
    LibraryError
        The library of ``"pld"`` is missing or does not load.
    """
    every = [(sigma, rate, steps) for sigma, rate, steps in events if steps]
    if not every:
        return 0.0
    if not all(sigma for sigma, _, _ in every):
        return inf
    return _EPSILON[by](every, delta)


@lru_cache(maxsize=4096)
def sigma_for(
    epsilon: float, rate: float, steps: int, delta: float, by: Accountant = "rdp"
) -> float:
    """Return the least noise multiplier, to 1e-4, with which so many steps stay within epsilon.

    Raises
    ------
    ValueError
        There is none below 2^20.
    """
    low, high = _SIGMAS
    if epsilon_of([(high, rate, steps)], delta) > epsilon:
        raise ValueError(f"no noise makes epsilon {epsilon:g} at delta {delta:g}: allow more")
    if by != "rdp":
        high = sigma_for(epsilon, rate, steps, delta)  # the bound of "rdp" is never less
    while high > low + 0.5 / _DIGITS and high > low * (1 + 1e-6):
        middle = sqrt(low * high)
        if epsilon_of([(middle, rate, steps)], delta, by) <= epsilon:
            high = middle
        else:
            low = middle
    return ceil(high * _DIGITS) / _DIGITS


def steps_within(
    epsilon: float, sigma: float, rate: float, delta: float, most: int, by: Accountant = "rdp"
) -> int:
    """Return how many steps, ``most`` at most, stay within epsilon."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon_of([(sigma, rate, middle)], delta, by) <= epsilon:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Ledger:
    """What a device has spent.

    Attributes
    ----------
    events : tuple of (float, float, int)
        Noise multiplier, sampling rate and number of steps, in their order.
    """

    events: tuple[Event, ...] = ()

    def plus(self, sigma: float, rate: float, steps: int) -> "Ledger":
        """Return the ledger with so many steps more."""
        if self.events and self.events[-1][:2] == (sigma, rate):
            steps += self.events[-1][2]
            return Ledger((*self.events[:-1], (sigma, rate, steps)))
        return Ledger((*self.events, (sigma, rate, steps)))

    def epsilon(self, delta: float, by: Accountant = "rdp") -> float:
        """Return the epsilon of all of it at ``delta``, see :func:`epsilon_of`."""
        return epsilon_of(self.events, delta, by)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(steps for _, _, steps in self.events)

    def tensor(self) -> Tensor:
        """Return the events as rows ``[events, 3]``, float64, for a state."""
        return torch.tensor(self.events, dtype=torch.float64).reshape(-1, 3)

    @classmethod
    def of(cls, rows: Tensor) -> "Ledger":
        """Return the ledger of a :meth:`tensor`."""
        return cls(tuple((sigma, rate, int(steps)) for sigma, rate, steps in rows.tolist()))
