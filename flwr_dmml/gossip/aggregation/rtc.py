"""Remove, then clip."""

from typing import ClassVar

import torch
from torch import Tensor

from .scclip import clipped
from .weighing import Around, Weighing


class Rtc(Weighing):
    """Remove, then clip: drop the farthest up to a weight, clip the rest around the own copy.

    The weight is d, that of as many neighbours as liars are assumed, of the largest weights. What
    is dropped gives its weight to the own copy, and the rest is clipped to
    ``T^2 = sum_kept w_j |x_j - own|^2 / d``.

    References
    ----------
    Yang and Ghaderi, "Byzantine-Robust Decentralized Learning via Remove-then-Clip Aggregation",
    AAAI 2024. Public code measures from where the round began, the abstract from the local value,
    as here.
    """

    name: ClassVar[str] = "rtc"
    paper: ClassVar[str] = "Yang and Ghaderi, AAAI 2024"
    references: ClassVar[tuple[str, ...]] = ("yang2024byzantine",)

    def shares(self, around: Around) -> Tensor:
        """Return the weights, what is removed or clipped away given to the own copy."""
        others = around.weights.clone()
        others[:, 0] = 0.0
        largest = others.sort(dim=1, descending=True).values.cumsum(dim=1)
        bound = largest.gather(1, around.liars[:, None].clamp(min=1) - 1)  # d, [rows, 1]
        order = around.away.masked_fill(~around.there, -1.0).argsort(
            dim=1, descending=True, stable=True
        )
        taken = others.gather(1, order).cumsum(dim=1) <= bound + 1e-9
        removed = torch.zeros_like(around.there).scatter(1, order, taken)
        kept = others * ~removed
        spread = (kept * around.away.square()).sum(dim=1, keepdim=True)
        return clipped(kept, around, (spread / bound).sqrt())
