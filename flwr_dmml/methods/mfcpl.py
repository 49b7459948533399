"""MFCPL: features follow the prototypes of all modalities, those that a device lacks included."""

from itertools import combinations
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.optimisers import total
from ..learning.options import Options
from ..payload.plan import Inbox, Plan
from .prototypes import Prototyped, contrast, whole
from .statistics_only import StatisticsOnly, StatisticsOnlyOptions


class MfcplOptions(StatisticsOnlyOptions):
    """Weights of the terms, this project's."""

    shared: float = Field(1.0, ge=0, description="weight of the shared prototypes' distance (CMPR)")
    specific: float = Field(1.0, ge=0, description="weight of the own prototypes' contrast (CMPC)")
    alignment: float = Field(1.0, ge=0, description="weight of the modalities' distance (CMA)")
    temperature: float = Field(0.5, gt=0, description="temperature of the contrast")


class Mfcpl(StatisticsOnly, Prototyped):
    """Plain gossip with cross prototypes of all modalities.

    With the class means p_c^m of each modality's features z^m = [c^m; s^m], which the neighbourhood
    averages (:class:`~.prototypes.Prototyped`), and P_c the mean over the modalities of their
    common halves, a device minimises, over the samples i and modalities m of a mini-batch::

        CE(fused, y) + l1 mean_im ||c_i^m - P_(y_i)||^2 / length                            CMPR
                     + l2 mean_im -log softmax_c(cos(z_i^m, p_c^m) / T)[y_i]                CMPC
                     + l3 mean_i mean_(m<n) ||c_i^m - c_i^n||^2 / length                    CMA

    P_c holds the prototypes of modalities that the device lacks, as its neighbours send them; a
    term of a modality or class that is not there is left out, such as CMA with one modality.

    Only the abstract is known in full: the three terms and what they are for are the paper's, every
    formula and weight is this project's reconstruction. The shared space is this model's common
    half. With ``blocks = false`` devices exchange nothing but prototypes, as Modalis does
    (Information Fusion 2026; its other losses are not known): encoders and heads stay local. With
    all weights 0 this is ``dpsgd``. Prototypes tell neighbours the label counts.

    References
    ----------
    Le et al., "Cross-Modal Prototype based Multimodal Federated Learning under Severely Missing
    Modality", arXiv 2401.13898, 2024.
    """

    name: ClassVar[str] = "mfcpl"
    paper: ClassVar[str] = "Le et al., arXiv 2401.13898, 2024 (reconstruction)"
    references: ClassVar[tuple[str, ...]] = ("le2024crossmodal",)
    options_type: ClassVar[type[Options]] = MfcplOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "prototypes of own samples"
    options: MfcplOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Average the prototypes, over the modalities as well."""
        super().before_training(plan, inbox)
        p = self.prototypes
        halves = [p[f"prototypes.{m}"][:, : self.settings.common_dim] for m in self.modalities]
        known = [p[f"has.{m}"][:, None].float() for m in self.modalities]
        count = total(known)
        mean = total(x * has for x, has in zip(halves, known, strict=True)) / count.clamp_min(1)
        self.prototypes |= {"shared": mean, "has": count[:, 0] > 0}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features, y, o = self.model.encode(batch.inputs), batch.labels, self.options
        loss, c, given = self.task_loss(features, y), features.common, batch.given
        if o.shared:
            goal = given["shared"].take_along_dim(y[..., None], dim=-2)  # [..., batch, common]
            there = given["has"].take_along_dim(y, dim=-1)
            apart = total((x - goal).square().mean(dim=-1) for x in c.values()) / len(c)
            loss = loss + o.shared * (apart * there).mean(dim=-1)
        if o.specific:
            own = [
                contrast(z, given[f"prototypes.{m}"], given[f"has.{m}"], y, o.temperature)
                for m, z in whole(features).items()
            ]
            loss = loss + o.specific * total(own) / len(own)
        if o.alignment and len(c) > 1:
            pairs = list(combinations(c.values(), 2))
            apart = total((a - b).square().mean(dim=-1) for a, b in pairs) / len(pairs)
            loss = loss + o.alignment * apart.mean(dim=-1)
        return loss
