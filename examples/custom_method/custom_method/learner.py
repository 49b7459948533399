"""What a device does: D-PSGD, on smoothed labels while the plan says so."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.clients import Batch, Learner
from flwr_dmml.learning.options import Options
from flwr_dmml.payload.plan import Inbox, Plan

SMOOTH = "smooth"


class SmoothStartOptions(Options):
    """Read from the run config as ``smooth-start.smoothing`` and ``smooth-start.share``."""

    smoothing: float = Field(0.1, ge=0, lt=1, description="how much of a label goes to all classes")
    share: float = Field(0.5, ge=0, le=1, description="share of the rounds that are smoothed")

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``smooth`` in the first ``share`` of the rounds, ``sharp`` afterwards."""
        return SMOOTH if server_round <= self.share * num_rounds else "sharp"


class SmoothStart(Learner):
    """Gossip on smoothed labels first, on plain ones later.

    While models are far apart, neighbours teach each other to be sure of different things. A
    toy of this example, not a published method.
    """

    name: ClassVar[str] = "smooth-start"
    paper: ClassVar[str] = "an example of flwr-dmml"
    options_type: ClassVar[type[Options]] = SmoothStartOptions
    options: SmoothStartOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Take the phase from the round's plan."""
        self._smoothing = self.options.smoothing if plan.phase == SMOOTH else 0.0

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the fused prediction."""
        logits = self.model(batch.inputs)
        return F.cross_entropy(logits, batch.labels, label_smoothing=self._smoothing)
