"""D-squared: gossip that corrects for how different the devices' data are."""

from typing import ClassVar

from ..learning.learner import Learner
from ..learning.mixing import mix_blocks
from ..payload.blocks import flatten, load_flat
from ..payload.plan import Inbox, Plan


class D2(Learner):
    """Gossip whose steps cancel the variance between devices.

    A round's local iterations move x_t to ``end_t``. Published is that, moved on by the difference
    of what mixing made of the round before::

        y_t = end_t + x_t - end_(t-1)        x_(t+1) = (y_t + sum_j w_kj y_j) / 2

    With one iteration a round ``end_t = x_t - lr g_t``, and this is the published
    ``2 x_t - x_(t-1) - lr (g_t - g_(t-1))``; several are this project's reading. The weights are
    halved towards the own copy, as D-squared needs eigenvalues above -1/3.

    References
    ----------
    Tang et al., "D-squared: Decentralized Training over Decentralized Data", ICML 2018.
    """

    name: ClassVar[str] = "d2"
    paper: ClassVar[str] = "Tang et al., ICML 2018"

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix with ``(I + W) / 2``."""
        halved = {
            name: ((1 + weights[0]) / 2, *(w / 2 for w in weights[1:]))
            for name, weights in plan.weights.items()
        }
        return mix_blocks(self.blocks(), halved, plan.neighbours, inbox)

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Note where the round starts; a parked device begins anew when it trains again."""
        self._start = {name: flatten(module) for name, module in self.blocks().items()}
        if plan.by_modality and not any(plan.by_modality.values()):
            self.memory.clear()

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Add the correction to what is published."""
        for name, module in self.blocks().items():
            end = flatten(module)
            if name in self.memory:
                load_flat(module, end + self._start[name] - self.memory[name])
            self.memory[name] = end
