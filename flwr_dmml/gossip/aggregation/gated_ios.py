"""Iterative outlier scissor with a gate, and the rule that is recommended."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ...base.options import Group
from .ios import Ios
from .rule import ASSUMED
from .weighing import Around


class GatedIosOptions(Group):
    """The option of the gate."""

    gate: float = Field(
        3.0,
        ge=0,
        description="take back what is dropped if up to so many times as far as the farthest kept",
    )


class GatedIos(Ios):
    """As ios, and take back what is not far: up to ``gate`` times as far as the farthest kept.

    A liar that stays as near as honest neighbours does little harm; to drop an honest one on data
    that differ does much. Distances are those from the mean of what is kept, the own copy's among
    them. A gate of 0 is ios, one of infinity the mean; 2 serves best where the number of liars is
    known, 3 where it is a guess.

    References
    ----------
    This project's, on :class:`Ios`.
    """

    name: ClassVar[str] = "gated-ios"
    paper: ClassVar[str] = "this project, on Wu, Chen and Ling, IEEE TSP 2023"
    options_type: ClassVar[type[Group]] = GatedIosOptions
    options: GatedIosOptions

    def keep(self, around: Around) -> Tensor:
        """Return which copies are kept, ``[rows, m]`` bool."""
        keep = super().keep(around)
        squares = around.squares_to(around.kept(keep))
        farthest = squares.masked_fill(~keep, 0.0).amax(dim=1, keepdim=True)
        return keep | (around.there & (squares <= self.options.gate**2 * farthest))


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
