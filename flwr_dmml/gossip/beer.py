"""BEER and MoTEF: gradient tracking on copies, which compressed changes keep up to date."""

from typing import ClassVar, Literal

from torch import Tensor

from ..base.options import Group
from .coded import CodedOptions
from .k_gt import KgtRule
from .rule import Mix, State, Steps
from .tracking import exchanged


class BeerRule(KgtRule):
    """Gossip with compression that reaches the common optimum.

    A device and its neighbours have the same copies of its model, H, and of the mean direction d of
    its local steps, G. Both are sent as compressed changes, as in ``choco``, and c corrects the
    gradients as in ``k-gt``::

        z <- z - lr (g + c)        d = (x - z) / (lr tau)
        H <- H + C(z - H)          x_k <- z_k + gamma sum_j w_kj (H_j - H_k)
        G <- G + C(d - G)          c_k <- c_k + gamma sum_j w_kj (G_j - G_k)

    With one step a round d is the paper's V, and follows its recursion; the gradient is taken where
    mixing has put the model, in the paper before mixing. Several steps, and different numbers of
    them, are this project's reading.

    References
    ----------
    Zhao et al., "BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with Communication
    Compression", NeurIPS 2022.
    """

    name: ClassVar[str] = "beer"
    paper: ClassVar[str] = "Zhao et al., NeurIPS 2022"
    references: ClassVar[tuple[str, ...]] = ("zhao2022beer",)
    options_type: ClassVar[type[Group]] = CodedOptions
    static: ClassVar[bool] = True
    coded: ClassVar[bool] = True
    options: CodedOptions

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Take a step towards the neighbours' copies, of models and of directions."""
        gamma = self.options.step(mix)
        x = mix.z + gamma * (mix(0) - mix.own[0])
        return x, {"c": state["c"] + gamma * exchanged(mix, 1)}


class MotefRule(BeerRule):
    """BEER whose momentum is tracked instead of gradients: for mini-batches, which are noisy.

    The momentum m is the optimiser's and lasts from round to round; d is what the steps followed::

        m <- beta m + g        z <- z - lr (m + c)

    The paper's momentum is this one times ``1 - beta``, so that its learning rate is this one
    divided by that. Without momentum it is ``beer``.

    References
    ----------
    Islamov, Gao and Stich, "Towards Faster Decentralized Stochastic Optimization with Communication
    Compression" (MoTEF), ICLR 2025.
    """

    name: ClassVar[str] = "motef"
    paper: ClassVar[str] = "Islamov et al., ICLR 2025"
    references: ClassVar[tuple[str, ...]] = ("islamov2025towards",)
    momentum: ClassVar[Literal["round", "kept", "own"]] = "kept"

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the gradient as it is: the momentum is corrected."""
        return g

    def step(self, v: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the corrected momentum."""
        return v + state["c"]
