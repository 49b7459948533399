"""Epsilon by the distribution of the privacy loss, with the library dp-accounting."""

from collections.abc import Iterable
from functools import lru_cache

from ..base.libraries import needed
from .renyi import Event, renyi_epsilon

GRID = 1e-3
"""Between the privacy losses that are told apart: a finer one changes the fourth digit."""
POINTS = 1e6
"""Of the grid, about: it is coarser where losses are large, so that it fits in memory."""


def loss_epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the epsilon at ``delta``, see :func:`.epsilon_of`.

    Privacy loss distributions (Koskela, Jalko and Honkela, "Computing Tight Differential Privacy
    Guarantees Using FFT", AISTATS 2020), with the grid of Doroshenko et al. ("Connect the Dots",
    PETS 2022), which bounds them from above. Where the bound of :func:`.renyi_epsilon` is the
    lesser one, it is returned.

    Raises
    ------
    LibraryError
        dp-accounting is missing or does not load.
    """
    return _epsilon(tuple(events), delta)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    with needed("dp_accounting"):
        from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
    most = renyi_epsilon(events, delta)
    accountant = PLDAccountant(value_discretization_interval=max(GRID, most / POINTS))
    for sigma, rate, steps in events:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
    return min(most, float(accountant.get_epsilon(delta)))
