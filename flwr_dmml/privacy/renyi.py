"""Epsilon by Renyi differential privacy of the sampled Gaussian mechanism."""

from collections.abc import Iterable
from functools import lru_cache
from math import lgamma, log

import numpy as np

from ..energy.ledger import Floats

Event = tuple[float, float, int]
"""Noise multiplier, sampling rate in (0, 1], and number of steps."""

MOST = 256
"""The highest order that is tried."""
_WHOLE = np.arange(1, MOST + 1)
_ORDERS = np.union1d(np.arange(1.05, 12.0, 0.05), _WHOLE[1:])


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


def renyi_epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the least epsilon at ``delta`` over all orders, see :func:`.epsilon_of`.

    From orders alpha to epsilon: ``eps(alpha) + log((alpha-1)/alpha) - (log delta + log alpha) /
    (alpha-1)`` (Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy",
    NeurIPS 2020).
    """
    moments = np.sum([steps * _one_step(sigma, rate) for sigma, rate, steps in events], axis=0)
    a = _ORDERS
    found = moments / (a - 1) + np.log((a - 1) / a) - (log(delta) + np.log(a)) / (a - 1)
    return float(max(0.0, found.min()))
