"""FedProx: local training is held near the mixed model."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.options import Options
from ..payload.plan import Inbox, Plan


class FedProxOptions(Options):
    """The option of the proximal term."""

    mu: float = Field(0.01, ge=0, description="mu of mu/2 ||w - w_mixed||^2")


class FedProx(Learner):
    """Plain gossip with a proximal term.

    With w_mixed what mixing left of the model in this round, a device minimises::

        CE(fused, y) + mu/2 ||w - w_mixed||^2

    This project's reading: the term goes over what an iteration trains, so that a solo iteration
    leaves the encoders of the others alone. It enters as its gradient, ``mu (w - w_mixed)``, and is
    not in ``train.loss``. With mu = 0 this is ``dpsgd``.

    References
    ----------
    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
    """

    name: ClassVar[str] = "fedprox"
    paper: ClassVar[str] = "Li et al., MLSys 2020"
    references: ClassVar[tuple[str, ...]] = ("li2020federated",)
    options_type: ClassVar[type[Options]] = FedProxOptions
    unaccounted: ClassVar[str] = ""
    stacks: ClassVar[bool] = True
    options: FedProxOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Keep the mixed model."""
        self._mixed = [w.detach().clone() for w in self.trained_parameters()]

    def fixed(self) -> dict[str, Tensor]:
        """Return the mixed model, ``mixed.<k>`` in the order of the trained parameters."""
        return {f"mixed.{k}": w for k, w in enumerate(self._mixed)}

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Add the gradient of the proximal term."""
        for k, w in enumerate(self.trained_parameters()):
            if w.grad is not None:
                w.grad.add_(w - batch.given[f"mixed.{k}"], alpha=self.options.mu)
