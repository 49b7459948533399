"""Multi-Krum: the mean of the copies that have near company."""

from typing import ClassVar

import torch
from torch import Tensor

from .monna import lowest
from .weighing import Around, Weighing


class MultiKrum(Weighing):
    """The plain mean of the copies whose nearest others are nearest.

    Of ``m`` copies, the own among them, and ``b`` liars, a copy's score is the sum of squared
    distances to the ``m - b - 2`` nearest others; the ``m - b`` lowest are averaged. It needs
    ``m >= 2 b + 3``, and data that are alike.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017.
    """

    name: ClassVar[str] = "multi-krum"
    paper: ClassVar[str] = "Blanchard et al., NeurIPS 2017"
    references: ClassVar[tuple[str, ...]] = ("blanchard2017machine",)

    def most(self, neighbours: int) -> int:
        """Return how many may lie."""
        return max(0, (neighbours - 2) // 2)

    def shares(self, around: Around) -> Tensor:
        """Return equal weights of those with the lowest scores."""
        apart = around.apart.masked_fill(~around.there[:, None], torch.inf)
        apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        counted = torch.arange(apart.shape[1]) < (around.count - around.liars - 2)[:, None]
        ordered = torch.where(counted[:, None], apart.sort(dim=2).values, 0.0)
        scores = ordered.sum(dim=2)
        return lowest(scores, around)
