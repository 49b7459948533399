"""Epsilon of repeated Gaussian noise on Poisson-sampled batches, by Renyi differential privacy."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, lgamma, log, sqrt

import numpy as np
import torch
from torch import Tensor

from ..energy.ledger import Floats

MOST = 256
"""The highest order that is tried."""
_WHOLE = np.arange(1, MOST + 1)
_ORDERS = np.union1d(np.arange(1.05, 12.0, 0.05), _WHOLE[1:])
_SIGMAS = 0.05, 2.0**20
_DIGITS = 1e4
"""A noise multiplier that is found is rounded up to its fourth decimal place."""


@lru_cache(maxsize=4096)
def _one_step(sigma: float, rate: float) -> Floats:
    """Return ``(alpha - 1) eps(alpha)`` of one step, for each of the orders.

    At whole orders it is ``log sum_k C(alpha, k) (1-q)^(alpha-k) q^k exp((k^2-k) / (2 sigma^2))``
    (Mironov, Talwar and Zhang, 2019), linear in between: it is convex in alpha, so that this is no
    less than what it is there, and 0 at alpha = 1.
    """
    alpha, k = _WHOLE[:, None].astype(float), np.arange(MOST + 1)[None].astype(float)
    if rate >= 1:
        whole = (alpha * (alpha - 1))[:, 0] / (2 * sigma**2)
    else:
        factorial = np.array([lgamma(n + 1) for n in range(MOST + 1)])
        there = k <= alpha
        rest = np.where(there, alpha - k, 0.0)
        terms = factorial[_WHOLE][:, None] - factorial[None] - factorial[rest.astype(int)]
        terms += rest * np.log1p(-rate) + k * log(rate) + (k * k - k) / (2 * sigma**2)
        terms = np.where(there, terms, -np.inf)
        top = terms.max(axis=1)
        whole = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
    found: Floats = np.interp(_ORDERS, _WHOLE, np.maximum(whole, 0.0))
    return found


def epsilon_of(events: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Return the epsilon at ``delta`` of steps whose noise and batches are drawn independently.

    Data sets are neighbours if one has a sample more than the other. From orders alpha to epsilon:
    ``eps(alpha) + log((alpha-1)/alpha) - (log delta + log alpha) / (alpha-1)`` (Canonne, Kamath and
    Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020), the least of all.

    Parameters
    ----------
    events : iterable of (float, float, int)
        Noise multiplier, at least 0, sampling rate in (0, 1], and number of steps, each.
    delta : float
        In (0, 1).
    """
    every = [(sigma, rate, steps) for sigma, rate, steps in events if steps]
    if not every:
        return 0.0
    if not all(sigma for sigma, _, _ in every):
        return inf
    moments = np.sum([steps * _one_step(sigma, rate) for sigma, rate, steps in every], axis=0)
    a = _ORDERS
    found = moments / (a - 1) + np.log((a - 1) / a) - (log(delta) + np.log(a)) / (a - 1)
    return float(max(0.0, found.min()))


@lru_cache(maxsize=4096)
def sigma_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """Return the least noise multiplier, to 1e-4, with which so many steps stay within epsilon.

    Raises
    ------
    ValueError
        There is none below 2^20.
    """
    low, high = _SIGMAS
    if epsilon_of([(high, rate, steps)], delta) > epsilon:
        raise ValueError(f"no noise makes epsilon {epsilon:g} at delta {delta:g}: allow more")
    while high > low + 0.5 / _DIGITS and high > low * (1 + 1e-6):
        middle = sqrt(low * high)
        if epsilon_of([(middle, rate, steps)], delta) <= epsilon:
            high = middle
        else:
            low = middle
    return ceil(high * _DIGITS) / _DIGITS


def steps_within(epsilon: float, sigma: float, rate: float, delta: float, most: int) -> int:
    """Return how many steps, ``most`` at most, stay within epsilon."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon_of([(sigma, rate, middle)], delta) <= epsilon:
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

    events: tuple[tuple[float, float, int], ...] = ()

    def plus(self, sigma: float, rate: float, steps: int) -> "Ledger":
        """Return the ledger with so many steps more."""
        if self.events and self.events[-1][:2] == (sigma, rate):
            steps += self.events[-1][2]
            return Ledger((*self.events[:-1], (sigma, rate, steps)))
        return Ledger((*self.events, (sigma, rate, steps)))

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of all of it at ``delta``."""
        return epsilon_of(self.events, delta)

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
