"""PMR: the modality whose features tell the classes worse is pulled to its prototypes."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import cross_entropy
from ..payload.plan import Inbox, Plan
from .alone import true_probabilities
from .prototypes import Prototyped, whole

REBALANCE = "rebalance"


class PmrOptions(Options):
    """Options of the prototypical rebalancing."""

    alpha: float = Field(1.0, ge=0, description="weight of the weak modality's prototype loss")
    keep: float = Field(0.2, ge=0, lt=1, description="share of the old prototypes kept (mu)")
    until: float = Field(0.67, ge=0, le=1, description="share of the rounds with the loss")

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return "rebalance" in rounds with prototypes."""
        return REBALANCE if server_round <= self.until * num_rounds and self.alpha else ""


class Pmr(Prototyped):
    """Plain gossip with prototypical modal rebalancing.

    With the class means p_c^m of each modality's features, which the neighbourhood averages
    (:class:`~.prototypes.Prototyped`), a joint iteration minimises::

        d_ic^m = -||z_i^m - p_c^m|| / sqrt(length of z)      s_m = mean_i softmax(d_i^m)[y_i]
        CE(fused, y) + alpha sum_m a_m CE(d^m, y)

    over the first ``until`` of the rounds. Of two modalities a_m is 1 for the one with the smaller
    s_m and 0 for the other. A round keeps ``keep`` of the prototypes of the round before.

    This project's reading: z is the common and the specific half of a feature; distances are
    divided by the root of its length, as they grow with it; prototypes come once a round. Of more
    than two modalities ``a_m = 1 - s_m / max_n s_n`` (ours). The entropy term of the paper on the
    strong modality is not in its released code, nor here. Iterations of one modality, and so
    devices with one sensor, train as ``dpsgd``; such devices publish their prototypes for the
    others. With alpha = 0 all are ``dpsgd``. Prototypes tell neighbours the label counts.

    References
    ----------
    Fan et al., "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023; formulas as
    in its released code.
    """

    name: ClassVar[str] = "pmr"
    paper: ClassVar[str] = "Fan et al., CVPR 2023"
    references: ClassVar[tuple[str, ...]] = ("fan2023pmr",)
    options_type: ClassVar[type[Options]] = PmrOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "prototypes of own samples"
    options: PmrOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Average the prototypes, with what is kept of the last ones."""
        self._rebalances, self.prototypes = plan.phase == REBALANCE, {}
        if not self._rebalances:
            self.forget_prototypes()
            return
        super().before_training(plan, inbox)
        for m in self.partition.modalities:
            new, has = self.prototypes[f"prototypes.{m}"], self.prototypes[f"has.{m}"]
            old = self.memory.get(f"pmr.{m}", new.cpu()).to(new.device)
            there = self.memory.get(f"pmr-has.{m}", has.cpu()).to(has.device) > 0
            both = torch.lerp(new, old, self.options.keep)
            known = torch.where((has & there)[:, None], both, torch.where(has[:, None], new, old))
            self.prototypes |= {f"prototypes.{m}": known, f"has.{m}": has | there}
            self.memory |= {f"pmr.{m}": known.cpu(), f"pmr-has.{m}": (has | there).float().cpu()}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features, y = self.model.encode(batch.inputs), batch.labels
        loss = self.task_loss(features, y)
        if not self._rebalances or len(batch.inputs) < 2:
            return loss
        given, z = batch.given, whole(features)
        near = {m: closeness(x, given[f"prototypes.{m}"], given[f"has.{m}"]) for m, x in z.items()}
        with torch.no_grad():
            weak = weights({m: true_probabilities(d, y).mean(dim=-1) for m, d in near.items()})
        pulls = total(weak[m] * cross_entropy(d, y) for m, d in near.items())
        return loss + self.options.alpha * pulls


def closeness(z: Tensor, prototypes: Tensor, has: Tensor) -> Tensor:
    """Return ``-||z_i - p_c|| / sqrt(length)`` ``[..., batch, classes]``, very low without a p_c.

    It is smoothed below .001: the direction of less is rounding errors, such as of a sample that is
    the only one of its class.

    Parameters
    ----------
    z : Tensor
        Features ``[..., batch, length]``.
    prototypes, has : Tensor
        ``[..., classes, length]``, and which of them there are, ``[..., classes]`` bool.
    """
    squares = (z[..., :, None, :] - prototypes[..., None, :, :]).square().mean(dim=-1)
    return (-(squares + 1e-6).sqrt()).masked_fill(~has[..., None, :], -1e4)


def weights(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a_m ``[...]`` of each modality from the scores s_m of two or more."""
    best = torch.stack(list(scores.values())).amax(dim=0)
    if len(scores) > 2:
        return {m: 1 - s / best for m, s in scores.items()}
    return {m: (s < best).to(s.dtype) for m, s in scores.items()}
