"""D-squared: gossip that corrects for how different the devices' data are."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .rule import LARGEST_SCALE, Mix, State, Steps, number
from .tracking import TrackingRule, exchanged


class D2Rule(TrackingRule):
    """Gossip whose steps cancel the variance between devices.

    Each gradient is corrected by c, which learns from what mixing changes. Sent is the model after
    a round's steps, their progress scaled to the owners' mean number of steps ``tau``::

        z <- z - lr (g + c)                 y = x + tau / tau_k (z - x)
        x' = (y_k + sum_j w_kj y_j) / 2     c <- c - (x' - y_k) / (lr tau)

    With one step a round this is the published ``2 x_t - x_(t-1) - lr (g_t - g_(t-1))``. This form
    with several, this project's, ends at the common optimum as well, whatever numbers of steps
    devices take; the published one then keeps a bias. The weights are halved towards the own copy,
    as D-squared needs eigenvalues above -1/3.

    References
    ----------
    Tang et al., "D-squared: Decentralized Training over Decentralized Data", ICML 2018.
    """

    name: ClassVar[str] = "d2"
    paper: ClassVar[str] = "Tang et al., ICML 2018"
    references: ClassVar[tuple[str, ...]] = ("tang2018d2",)
    static: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return ``(I + W) / 2``."""
        halved = weights / 2
        halved[:, 0] += 0.5
        return halved

    def start(self, x: Tensor) -> State:
        """Return no correction; 1 is any number, as nothing has been exchanged."""
        return {"c": torch.zeros_like(x), "common": number(x, 1)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Mix, and let c follow the difference that makes."""
        c = state["c"] - exchanged(mix, 0) / state["common"]
        return mix(0), {**state, "c": c}

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the corrected gradient."""
        return g + state["c"]

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the model with scaled progress."""
        if steps is None:
            return (z, number(x, 0)), state
        scale = (steps.common / steps.carried).clamp(max=LARGEST_SCALE)
        y = torch.where(steps.carried > 0, x + scale * (z - x), z)
        return (y, number(x, 1)), {**state, "common": number(x, steps.common)}
