"""Momentum tracking: gradient tracking of momenta."""

from typing import ClassVar, Literal

from torch import Tensor

from .k_gt import KgtRule
from .rule import State, Steps


class MomentumTrackingRule(KgtRule):
    """Gossip whose local momentum is corrected by how it differs from the network's.

    The momentum m is the optimiser's and lasts from round to round; d is what the steps followed::

        m <- beta m + g        z <- z - lr (m + c)        d = (x - z) / (lr tau)
        x <- sum_j w_kj z_j    c <- c - d_k + sum_j w_kj d_j

    With one step a round this is the published algorithm, whose c has the opposite sign; several
    are this project's reading. Without momentum it is ``k-gt``.

    References
    ----------
    Takezawa et al., "Momentum Tracking: Momentum Acceleration for Decentralized Deep Learning on
    Heterogeneous Data", TMLR 2023.
    """

    name: ClassVar[str] = "mt"
    paper: ClassVar[str] = "Takezawa et al., TMLR 2023"
    references: ClassVar[tuple[str, ...]] = ("takezawa2023momentum",)
    momentum: ClassVar[Literal["round", "kept", "own"]] = "kept"

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the gradient as it is: the momentum is corrected."""
        return g

    def step(self, v: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the corrected momentum."""
        return v + state["c"]
