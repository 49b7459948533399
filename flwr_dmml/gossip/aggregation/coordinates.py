"""Rules that look at every number by itself (:class:`Coordinates`)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .mean import weighted_mean
from .rule import AggregationRule


class Coordinates(AggregationRule):
    """A rule that sorts the copies of each number."""

    robust: ClassVar[bool] = True

    def __call__(self, own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
        """Return the aggregate ``[rows, length]``; rows with the same neighbours go together."""
        sound = near.isfinite().all(dim=2)
        arrived = weights[:, 1:] > 0
        found = (arrived & ~sound).sum(dim=1).tolist()
        there = arrived & sound
        liars = [
            min(max(0, self.liars(n + odd) - odd), self.most(n))
            for n, odd in zip(there.sum(dim=1).tolist(), found, strict=True)
        ]
        return self.by_rows(own, near, weights, there, liars)

    def by_rows(
        self, own: Tensor, near: Tensor, weights: Tensor, there: Tensor, liars: Sequence[int]
    ) -> Tensor:
        """Return the aggregate ``[rows, length]``, given who is there and how many may lie.

        Parameters
        ----------
        own, near, weights : Tensor
            As for :meth:`__call__`; what one who is not there weighs goes to the own copy.
        there : Tensor
            ``[rows, neighbours]`` bool.
        liars : sequence of int
            By row.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, who in enumerate(there.tolist()):
            groups.setdefault((liars[row], *who), []).append(row)
        result = torch.empty_like(own)
        for (bound, *who), rows in groups.items():
            some = [j for j, is_there in enumerate(who) if is_there]
            share = weights[rows][:, [0, *(1 + j for j in some)]]
            if len(some) < len(who):
                share[:, :1] += 1 - share.sum(dim=1, keepdim=True)
            given = own[rows], near[rows][:, some], share
            result[rows] = self.combine(*given, bound) if bound else weighted_mean(*given)
        return result

    @abstractmethod
    def combine(self, own: Tensor, near: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Return the aggregate ``[rows, length]`` of copies that have all arrived.

        Parameters
        ----------
        own, near, weights : Tensor
            As for :meth:`__call__`.
        liars : int
            How many are assumed, at least 1.
        """
