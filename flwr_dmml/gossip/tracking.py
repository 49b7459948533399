"""The base of rules that learn how a device's gradient differs from the network's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .aggregation.mean import Mean
from .rule import GossipRule, Mix, State


class TrackingRule(GossipRule):
    """A correction c of a device's gradients, whose sum over a block's owners stays 0.

    It changes only by what owners exchange in pairs, as much at one end as at the other::

        c_k <- c_k + sum_j w_kj (v_j - v_k)        over the neighbours j that have trained

    Where either end of a link has not trained the block in the round, the link counts for the
    models alone. So c rests with its device, and the others track the mean over those who train.
    The last thing that is sent of a block is 1 or 0: whether its sender has trained it.
    """

    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block", "number")
    sgd: ClassVar[bool] = True
    normalised: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    loss: ClassVar[Literal["own", "pair", "sender"]] = "pair"
    resets: ClassVar[bool] = True

    def problem(self, vectors: Sequence[Tensor], num_nodes: int) -> str | None:
        """Refuse what is neither trained nor not."""
        trained = float(vectors[-1])
        if trained in (0.0, 1.0):
            return None
        return f"says {trained:g} of whether it was trained; allowed: 0 and 1"

    def start(self, x: Tensor) -> State:
        """Return no correction."""
        return {"c": torch.zeros_like(x)}


def exchanged(mix: Mix, i: int, before: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return ``sum_j w_kj (v_j - v_k)`` of the i-th vector, over the pairs that have trained.

    Of what is late, v_k is what the device itself sent in that round: ``before`` is that of one
    round ago, ``[rows, length]``, and whether it had trained then, ``[rows, 1]``. What is later
    than that does not count; without ``before`` nothing may be late. A rule that is not the mean
    judges copies by where the device itself is, so it is given them as they lie around it.
    """
    own, trained = mix.own[i][:, None], mix.own[-1]
    pairs = mix.weights[:, 1:] * mix.near[-1][:, :, 0]  # [rows, neighbours]
    if before is not None and mix.late is not None:
        then = mix.late == 1
        own = torch.where(then[:, :, None], before[0][:, None], own)
        trained = torch.where(then, before[1], trained * (mix.late == 0))
    pairs = pairs * trained
    weights = torch.cat([1 - pairs.sum(dim=1, keepdim=True), pairs], dim=1)
    away, centre = mix.near[i] - own, torch.zeros_like(mix.own[i])
    if not isinstance(mix.aggregate, Mean):
        centre = mix.own[i]
        away = away + centre[:, None]
    return replace(mix, own=(centre,), near=(away,), weights=weights)(0) - centre
