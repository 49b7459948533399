"""Iterative outlier scissor: drop what is farthest from the mean of the rest."""

from typing import ClassVar

import torch
from torch import Tensor

from .weighing import Around, Weighing


class Ios(Weighing):
    """Drop the copy that is farthest from the weighted mean of those left, as often as liars.

    The own one is never dropped. It finds liars that are far away, and drops as many honest
    neighbours where liars are near.

    References
    ----------
    Wu, Chen and Ling, "Byzantine-Resilient Decentralized Stochastic Optimization with Robust
    Aggregation Rules", IEEE TSP 2023.
    """

    name: ClassVar[str] = "ios"
    paper: ClassVar[str] = "Wu, Chen and Ling, IEEE TSP 2023"
    references: ClassVar[tuple[str, ...]] = ("wu2023byzantine",)

    def shares(self, around: Around) -> Tensor:
        """Return the weights of those that are kept."""
        return around.kept(self.keep(around))

    def keep(self, around: Around) -> Tensor:
        """Return which copies are kept, ``[rows, m]`` bool."""
        keep = around.there.clone()
        for done in range(int(around.liars.max())):
            squares = around.squares_to(around.kept(keep)).masked_fill(~keep, -1.0)
            squares[:, 0] = -2.0
            worst = squares.argmax(dim=1)
            rows = torch.nonzero(around.liars > done).flatten()
            keep[rows, worst[rows]] = False
        return keep
