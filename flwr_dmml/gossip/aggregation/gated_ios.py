"""Iterative outlier scissor with a gate, and the rule that is recommended."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...base.options import Group
from .ios import Ios
from .rule import ASSUMED
from .weighing import Around

ODD = 8.0
"""Times the middle deviation of all; of honest devices' blocks, one in fifty is beyond that."""


class GatedIosOptions(Group):
    """The option of the gate."""

    gate: float = Field(
        3.0,
        ge=0,
        description="take back what is dropped if up to so many times as far as the farthest kept",
    )
    along: float = Field(
        0.5,
        ge=0,
        description="drop what differs along the mean by so many times that distance; 0: off",
    )


class GatedIos(Ios):
    """As ios, but take back what is not far, and drop what pulls along the model.

    Back comes what is up to ``gate`` times as far as the farthest that is kept, the own copy among
    them, from the mean of what is kept. A liar that stays as near as honest neighbours does little
    harm; to drop an honest one on data that differ does much. A gate of 0 is ios; 2 serves best
    where the number of liars is known, 3 where it is a guess.

    One way of a liar that stays near does much harm: every round a little less of the model. What a
    copy has along the mean m of what is kept, ``x_j . m / |m|``, hardly differs between honest
    neighbours, who differ in all directions. So what is left of the number of liars is spent on
    those whose length differs from the median of all by more than ``along`` times the farthest
    kept, and by more than :data:`ODD` times what the middle one of all does.

    References
    ----------
    This project's, on :class:`Ios`.
    """

    name: ClassVar[str] = "gated-ios"
    paper: ClassVar[str] = "this project, on Wu, Chen and Ling, IEEE TSP 2023"
    references: ClassVar[tuple[str, ...]] = ("wu2023byzantine",)
    options_type: ClassVar[type[Group]] = GatedIosOptions
    options: GatedIosOptions

    def keep(self, around: Around) -> Tensor:
        """Return which copies are kept, ``[rows, m]`` bool."""
        keep = super().keep(around)
        squares = around.squares_to(around.kept(keep))
        farthest = squares.masked_fill(~keep, 0.0).amax(dim=1, keepdim=True)
        keep = keep | (around.there & (squares <= self.options.gate**2 * farthest))
        if not self.options.along:
            return keep
        lengths = around.lengths(around.kept(keep))
        off = (lengths - middle(lengths, around.there)).abs()
        suspect = keep & (off > self.options.along * farthest.sqrt())
        suspect &= off > ODD * middle(off, around.there)
        suspect[:, 0] = False
        left = around.liars - (around.there & ~keep).sum(dim=1)
        order = off.masked_fill(~suspect, -1.0).argsort(dim=1, descending=True, stable=True)
        return keep & ~(suspect & (order.argsort(dim=1) < left[:, None]))


class Robust(GatedIos):
    """The one to take where neighbours may lie: gated-ios, as it stands by default.

    References
    ----------
    As :class:`GatedIos`.
    """

    name: ClassVar[str] = "robust"
    options_type: ClassVar[type[Group]] = Group

    def __init__(self, options: Group, assume_liars: float = ASSUMED) -> None:
        super().__init__(GatedIosOptions(), assume_liars)


def middle(values: Tensor, there: Tensor) -> Tensor:
    """Return the median ``[rows, 1]`` of those values ``[rows, m]`` that are there.

    The mean of the two in the middle of an even number.
    """
    ordered = values.masked_fill(~there, torch.inf).sort(dim=1).values
    count = there.sum(dim=1, keepdim=True)
    return (ordered.gather(1, (count - 1) // 2) + ordered.gather(1, count // 2)) / 2
