"""MoNNA: the mean of the nearest."""

from typing import ClassVar

import torch
from torch import Tensor

from .weighing import Around, Weighing


class Monna(Weighing):
    """The plain mean of the copies nearest to the own: of all but as many as liars are assumed.

    References
    ----------
    Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023.
    """

    name: ClassVar[str] = "monna"
    paper: ClassVar[str] = "Farhadkhani et al., ICML 2023"
    references: ClassVar[tuple[str, ...]] = ("farhadkhani2023robust",)

    def shares(self, around: Around) -> Tensor:
        """Return equal weights of the nearest, the own copy among them."""
        return lowest(around.away.square(), around)


def lowest(scores: Tensor, around: Around) -> Tensor:
    """Return equal weights ``[rows, m]`` of the copies with the lowest scores ``[rows, m]``.

    Of all that are there but as many as liars are assumed.
    """
    order = scores.masked_fill(~around.there, torch.inf).argsort(dim=1, stable=True)
    chosen = order.argsort(dim=1) < (around.count - around.liars)[:, None]
    return chosen.double() / chosen.sum(dim=1, keepdim=True)
