"""Differences of two groups of runs, paired by seed, and what they say about chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import sqrt
from statistics import fmean, stdev

import numpy as np

from ..base.libraries import needed

EXACT = 16
"""Up to so many seeds all sign flips are gone through; beyond, 100,000 are drawn."""
LEVEL = 0.05
"""Below it a p is called unlikely to be chance; intervals hold 1 minus it."""


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p of the paired sign-flip permutation test of a mean of zero.

    The share of all ``2^n`` ways to flip the signs whose mean is at least as far from zero as the
    observed one (Fisher's randomisation test). Beyond :data:`EXACT` differences 100,000 flips are
    drawn with a fixed seed, and the observed one is counted as one more.
    """
    values = np.asarray(differences, float)
    observed = abs(values.sum())
    reach = observed - 1e-9 * np.abs(values).sum()  # rounding must not lose a tie
    if len(values) <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= reach).mean())
    generator = np.random.default_rng(0)
    drawn = generator.choice((1.0, -1.0), size=(100_000, len(values))) @ values
    return float(((np.abs(drawn) >= reach).sum() + 1) / (len(drawn) + 1))


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of two or more paired differences."""
    with needed("scipy"):
        from scipy.stats import t
    half = t.ppf(1 - LEVEL / 2, len(differences) - 1) * standard_error(differences)
    return fmean(differences) - half, fmean(differences) + half


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of two or more values."""
    return stdev(values) / sqrt(len(values))


@dataclass(frozen=True)
class Paired:
    """Differences of two groups on the seeds that both have.

    Attributes
    ----------
    differences : dict of int to float
        Second group minus first, by seed, in the unit of what was compared.
    """

    differences: dict[int, float]

    @classmethod
    def of(cls, base: Mapping[int, float], other: Mapping[int, float]) -> "Paired":
        """Pair the values of two groups, each by seed."""
        return cls({seed: other[seed] - base[seed] for seed in sorted(base.keys() & other.keys())})

    @property
    def values(self) -> list[float]:
        """The differences, by seed."""
        return list(self.differences.values())

    @property
    def mean(self) -> float | None:
        """The mean difference; None without a common seed."""
        return fmean(self.values) if self.differences else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the paired t distribution; None with fewer than two seeds."""
        return t_interval(self.values) if len(self.differences) > 1 else None

    @cached_property
    def p(self) -> float | None:
        """The p of the sign-flip test; None with fewer than two seeds."""
        return sign_flip(self.values) if len(self.differences) > 1 else None

    @property
    def smallest_p(self) -> float:
        """The least that the p can be with so many seeds."""
        count = len(self.differences)
        return 2.0 ** (1 - count) if count <= EXACT else 1 / 100_001

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def reading(self) -> str:
        """What so many seeds can say about chance, in words."""
        if not self.differences:
            return "no seed in common, so nothing can be paired"
        if self.p is None:
            return "one seed says nothing about chance"
        if self.smallest_p > LEVEL:
            return f"too few seeds: p cannot be below {self.smallest_p:.3g}"
        return "unlikely to be chance alone" if self.p <= LEVEL else "may well be chance"
