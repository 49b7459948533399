"""Iterative outlier scissor with a gate, and the rule that is recommended."""

from dataclasses import replace
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
ODD_ONE = 3.0
"""Times the distance of the nearest: a copy farther than that is out of reach of any honest one."""
AGAINST = -0.5
"""Cosine from which on a copy pulls against the others, seen from the own one."""


class GatedIosOptions(Group):
    """The options of gated-ios."""

    gate: float = Field(
        3.0,
        ge=0,
        description="take back a dropped copy up to this many times as far as the farthest kept",
    )
    along: float = Field(
        0.5,
        ge=0,
        description="drop a copy that differs along the mean by this many times that; 0: off",
    )
    ahead: float = Field(
        0.2,
        gt=0,
        le=1,
        description="drop what lies ahead: cosine to the own progress above this; 1: off",
    )
    behind: float = Field(
        0.0,
        ge=0,
        description="drop what lacks more than this share of the own drift over ten rounds; 0: off",
    )
    reach: float = Field(
        0.9,
        ge=0,
        description="drop a copy farther from one's own than this many of its norms; 0: off",
    )


class GatedIos(Ios):
    """As ios, but take back what is not far, and drop what pulls against or along the model.

    Dropping is only spent on what does harm: to drop an honest neighbour on data that differ costs
    more than a liar does that stays among the honest ones. Five kinds do harm, and a sixth may.

    *Out of reach.* Devices that train a model together stay within a part of its norm; noise,
    zeros, and flipped or scaled models do not. What is farther from the own copy than ``reach``
    times its norm is dropped first, however many these are: also where liars cannot be outvoted, or
    are the only neighbours. Where three neighbours or more are all so far, as the own copy is the
    odd one or the block a small one that data pull apart, those are dropped that are farther than
    :data:`ODD_ONE` times the nearest.

    *Ahead.* What a device has learned since the last mixing, its progress p, is its own: seen from
    its copy, honest neighbours lie behind, and the cosine between ``x_j - own`` and p is negative.
    One above ``ahead`` pushes on where the device has gone by itself. That is what a lie does that
    keeps it from learning of others, or drives it apart from them, and it tells which is the lie
    even between a liar and one honest neighbour. It is dropped, too, however many these are.

    *Behind*, where that is asked for. A device remembers where it was, as a slow mean over about
    ten rounds of where its training began; d is what it has drifted since. Neighbours that learn
    drift with it. A copy that lacks more than ``behind`` times d, ``-(x_j - own) . d > behind
    |d|^2``, is an old one, and holds all back; it is dropped, too. Not before the drift is longer
    than the last progress: in the first rounds one's own progress makes up most of it.

    *Far.* Of what ios drops of the rest, comes back what is up to ``gate`` times as far as the
    farthest that is kept, the own copy among them, from the mean of what is kept; of three
    neighbours or fewer all that is within reach, as they tell too little of how far honest ones
    are. 2 serves best where the number of liars is known, 3 where it is a guess. A gate of 0 is
    ios.

    *Against the others.* Seen from the own copy, honest neighbours lie on one side: all of them
    lack what it alone has learned. A liar that holds it back, or drives neighbours apart, lies on
    the other side. So what ios drops does not come back if its cosine to the mean of what is kept
    is below :data:`AGAINST`.

    *Along the model.* A liar that takes a little less of the model every round stays near. What a
    copy has along the mean m of what is kept, ``x_j . m / |m|``, hardly differs between honest
    neighbours, who differ in all directions. So what is left of the number of liars is spent on
    those whose length differs from the median of all by more than ``along`` times the farthest
    kept, and by more than :data:`ODD` times what the middle one of all does.

    The own copy counts as honest: half of the neighbours may lie.

    References
    ----------
    This project's, on :class:`Ios`.
    """

    name: ClassVar[str] = "gated-ios"
    paper: ClassVar[str] = "this project, on Wu, Chen and Ling, IEEE TSP 2023"
    references: ClassVar[tuple[str, ...]] = ("wu2023byzantine",)
    options_type: ClassVar[type[Group]] = GatedIosOptions
    options: GatedIosOptions

    @property
    def remembers(self) -> int:
        """Where training began, and for ``behind`` a slow mean of that."""
        return 2 if self.options.behind else int(self.options.ahead < 1)

    @property
    def alone(self) -> bool:
        """Whether it compares copies with the own one, its progress, or its drift."""
        o = self.options
        return o.reach > 0 or o.ahead < 1 or o.behind > 0

    def most(self, neighbours: int) -> int:
        """Return how many may lie: half, as the own copy is honest."""
        return neighbours // 2

    def keep(self, around: Around) -> Tensor:
        """Return which copies are kept, ``[rows, m]`` bool."""
        around = self.within(around)
        keep = super().keep(around)
        shares = around.kept(keep)
        squares = around.squares_to(shares)
        farthest = squares.masked_fill(~keep, 0.0).amax(dim=1, keepdim=True)
        back = squares <= self.options.gate**2 * farthest
        if self.options.gate:
            back |= (around.count[:, None] < 5) & ~self.far(around)
            back &= around.cosines(shares) > AGAINST
        keep = keep | (around.there & back)
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

    def far(self, around: Around) -> Tensor:
        """Return which copies are out of reach, ``[rows, m]`` bool."""
        away, bound = around.away, self.options.reach * around.norm
        nearest = away.masked_fill(~around.there, torch.inf)[:, 1:]
        nearest = nearest.amin(dim=1) if nearest.shape[1] else bound
        odd = (around.count > 3) & (nearest > bound) & (self.options.reach > 0)
        return away > torch.where(odd, ODD_ONE * nearest, bound)[:, None]

    def within(self, around: Around) -> Around:
        """Return the same without those out of reach, ahead or behind: liars that are found."""
        far = self.far(around) if self.options.reach else torch.zeros_like(around.there)
        far |= around.ahead > self.options.ahead
        if self.options.behind:
            far |= around.behind > self.options.behind
        far &= around.there
        far &= ((around.there & ~far).sum(dim=1) + (around.count < 4) > 1)[:, None]
        if not bool(far.any()):
            return around
        there = around.there & ~far
        left = torch.minimum(around.liars - far.sum(dim=1), (there.sum(dim=1) - 1) // 2)
        weights = around.kept(there)
        return replace(around, there=there, weights=weights, liars=left.clamp(min=0))


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
