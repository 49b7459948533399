"""The geometric median."""

from typing import ClassVar

import torch
from torch import Tensor

from .weighing import Around, Weighing

STEPS = 100
"""Weiszfeld's steps; they cost next to nothing."""


class GeometricMedian(Weighing):
    """The point from which the sum of weighted distances to all copies is smallest.

    By Weiszfeld's steps from the weighted mean, ``z <- sum_j u_j x_j / sum_j u_j`` with
    ``u_j = w_j / |x_j - z|``.

    References
    ----------
    Weiszfeld, Tohoku Mathematical Journal 1937; Pillutla, Kakade and Harchaoui, "Robust Aggregation
    for Federated Learning", IEEE TSP 2022.
    """

    name: ClassVar[str] = "geometric-median"
    paper: ClassVar[str] = "Pillutla, Kakade and Harchaoui, IEEE TSP 2022"
    references: ClassVar[tuple[str, ...]] = ("pillutla2022robust",)

    def shares(self, around: Around) -> Tensor:
        """Return the weights of the last step."""
        tiny = 1e-9 * around.away.amax(dim=1, keepdim=True) + 1e-300
        shares = around.weights
        for _ in range(STEPS):
            far = around.squares_to(shares).sqrt()
            pull = around.weights / torch.maximum(far, tiny)
            shares = pull / pull.sum(dim=1, keepdim=True)
        return shares
