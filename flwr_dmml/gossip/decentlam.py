"""DecentLaM: momentum of what a whole round of gossip did to the model."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from .rule import GossipRule, Mix, State, Steps, number


class DecentLamRule(GossipRule):
    """Gossip whose momentum holds the change that steps and mixing make together.

    A round's steps, without momentum, move x to z, and mixing moves that on. Momentum is of both::

        G = (x - sum_j w_kj z_j) / (lr tau)        m <- beta m + G        x <- x - lr tau m

    beta is the run's ``momentum``, tau the owners' mean number of steps. So momentum does not
    enlarge the bias that devices with different data have under gossip. With one step a round this
    is the published algorithm; several are this project's reading. A block that was not trained is
    mixed as it is, and its m stays.

    References
    ----------
    Yuan et al., "DecentLaM: Decentralized Momentum SGD for Large-Batch Deep Training", ICCV 2021.
    """

    name: ClassVar[str] = "decentlam"
    paper: ClassVar[str] = "Yuan et al., ICCV 2021"
    references: ClassVar[tuple[str, ...]] = ("yuan2021decentlam",)
    momentum: ClassVar[Literal["round", "kept", "own"]] = "own"
    static: ClassVar[bool] = True

    def start(self, x: Tensor) -> State:
        """Return no momentum, and nothing trained."""
        return {"m": torch.zeros_like(x), "from": x.clone(), "common": number(x, 0)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Step along the momentum from where the last round's training began."""
        x, begun, common = mix(0), state["from"], state["common"]
        m = state["m"] + torch.where(common > 0, (begun - x) / common, 0.0)
        return torch.where(common > 0, begun - common * m, x), {**state, "m": m}

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the trained model, and keep what the momentum needs once that has been mixed."""
        if steps is None:
            return (z,), {**state, "common": number(x, 0)}
        m = steps.momentum * state["m"]
        return (z,), {"m": m, "from": x.clone(), "common": number(x, steps.common)}
