"""FedCMI: the modality that is ahead teaches a second projector of the others."""

import copy
from itertools import combinations, permutations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..learning.batch import Batch, every_part
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import class_temperatures, infiltration_loss
from ..models import Projections, TwoProjectorClassifier
from ..payload.plan import Inbox, Plan
from .alone import true_probabilities


class FedCmiOptions(Options):
    """Weights of FedCMI's terms; the defaults are this project's, not those of the code."""

    head_weight: float = Field(1.0, ge=0, description="weight of the uni-modal heads' losses (c1)")
    infiltration_weight: float = Field(1.0, ge=0, description="weight of the distillation (c2)")
    temperature_slope: float = Field(
        0.5, ge=0, description="how much sharper lagging classes are taught (c3); the code has 2"
    )
    min_temperature: float = Field(0.5, ge=0, le=1, description="lowest temperature of a class")
    softening: float = Field(1.0, gt=0, description="factor on all temperatures")
    infiltrate: Literal["logits", "features"] = Field(
        "logits", description="what is distilled: the teacher's logits, or its projection"
    )
    uni_modal_heads: bool = Field(
        True, description="devices with one sensor train its head too, on both projections"
    )
    fill: bool = Field(True, description="the infiltration projection fills a missing slot")
    train_filled: bool = Field(
        False, description="train the fusion head's weights on filled slots too, as the code does"
    )
    proximal: float = Field(0.0, ge=0, description="mu of mu/2 ||w - w_mixed||^2")


class FedCmi(Learner):
    """Cross-modal infiltration.

    Device k minimises, on a batch of several modalities::

        L = CE(fuse, y) + c1 sum_m CE(h_m(P_m^self), y) + c2 mean_(m != d) L_inf(m, d)
        L_inf(m, d) = KL(softmax(h_d^G(P_d^self,G) / T_y) || softmax(h_m(P_m^inf) / T_y))

    d is the modality of the highest summed probability of the true classes in the batch, G the
    model as mixing left it in this round, frozen, and T the class-wise temperatures of the pair
    (:func:`~flwr_dmml.losses.class_temperatures`), computed once a round on the own samples that
    have both. It begins in round 2. With one modality there are CE(fuse, y), the missing slots
    filled by the infiltration projection, and the head's losses on both projections; the paper's
    code has the first only. On a complete graph the mixed model is the paper's global one.

    More than two modalities (the dominant one teaches each other one) are this project's
    generalisation, as are ``softening``, ``min_temperature``, distilling features (mean squared
    difference), and that the fusion head is not trained on filled slots (``train_filled``).

    References
    ----------
    Fan et al., "Balanced Multi-modal Federated Learning via Cross-Modal Infiltration", arXiv
    2401.00894, 2024; formulas as in its released code.
    """

    name: ClassVar[str] = "fedcmi"
    paper: ClassVar[str] = "Fan et al., arXiv 2401.00894, 2024"
    references: ClassVar[tuple[str, ...]] = ("fan2024balanced",)
    options_type: ClassVar[type[Options]] = FedCmiOptions
    unaccounted: ClassVar[str] = "class means over own samples"
    stacks: ClassVar[bool] = True
    options: FedCmiOptions
    model: TwoProjectorClassifier  # type: ignore[assignment]

    def build_model(self) -> TwoProjectorClassifier:  # type: ignore[override]
        """Return the two-projector model of this device's modalities."""
        s = self.settings
        return TwoProjectorClassifier(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.modalities,
            self.partition.num_classes,
            width=s.common_dim + s.specific_dim,
            choice=s.encoder_choice,
            fill=self.options.fill,
            train_filled=self.options.train_filled,
            seed=s.seed,
        )

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Freeze the mixed model as the teacher, and find the temperatures."""
        o, several = self.options, len(self.partition.modalities) > 1
        self._teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._teaches = bool(several and o.infiltration_weight and plan.server_round >= 2)
        if self._teaches:
            true = self._true_class_probabilities()
            how = {"slope": o.temperature_slope, "lowest": o.min_temperature}
            self._temperatures = {}
            for a, b in combinations(self.partition.modalities, 2):
                both = true[a].isfinite() & true[b].isfinite()
                first, second = (self._mean_by_class(true[m], both) for m in (a, b))
                temperatures = class_temperatures(first, second, **how)
                self._temperatures[frozenset((a, b))] = o.softening * temperatures

    def frozen(self) -> dict[str, nn.Module]:
        """Return the mixed model."""
        needed = self._teaches or self.options.proximal
        return {"teacher": self._teacher} if needed else {}

    def fixed(self) -> dict[str, Tensor]:
        """Return the temperatures ``[classes]`` of each pair, ``<a> <b>`` both ways round."""
        if not self._teaches:
            return {}
        pairs = self._temperatures.items()
        return {" ".join(p): t for pair, t in pairs for p in permutations(pair)}

    @torch.no_grad()
    def _true_class_probabilities(self) -> dict[str, Tensor]:
        """Return the probability of each own sample's class by modality, ``[n]``.

        NaN for a sample that lacks the modality, or has no other one.
        """
        labels = self.train_data.labels
        true = {
            m: torch.full(labels.shape, torch.nan, device=self.device)
            for m in self.partition.modalities
        }
        for part in every_part(self.train_data):
            if len(part.inputs) == 1:
                continue
            for m, own in self._teacher.encode(part.inputs).own.items():
                shares = F.softmax(self._teacher.head(m, own), dim=1)
                true[m][part.labels] = shares.gather(1, labels[part.labels, None]).squeeze(1)
        return true

    def _mean_by_class(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the mean of ``values`` ``[n]`` over ``rows`` (bool) of each class; NaN of none."""
        labels, classes = self.train_data.labels[rows], self.partition.num_classes
        sums = torch.zeros(classes, device=self.device).index_add_(0, labels, values[rows])
        return sums / torch.bincount(labels, minlength=classes)

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        o, y, p = self.options, batch.labels, self.model.encode(batch.inputs)
        loss = self.cross_entropy(self.model.fuse(p), y)
        several = len(p.own) > 1
        if o.head_weight and (several or o.uni_modal_heads):
            read = list(p.own.items()) if several else [*p.own.items(), *p.infiltration.items()]
            terms = [self.cross_entropy(self.model.head(m, z), y) for m, z in read]
            loss = loss + o.head_weight * total(terms)
        if several and self._teaches:
            loss = loss + o.infiltration_weight * self._infiltration(batch, p)
        return loss

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Add the proximal term's gradient, ``mu (w - w_mixed)``, to what the iteration trains."""
        pairs = zip(self.model.parameters(), self._teacher.parameters(), strict=True)
        for w, mixed in pairs if self.options.proximal else ():
            if w.grad is not None:
                w.grad.add_(w - mixed, alpha=self.options.proximal)

    def _infiltration(self, batch: Batch, p: Projections) -> Tensor:
        """Return the mean distillation loss of the modalities that are not ahead, ``[...]``.

        Of devices in a stack each may have another one ahead: each takes the terms that are its
        own, and 0 for the others.
        """
        terms, given, y = list[Tensor](), batch.given, batch.labels
        for d, leads in self.dominant(p, y).items():
            if not bool(leads.any()):
                continue
            with torch.no_grad():
                teacher = self._teacher.encode({d: batch.inputs[d]}).own[d]
                logits = self._teacher.head(d, teacher)
            for m, z in p.infiltration.items():
                if m == d:
                    continue
                if self.options.infiltrate == "features":
                    apart = (z - teacher).square().flatten(-2).mean(dim=-1)
                else:
                    temperature = given[f"{m} {d}"].take_along_dim(y, dim=-1)
                    apart = infiltration_loss(self.model.head(m, z), logits, temperature)
                terms.append(torch.where(leads, apart, 0.0))
        return total(terms) / (len(p.own) - 1)

    @torch.no_grad()
    def dominant(self, p: Projections, labels: Tensor) -> dict[str, Tensor]:
        """Return whether a modality is ahead, ``[...]`` bool; the first one of equals.

        Its head gives the true classes the highest summed probability.
        """
        true = [true_probabilities(self.model.head(m, z), labels) for m, z in p.own.items()]
        best = torch.stack([x.sum(dim=-1) for x in true], dim=-1).argmax(dim=-1)
        return {m: best == k for k, m in enumerate(p.own)}
