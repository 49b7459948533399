"""The median of each number."""

from typing import ClassVar

import torch
from torch import Tensor

from .coordinates import Coordinates


class Median(Coordinates):
    """The median of each number, over the own copy and the neighbours', whatever the weights.

    Of an even number of copies, the mean of the two in the middle.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
    2018.
    """

    name: ClassVar[str] = "median"
    paper: ClassVar[str] = "Yin et al., ICML 2018"
    references: ClassVar[tuple[str, ...]] = ("yin2018byzantine",)

    def combine(self, own: Tensor, near: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Return the median."""
        return median(torch.cat([own[:, None], near], dim=1), dim=1)


def median(x: Tensor, dim: int) -> Tensor:
    """Return the median along a dimension, the mean of the two in the middle of an even number."""
    ordered, count = x.sort(dim=dim).values, x.shape[dim]
    low, high = ((count - 1) // 2, count // 2)
    middle = ordered.select(dim, low)
    return middle if low == high else (middle + ordered.select(dim, high)) / 2


def median_of_those(x: Tensor, there: Tensor) -> Tensor:
    """Return the median over the first dimension, of those that are there; 0 where none is.

    What methods make of neighbours' statistics where neighbours may lie.

    Parameters
    ----------
    x : Tensor
        ``[senders, ...]``, finite.
    there : Tensor
        The same shape, or one that fits it, bool.
    """
    known = torch.where(there, x.double(), torch.nan)
    return torch.nanquantile(known, 0.5, dim=0).nan_to_num(0.0).to(x.dtype)
