"""D-squared: gossip that corrects for how different the devices' data are."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from .rule import GossipRule, State, Steps


class D2Rule(GossipRule):
    """Gossip whose steps cancel the variance between devices.

    A round's local steps move x_t to ``z_t``. Sent is that, moved on by the difference of what
    mixing made of the round before::

        y_t = z_t + x_t - z_(t-1)        x_(t+1) = (y_t + sum_j w_kj y_j) / 2

    With one step a round ``z_t = x_t - lr g_t``, and this is the published
    ``2 x_t - x_(t-1) - lr (g_t - g_(t-1))``; several are this project's reading. The weights are
    halved towards the own copy, as D-squared needs eigenvalues above -1/3. A device that rests
    begins anew when it trains again.

    References
    ----------
    Tang et al., "D-squared: Decentralized Training over Decentralized Data", ICML 2018.
    """

    name: ClassVar[str] = "d2"
    paper: ClassVar[str] = "Tang et al., ICML 2018"
    linear: ClassVar[bool] = True
    static: ClassVar[bool] = True
    loss: ClassVar[Literal["own", "pair", "sender"]] = "pair"

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return ``(I + W) / 2``."""
        halved = weights / 2
        halved[:, 0] += 0.5
        return halved

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the trained model with the correction."""
        if steps is None:
            return (z,), {}
        y = z + x - state["z"] if "z" in state else z
        return (y,), {"z": z.clone()}
