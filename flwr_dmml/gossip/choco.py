"""CHOCO-SGD: gossip on copies of the neighbours' models, kept up to date by compressed changes."""

from typing import ClassVar

from torch import Tensor

from ..base.options import Group
from .coded import CodedOptions
from .rule import GossipRule, Mix, State


class ChocoRule(GossipRule):
    """Gossip on copies: what compression leaves out of a change is in the next one.

    A device and its neighbours have the same copy H of its model. Trained to z, it sends what has
    changed, compressed by ``exchange.precision`` and ``exchange.top-k``, and all bring H up to
    date. Then it takes a step towards the copies of the neighbours'::

        H_k <- H_k + C(z_k - H_k)        x_k <- z_k + gamma sum_j w_kj (H_j - H_k)

    H starts from what all start from; the paper's start is 0. Where nothing is left out and gamma
    is 1 this is plain gossip. gamma has to shrink as less is sent: too large a step diverges, too
    small a one mixes slowly. ``choco.gamma = "auto"`` is the share that is sent.

    Who misses a message gets the whole copy with the next one.

    References
    ----------
    Koloskova, Stich and Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with
    Compressed Communication", ICML 2019.
    """

    name: ClassVar[str] = "choco"
    paper: ClassVar[str] = "Koloskova et al., ICML 2019"
    references: ClassVar[tuple[str, ...]] = ("koloskova2019decentralized",)
    options_type: ClassVar[type[Group]] = CodedOptions
    linear: ClassVar[bool] = True
    static: ClassVar[bool] = True
    coded: ClassVar[bool] = True
    options: CodedOptions

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Take a step from the trained model towards the neighbours' copies."""
        return mix.z + self.options.step(mix) * (mix(0) - mix.own[0]), state
