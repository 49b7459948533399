"""QG-DSGDm: momentum that follows the whole network's way instead of a device's own gradients."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..learning.learner import Learner
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..payload.plan import Inbox, Plan


class QgOptions(Options):
    """The option of quasi-global momentum."""

    mu: float = Field(0.1, gt=0, le=1, description="how fast the momentum follows the network")

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse an optimiser other than SGD: this one is its own."""
        if settings.optimizer == "sgd":
            return []
        return [f"optimizer = '{settings.optimizer}': quasi-global momentum goes with sgd only"]


class QuasiGlobalSGD(torch.optim.Optimizer):
    """SGD with a given momentum buffer m that it does not change.

    ``m^ = beta m + g``, then ``x <- x - lr m^``, or with Nesterov ``x <- x - lr (g + beta m^)``.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        buffers: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._momentum, self._nesterov = momentum, nesterov
        self._buffers = list(buffers)
        self.moved = [0.0] * len(self._buffers)
        """Sum of the learning rates of each parameter's steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step with every parameter that has a gradient."""
        (group,) = self.param_groups
        for i, (x, m) in enumerate(zip(group["params"], self._buffers, strict=True)):
            if x.grad is None:
                continue
            g = x.grad + group["weight_decay"] * x
            m_hat = self._momentum * m + g
            x -= group["lr"] * (g + self._momentum * m_hat if self._nesterov else m_hat)
            self.moved[i] += group["lr"]


class QgDsgdm(Learner):
    """Gossip with quasi-global momentum.

    The buffer m stays as it is during a round's iterations. When their result is mixed it follows
    the way from the round's start to there, which holds the neighbours' gradients as well::

        d = (x_start - x_mixed) / sum lr        m <- (1 - mu) m + mu d

    With one iteration a round this is the published algorithm; several are this project's reading.

    References
    ----------
    Lin et al., "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous
    Data", ICML 2021, algorithm 1.
    """

    name: ClassVar[str] = "qg-dsgdm"
    paper: ClassVar[str] = "Lin et al., ICML 2021"
    nesterov: ClassVar[bool] = False
    options_type: ClassVar[type[Options]] = QgOptions
    options: QgOptions

    def make_optimizer(
        self, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Return SGD with this round's buffers."""
        self._optimizer = QuasiGlobalSGD(
            parameters,
            [
                self.memory.get(f"m.{i}", torch.zeros_like(x)).to(x)
                for i, x in enumerate(parameters)
            ],
            lr=learning_rate,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            nesterov=self.nesterov,
        )
        return self._optimizer

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Let m follow the way since the last round's start, and note where this one starts."""
        mu = self.options.mu
        for i, x in enumerate(self.trained_parameters()):
            now, moved = x.detach().cpu().clone(), float(self.memory.get(f"moved.{i}", 0.0))
            if moved > 0:
                d = (self.memory[f"start.{i}"] - now) / moved
                m = self.memory.get(f"m.{i}", torch.zeros_like(d))
                self.memory[f"m.{i}"] = (1 - mu) * m + mu * d
            self.memory[f"start.{i}"], self.memory[f"moved.{i}"] = now, torch.zeros(())

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Note how far the learning rate carried each parameter."""
        for i, moved in enumerate(self._optimizer.moved):
            self.memory[f"moved.{i}"] = torch.tensor(moved, dtype=torch.float64)


class QgDsgdmN(QgDsgdm):
    """Gossip with quasi-global Nesterov momentum.

    References
    ----------
    As :class:`QgDsgdm`: its form with Nesterov's momentum.
    """

    name: ClassVar[str] = "qg-dsgdm-n"
    nesterov: ClassVar[bool] = True
