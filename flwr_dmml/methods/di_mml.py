"""DI-MML: encoders learn apart, and take over from one another what only the other can tell."""

from itertools import permutations
from math import ceil
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch, every_part
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import alignment_loss
from ..models.experts import ExpertsClassifier
from ..payload.plan import Inbox, Plan
from .prototypes import Prototyped, averaged

MEASURE, CHOOSE = "measure", "choose"


class DiMmlOptions(Options):
    """Options of the detached and interactive training."""

    beta: float = Field(1.0, ge=0, description="weight of the shared classifier's losses")
    weight: float = Field(1.0, ge=0, description="weight of the one-way contrast (DUC)")
    temperature: float = Field(1.0, gt=0, description="its temperature")
    begin: float = Field(0.13, ge=0, le=1, description="share of the rounds before the contrast")

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return "measure", and "choose" in the round after; other rounds have no name."""
        first = max(1, ceil(self.begin * num_rounds))
        return {first: MEASURE, first + 1: CHOOSE}.get(server_round, "") if self.weight else ""


class DiMml(Prototyped):
    """Plain gossip with detached and interactive multi-modal learning, both stages at once.

    Every modality has an encoder with features z^m and a head h_m, all modalities one classifier
    h_0 besides, and devices with several a fused head F on features that it does not train::

        sum_m CE(h_m(z^m), y) + beta sum_m CE(h_0(z^m), y) + CE(F(sg(z)), y) + weight DUC
        DUC = sum_(m, n) mean_i -log exp(cos(z_i^m, z_i^n)/T) / sum_j exp(cos(z_i^m, z_j^n)/T)

    over ordered pairs, cosines taken in the features D = E_n without E_m only, z^n without
    gradient; an empty D adds 0. E_m are the effective features of m: those that tell the class
    of a training sample more often than the mean one does, by the class mean that they are nearest
    to. They are chosen once, after ``begin`` of the rounds: in one round devices find class means
    with their mixed encoders, in the next they average their neighbours' and choose. A device that
    misses one of these rounds learns without DUC.

    The prediction is ``sum_e w_e o_e`` over the heads of the modalities present and F,
    ``w = softmax_e(max softmax(o_e))``.

    This project's reading: the paper trains F in a second stage on frozen encoders, which F sees
    here as they are; its features are not scaled, so that T is 10 or 50; class means of the
    neighbourhood make devices choose alike. A device with one sensor trains h_m and h_0.
    ``fusion`` and ``modality-loss`` have no effect.

    References
    ----------
    Fan, Xu, Wang, Liu and Guo, "Detached and Interactive Multimodal Learning", ACM MM 2024;
    formulas as in its released code.
    """

    name: ClassVar[str] = "di-mml"
    paper: ClassVar[str] = "Fan et al., ACM MM 2024"
    references: ClassVar[tuple[str, ...]] = ("fan2024detached",)
    options_type: ClassVar[type[Options]] = DiMmlOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "feature dimensions chosen on own samples"
    options: DiMmlOptions
    model: ExpertsClassifier  # type: ignore[assignment]

    def build_model(self) -> ExpertsClassifier:  # type: ignore[override]
        """Return the encoders and their heads."""
        s = self.settings
        return ExpertsClassifier(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.partition.num_classes,
            width=self.length(),
            choice=s.encoder_choice,
            seed=s.seed,
        )

    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the features of each modality."""
        return self.model.encode(inputs)

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Find class means, or choose the effective features by them."""
        if plan.phase == CHOOSE and len(self.partition.modalities) > 1:
            self._choose(inbox)
        self.forget_prototypes()
        if plan.phase == MEASURE:
            self.find_prototypes()

    @torch.no_grad()
    def _choose(self, inbox: Inbox) -> None:
        means = {
            m: averaged(self, inbox, self.length(), f".{m}") for m in self.partition.modalities
        }
        if not self.statistics():
            return
        hits = {m: torch.zeros(self.length()) for m in means}
        self.model.eval()
        for part in every_part(self.train_data):
            labels = self.train_data.labels[part.labels]
            for m, z in self.model.encode(part.inputs).items():
                hits[m] += told(z, labels, *(x.to(z.device) for x in means[m])).cpu()
        self.memory |= {f"effective.{m}": (n > n.mean()).float() for m, n in hits.items()}

    def fixed(self) -> dict[str, Tensor]:
        """Return D of each ordered pair, ``<m> <n>``, as 0 and 1 ``[length]``."""
        none = torch.zeros(self.length())
        own = {m: self.memory.get(f"effective.{m}", none) for m in self.partition.modalities}
        pairs = permutations(own, 2)
        return {f"{m} {n}": (own[n] * (1 - own[m])).to(self.device) for m, n in pairs}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        o, y, z = self.options, batch.labels, self.model.encode(batch.inputs)
        loss = total(self.cross_entropy(logits, y) for logits in self.model.alone(z).values())
        if o.beta:
            shared = [self.cross_entropy(self.model.head(x), y) for x in z.values()]
            loss = loss + o.beta * total(shared)
        if len(z) > 1:
            loss = loss + self.cross_entropy(self.model.fuse(z), y)
            if o.weight:
                loss = loss + o.weight * self._contrast(z, batch.given)
        return loss

    def _contrast(self, z: dict[str, Tensor], given: dict[str, Tensor]) -> Tensor:
        terms = list[Tensor]()
        for m, n in permutations(z, 2):
            chosen = given[f"{m} {n}"]
            theirs = (z[n] * chosen[..., None, :]).detach()
            apart = alignment_loss(z[m] * chosen[..., None, :], theirs, self.options.temperature)
            terms.append(apart * (chosen.sum(dim=-1) > 0))
        return total(terms)


def told(z: Tensor, labels: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """Return how many samples' classes each feature tells, ``[length]``.

    Parameters
    ----------
    z, labels : Tensor
        Features ``[n, length]`` and classes ``[n]`` of samples.
    means, counts : Tensor
        Of each class, ``[classes, length]``, and its samples ``[classes]``; none where that is 0.
    """
    apart = (z[:, None] - means).abs().masked_fill((counts == 0)[:, None], torch.inf)
    return (apart.argmin(dim=1) == labels[:, None]).sum(dim=0)
