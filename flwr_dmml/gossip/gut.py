"""Global update tracking: gossip that tracks the network's steps, sending a model only."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..base.options import Group
from .rule import GossipRule, Mix, State, Steps, number


class GutOptions(Group):
    """The option of global update tracking."""

    mu: float = Field(0.9, ge=0, le=1, description="how much of the network's last step is tracked")


class QgGutmOptions(Group):
    """The option of its form with momentum."""

    mu: float = Field(
        0.06, ge=0, le=1, description="how much of the network's last step is tracked"
    )


class GutRule(GossipRule):
    """Gossip that adds what the network's last step was more than the own one.

    A device keeps its own model x, and trains from the mixed one, s. With D the way from x to where
    that leads, a dash for the round before, and mu the share that is tracked::

        s = sum_j w_kj x_j        z = s - lr sum g        D = x - z
        y = D - mu (D' + s - x')        x <- x - y

    ``D' + s - x'`` is by how much the own last step differed from the neighbourhood's. Of the bias
    that plain gossip has on different data about ``1 - mu`` is left; mu = 1 is D-squared. With one
    step a round this is the published algorithm; several are this project's reading.

    The own weight is raised by as much as mu calls for, ``theta = mu / (1 + 2 mu)``: on a graph
    that is nearly bipartite the published form diverges. A device that rests starts anew when it
    trains again.

    References
    ----------
    Aketi, Hashemi and Roy, "Global Update Tracking: A Decentralized Learning Algorithm for
    Heterogeneous Data", NeurIPS 2023.
    """

    name: ClassVar[str] = "gut"
    paper: ClassVar[str] = "Aketi et al., NeurIPS 2023"
    references: ClassVar[tuple[str, ...]] = ("aketi2023global",)
    options_type: ClassVar[type[Group]] = GutOptions
    sgd: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    static: ClassVar[bool] = True
    loss: ClassVar[Literal["own", "pair", "sender"]] = "pair"
    whole: ClassVar[bool] = True
    resets: ClassVar[bool] = True
    options: GutOptions

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return ``theta I + (1 - theta) W``, whose eigenvalues are above ``-1 / (1 + 2 mu)``."""
        theta = self.options.mu / (1 + 2 * self.options.mu)
        lazy = weights * (1 - theta)
        lazy[:, 0] += theta
        return lazy

    def start(self, x: Tensor) -> State:
        """Return no step to track."""
        nothing = {name: torch.zeros_like(x) for name in ("way", "mixed", "before", "m")}
        return {**nothing, "own": x.clone(), "common": number(x, 0)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Train from the mixed model, and keep the own one."""
        return mix(0), {**state, "own": mix.own[0].clone()}

    def beta(self, steps: Steps) -> float:
        """Return the momentum of the tracked steps."""
        return 0.0

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the own model after its tracked step."""
        if steps is None:
            return (z,), self.start(z)
        own, beta = state["own"], self.beta(steps)
        way, before = own - z, state["common"]
        ratio = torch.where(before > 0, steps.common / before, 0.0)
        more = x - state["mixed"] + (1 + beta) * (state["mixed"] - state["before"])
        y = way - self.options.mu * ratio * (state["way"] + more)
        m = beta * ratio * state["m"] + y
        kept = {"own": own, "way": way, "mixed": x.clone(), "before": own, "m": m}
        return (own - m,), {**kept, "common": number(x, steps.common)}


class QgGutmRule(GutRule):
    """Global update tracking with quasi-global momentum.

    As ``gut``, with momentum beta, the run's, of the tracked steps y::

        y = D - mu (D' + s - s' + (1 + beta) (s' - x'))        m <- beta m + y        x <- x - m

    References
    ----------
    As :class:`GutRule`: its QG-GUTm, without Nesterov's momentum.
    """

    name: ClassVar[str] = "qg-gutm"
    options_type: ClassVar[type[Group]] = QgGutmOptions
    momentum: ClassVar[Literal["round", "kept", "own"]] = "own"

    def beta(self, steps: Steps) -> float:
        """Return the run's momentum."""
        return steps.momentum
