"""QG-DSGDm: momentum that follows the whole network's way instead of a device's own gradients."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..base.options import Group
from .rule import GossipRule, Mix, State, Steps, nothing_taken


class QgOptions(Group):
    """The option of quasi-global momentum."""

    mu: float = Field(0.1, gt=0, le=1, description="how fast the momentum follows the network")


class QgDsgdmRule(GossipRule):
    """Gossip with quasi-global momentum.

    The buffer m stays as it is during a round's steps, which go along ``m^ = beta m + g``, or with
    Nesterov's momentum along ``g + beta m^``. When their result is mixed, m follows the way from
    the round's start to there, which holds the neighbours' gradients as well::

        d = (x_start - x_mixed) / sum lr        m <- (1 - mu) m + mu d

    beta is the run's ``momentum``. With one step a round this is the published algorithm; several
    are this project's reading.

    References
    ----------
    Lin et al., "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous
    Data", ICML 2021, algorithm 1.
    """

    name: ClassVar[str] = "qg-dsgdm"
    paper: ClassVar[str] = "Lin et al., ICML 2021"
    references: ClassVar[tuple[str, ...]] = ("lin2021quasi",)
    options_type: ClassVar[type[Group]] = QgOptions
    momentum: ClassVar[Literal["round", "kept", "own"]] = "own"
    letters: ClassVar[Literal["beat", "newest", "every"]] = "newest"
    nesterov: ClassVar[bool] = False
    options: QgOptions

    def start(self, x: Tensor) -> State:
        """Return no momentum, at x."""
        return {"m": torch.zeros_like(x), "from": x.clone(), "carried": nothing_taken(x)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Let m follow the way since the last round's start; what was not trained keeps its m."""
        x, mu, carried = mix(0), self.options.mu, state["carried"]
        d = (state["from"] - x) / carried
        m = torch.where(carried > 0, (1 - mu) * state["m"] + mu * d, state["m"])
        return x, {"m": m, "from": x.clone(), "carried": nothing_taken(x)}

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return m^, or Nesterov's form of it."""
        m_hat = g + steps.momentum * state["m"]
        return g + steps.momentum * m_hat if self.nesterov else m_hat

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Send the trained model, and note how far the learning rate carried it."""
        return (z,), state if steps is None else {**state, "carried": steps.carried}


class QgDsgdmNRule(QgDsgdmRule):
    """Gossip with quasi-global Nesterov momentum.

    References
    ----------
    As :class:`QgDsgdmRule`: its form with Nesterov's momentum.
    """

    name: ClassVar[str] = "qg-dsgdm-n"
    nesterov: ClassVar[bool] = True
