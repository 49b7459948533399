"""K-GT: gradient tracking with local steps."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from .rule import Mix, State, Steps, number
from .tracking import TrackingRule, exchanged


class KgtRule(TrackingRule):
    """Gossip whose local steps follow the network's gradient, and so reach the common optimum.

    A device corrects each gradient by c, and sends the mean direction d of its steps as well::

        z <- z - lr (g + c)        d = (x - z) / (lr tau)
        x <- sum_j w_kj z_j        c <- c - d_k + sum_j w_kj d_j

    c starts from 0; the paper's start takes a sum over all devices. tau is the device's own number
    of steps, so that devices may take different numbers of them. Momentum acts within a round; d
    divides by what it makes of tau equal gradients.

    References
    ----------
    Liu, Lin, Koloskova and Stich, "Decentralized Gradient Tracking with Local Steps", OMS 2024
    (K-GT, with a global step of 1).
    """

    name: ClassVar[str] = "k-gt"
    paper: ClassVar[str] = "Liu et al., OMS 2024"
    references: ClassVar[tuple[str, ...]] = ("liu2024decentralized",)
    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block", "block", "number")

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Mix the models, and let c follow the network's direction."""
        return mix(0), {"c": state["c"] + exchanged(mix, 1)}

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the corrected gradient."""
        return g + state["c"]

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the trained model and the mean direction of the steps."""
        if steps is None:
            return (z, torch.zeros_like(x), number(x, 0)), state
        carried = steps.carried
        d = torch.where(carried > 0, (x - z) / carried, 0.0)
        return (z, d, number(x, 1)), state
