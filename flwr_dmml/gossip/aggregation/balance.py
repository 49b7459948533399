"""BALANCE: accept copies that are near the own one."""

from math import exp
from typing import ClassVar, Self

from pydantic import Field
from torch import Tensor

from ...base.options import Group
from .weighing import Around, Weighing


class BalanceOptions(Group):
    """The options of BALANCE."""

    gamma: float = Field(
        0.3, gt=0, description="first radius of acceptance, in norms of the device's own vector"
    )
    kappa: float = Field(
        1.0, ge=0, description="its decay: at the end it is exp(-kappa) times the first"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the device's own vector")


class Balance(Weighing):
    """Average the own copy with the neighbours' that are near it, nearer from round to round.

    Accepted is ``|x_j - own| <= gamma exp(-kappa t / T) |own|``; the result is
    ``alpha own + (1 - alpha) mean(accepted)``, or the own copy. It assumes no number of liars.

    References
    ----------
    Fang et al., "Byzantine-Robust Decentralized Federated Learning", CCS 2024.
    """

    name: ClassVar[str] = "balance"
    paper: ClassVar[str] = "Fang et al., CCS 2024"
    references: ClassVar[tuple[str, ...]] = ("fang2024byzantine",)
    options_type: ClassVar[type[Group]] = BalanceOptions
    options: BalanceOptions
    progress = 0.0

    def at(self, progress: float) -> Self:
        """Return the rule for a time of the run."""
        later = type(self)(self.options, self.assume_liars)
        later.progress = progress
        return later

    def most(self, neighbours: int) -> int:
        """Return how many may lie: any number."""
        return neighbours

    def shares(self, around: Around) -> Tensor:
        """Return the weights of the own copy and of the accepted."""
        o = self.options
        bound = o.gamma * exp(-o.kappa * self.progress) * around.norm
        accepted = around.there & (around.away <= bound[:, None])
        accepted[:, 0] = False
        count = accepted.sum(dim=1, keepdim=True)
        shares = (1 - o.alpha) * accepted / count.clamp(min=1)
        shares[:, 0] = 1 - shares.sum(dim=1)
        return shares
