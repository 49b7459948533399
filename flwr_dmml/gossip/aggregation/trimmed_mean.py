"""The trimmed mean: of each number, the smallest and the largest are dropped."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ...base.options import Group
from .coordinates import Coordinates


class TrimmedMeanOptions(Group):
    """The option of the trimmed mean."""

    equal: bool = Field(
        False, description="average what is left with equal weights, as published; off: the graph's"
    )


class TrimmedMean(Coordinates):
    """Of each number drop the smallest and the largest that neighbours sent, as many as liars.

    ``own + sum_left w_j (x_j - own)``, or with ``equal`` the plain mean of the own one and those
    left. The own one is never dropped.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
    2018; self-centred as in Wu, Chen and Ling, IEEE TSP 2023. The weights are this project's.
    """

    name: ClassVar[str] = "trimmed-mean"
    paper: ClassVar[str] = "Yin et al., ICML 2018"
    references: ClassVar[tuple[str, ...]] = ("yin2018byzantine",)
    options_type: ClassVar[type[Group]] = TrimmedMeanOptions
    options: TrimmedMeanOptions

    def combine(self, own: Tensor, near: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Return the mean of what is left."""
        values, order = near.sort(dim=1)
        left = slice(liars, near.shape[1] - liars)
        values = values[:, left]
        if self.options.equal:
            return (own + values.sum(dim=1)) / (1 + values.shape[1])
        share = weights[:, 1:, None].expand_as(near).gather(1, order[:, left])
        return own + (share * (values - own[:, None])).sum(dim=1)
