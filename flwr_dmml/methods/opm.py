"""OPM: the modality that is ahead loses features at random, so that the others have to learn."""

from collections.abc import Mapping
from functools import reduce
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..models import Features
from ..payload.plan import Inbox, Plan
from .alone import leads, true_probabilities


class OpmOptions(Options):
    """Options of the prediction modulation; the defaults are those of its script."""

    p: float = Field(0.7, ge=0, le=1, description="share of joint iterations that drop features")
    base: float = Field(0.5, ge=0, le=1, description="chance to drop a modality just ahead (q0)")
    strength: float = Field(0.5, ge=0, description="how the chance grows with the lead (lambda)")
    warm_up: float = Field(0.05, ge=0, le=1, description="share of the rounds without dropping")
    against: Literal["sum", "mean"] = Field(
        "sum", description="with more than two modalities: ahead of the others' sum or mean"
    )


class Opm(Learner):
    """Plain gossip with on-the-fly prediction modulation.

    In a joint iteration, with s_m the mean probability that modality m alone gives to the true
    classes of the mini-batch::

        rho_m = max(0, s_m / s_others - 1)
        q_m   = min(1, q0 (1 + lambda tanh(rho_m)))  where rho_m > 0,  else 0

    With probability p an iteration keeps modality m of each sample with probability 1 - q_m, sets
    the features of the others to 0, and divides what is left by ``1 - mean_m q_m``. Samples that
    have lost every modality are left out of the loss, ``CE(fused, y)``.

    This project's reading: m alone is the model's prediction from m, with the whole bias; a feature
    that is dropped counts as 0 in the mean of the common ones, as it does in a concatenation. The
    losses of ``modality-loss`` see all features. With three or more modalities the paper's s_others
    is the sum of the others' scores, which hardly any modality exceeds; ``against = "mean"`` is
    ours. Iterations of one modality, and so devices with one sensor, are those of ``dpsgd``; with
    p = 0 all are.

    References
    ----------
    Wei, Hu, Du and Wen, "On-the-fly Modulation for Balanced Multimodal Learning", IEEE TPAMI 2024.
    """

    name: ClassVar[str] = "opm"
    paper: ClassVar[str] = "Wei et al., IEEE TPAMI 2024"
    references: ClassVar[tuple[str, ...]] = ("wei2024onthefly",)
    options_type: ClassVar[type[Options]] = OpmOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "ratios of scores on own samples, which drop features"
    options: OpmOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Start the draws of this round."""
        self._rng = self.rng("opm")
        self._begun = self.progress(plan) >= self.options.warm_up

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw whether a joint iteration ``drops``, and numbers ``luck`` ``[modality, batch]``."""
        if not self.options.p or len(batch.inputs) < 2:
            return {}
        count = len(batch.labels)
        drawn = torch.rand(1 + len(batch.inputs) * count, generator=self._rng).to(self.device)
        drops = drawn[0] < self.options.p * self._begun
        return {"drops": drops, "luck": drawn[1:].view(-1, count)}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features, y, given = self.model.encode(batch.inputs), batch.labels, batch.given
        if "drops" not in given:
            return self.task_loss(features, y)
        chances = self._chances(features, y)
        drops, luck = given["drops"], dict(zip(chances, given["luck"].unbind(-2), strict=True))
        kept = {m: (luck[m] >= q[..., None]) | ~drops[..., None] for m, q in chances.items()}
        thinned = torch.where(drops, total(chances.values()) / len(chances), 0.0)
        factors = {m: (k / (1 - thinned[..., None]))[..., None] for m, k in kept.items()}
        left = Features(
            {m: c * factors[m] for m, c in features.common.items()},
            {m: s * factors[m] for m, s in features.specific.items()},
        )
        some = reduce(torch.logical_or, kept.values())
        loss = self.cross_entropy(self.model.fuse(left), y, some)
        return self.with_modality_losses(loss, features, y)

    @torch.no_grad()
    def _chances(self, features: Features, labels: Tensor) -> dict[str, Tensor]:
        alone = {m: self.model.fuse(features.only([m])) for m in features.common}
        scores = {m: true_probabilities(x, labels).mean(dim=-1) for m, x in alone.items()}
        return chances(scores, self.options)


def chances(scores: Mapping[str, Tensor], options: OpmOptions) -> dict[str, Tensor]:
    """Return the chance ``q_m`` ``[...]`` that each modality is dropped, from its score ``s_m``."""
    found: dict[str, Tensor] = {}
    for m, lead in leads(scores, options.against).items():
        q = options.base * (1 + options.strength * torch.tanh(lead - 1))
        found[m] = torch.where(lead > 1, q.clamp_max(1.0), 0.0).float()
    return found
