"""SGP: push-sum gossip, over links that go one way."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .rule import GossipRule, Mix, State, Steps


class SGPRule(GossipRule):
    """Push-sum: each device deals out what it has, and undoes what is uneven in what it gets.

    A device has a numerator X and a weight a, 1 at first, of every block. It trains at
    ``x = X / a`` to z, and deals out, with ``p_ki`` 1 over the number of receivers and itself::

        X <- a x + (z - x)        X_i <- sum_j p_ij X_j        a_i <- sum_j p_ij a_j

    What is dealt out sums to 1 over the receivers, so that the sums of X and a over the devices are
    kept on any graph, also where some are heard by more than others: x comes to the mean. Where
    everybody sends to as many as it hears from, a stays 1. With one local step this is the
    published algorithm; several are this project's reading.

    A message that is lost in silence would take its share of X and a along, and steps that are
    divided by an ever smaller a diverge. So the sender has to know, and keeps the share.

    The momentum is local and kept, as in ``dsgdm``.

    References
    ----------
    Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019.
    """

    name: ClassVar[str] = "sgp"
    paper: ClassVar[str] = "Assran et al., ICML 2019"
    references: ClassVar[tuple[str, ...]] = ("assran2019stochastic",)
    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block", "number")
    momentum: ClassVar[Literal["round", "kept", "own"]] = "kept"
    linear: ClassVar[bool] = True
    pushes: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    loss: ClassVar[Literal["own", "pair", "sender"]] = "sender"
    letters: ClassVar[Literal["beat", "newest", "every"]] = "every"

    def problem(self, vectors: Sequence[Tensor], num_nodes: int) -> str | None:
        """Refuse a weight that there cannot be: over all devices they sum to their number."""
        weight = float(vectors[1])
        if isfinite(weight) and 0 < weight <= 1.01 * num_nodes:
            return None
        return f"has the weight {weight:g}, which is not above 0 and at most {num_nodes}"

    def model_of(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return X / a; X where nothing has been sent."""
        return vectors[0] / torch.where(vectors[1] > 0, vectors[1], 1.0)

    def start(self, x: Tensor) -> State:
        """Return the weight 1."""
        return {"a": torch.ones(len(x), 1, device=x.device)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Return X / a of what has come; at first, where nothing has been sent, what there is."""
        a = mix(1)
        sent = mix.own[1] > 0
        x = torch.where(sent, mix(0) / torch.where(sent, a, 1.0), mix.own[0])
        return x, {"a": torch.where(sent, a, state["a"])}

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send X and a."""
        return (state["a"] * x + (z - x), state["a"]), state
