"""Leaky D-squared: a correction of local steps that forgets, and so goes with any links."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..base.options import Group
from .d2 import D2Rule
from .rule import Mix, State
from .tracking import exchanged

GAIN = 0.25
"""Share of a difference that goes into the correction in a round."""
LAZY = 0.125
"""Share of its own weight that a device keeps: so much is stable on every graph."""


class LeakyD2Options(Group):
    """The option of leaky D-squared."""

    keep: float = Field(
        0.9, ge=0, le=1, description="share of the correction that is kept from round to round"
    )


class LeakyD2Rule(D2Rule):
    """D-squared with a correction that decays, and that accounts for late models.

    Each gradient is corrected by c, which follows how far the neighbours' models y are from the own
    one of the same round. A model that a courier has brought is one round late, l = 1: it is
    compared with the own y of the round before::

        z <- z - lr (g + c)                            y = x + tau / tau_k (z - x)
        x' = y_k / 8 + 7/8 (w_kk y_k + sum_j w_kj y_j(t - l_j))
        c <- keep (c - 1 / (4 lr tau) 7/8 sum_j w_kj (y_j(t - l_j) - y_k(t - l_j)))

    D-squared is exact because the corrections of all owners sum to 0. A message that is lost or
    late breaks that sum for good, and so does a device that joins or leaves. Here the correction
    decays, and any such error with it. The price is a bias; there is none with ``keep = 1`` if
    nothing is late or lost. Keeping an eighth of the own model makes it stable on every graph of
    undirected links; D-squared keeps half. A pair in which one has not trained the block counts
    for the models alone, and so does what two or more couriers have carried.

    References
    ----------
    This project; after Tang et al., "D-squared: Decentralized Training over Decentralized Data",
    ICML 2018.
    """

    name: ClassVar[str] = "leaky-d2"
    paper: ClassVar[str] = "this project, after Tang et al., ICML 2018"
    references: ClassVar[tuple[str, ...]] = ("tang2018d2",)
    options_type: ClassVar[type[Group]] = LeakyD2Options
    linear: ClassVar[bool] = False
    resets: ClassVar[bool] = False
    static: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    loss: ClassVar[Literal["own", "pair", "sender"]] = "own"
    letters: ClassVar[Literal["beat", "newest", "every"]] = "newest"
    options: LeakyD2Options

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return ``I / 8 + 7/8 W``, whose eigenvalues are above -3/4."""
        lazy = weights * (1 - LAZY)
        lazy[:, 0] += LAZY
        return lazy

    def start(self, x: Tensor) -> State:
        """Return no correction, and that nothing has been sent."""
        return {
            **super().start(x),
            "past": torch.zeros_like(x),
            "past-trained": x.new_zeros(len(x), 1),
        }

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Mix, and let c learn from the pairs that have trained."""
        x = mix(0)
        before = state["past"], state["past-trained"]
        c = state["c"] - GAIN * exchanged(mix, 0, before) / state["common"]
        own, trained = mix.own[0].clone(), mix.own[-1].clone()
        kept = {"c": self.options.keep * c, "past": own, "past-trained": trained}
        return x, {**state, **kept}
