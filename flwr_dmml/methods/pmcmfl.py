"""PmcmFL: prototypes stand in for missing modalities, and features follow their own."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..learning.batch import Batch
from ..learning.optimisers import total
from ..learning.options import Options
from ..models.slots import SlotClassifier
from ..payload.plan import Inbox, Plan
from .prototypes import Prototyped, contrast


class PmcmFlOptions(Options):
    """Options of the prototype masks and of the contrast with prototypes."""

    fill: bool = Field(True, description="fill the slots of missing modalities with prototypes")
    weight: float = Field(0.3, ge=0, description="weight of each modality's contrast")
    fused_weight: float = Field(0.4, ge=0, description="weight of the fused features' contrast")
    temperature: float = Field(0.07, gt=0, description="temperature of the contrasts")


class PmcmFl(Prototyped):
    """Plain gossip with prototype masks and contrasts.

    Every device has one linear head on slots for all modalities of the data set, those that it has
    no sensor for included. Prototypes p_c^m, the class means that the neighbourhood averages
    (:class:`~.prototypes.Prototyped`), fill the slots of missing modalities
    (:class:`~flwr_dmml.models.slots.SlotClassifier`), in training and in prediction::

        CE(head(slots), y) + a sum_m NCE(z^m, p^m) + a_f NCE([slots], [p^1; p^2; ...])
        NCE(z, p) = mean_i -log softmax_c( cos(z_i, p_c) / T )[y_i]

    sums over the modalities present. A class keeps its last prototype where nobody has samples, and
    counts for the fused contrast where its prototype is known in every slot.

    **A slot is filled without the label.** The released code takes the prototype of the true class:
    the head can then read the label from the slot, and there is none at test time. Here it is the
    mean of the prototypes under what the modalities present predict themselves.

    This project's reading besides: contrasts are with the C prototypes, not with those of the
    mini-batch's labels; soft targets are not exchanged; prototypes are of all samples that have a
    modality; the weights are those of a port, as the official ones (1e-8 and 0.01) hardly count.
    With fill off and both weights 0 it is gossip on cross-entropy with this model. ``fusion`` and
    ``modality-loss`` have no effect. Prototypes tell neighbours the label counts.

    References
    ----------
    Bao et al., "Multimodal Federated Learning with Missing Modality via Prototype Mask and
    Contrast", arXiv 2312.13508, 2023.
    """

    name: ClassVar[str] = "pmcmfl"
    paper: ClassVar[str] = "Bao et al., arXiv 2312.13508, 2023"
    references: ClassVar[tuple[str, ...]] = ("bao2023multimodal",)
    options_type: ClassVar[type[Options]] = PmcmFlOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "prototypes of own samples"
    options: PmcmFlOptions
    model: SlotClassifier  # type: ignore[assignment]

    def build_model(self) -> SlotClassifier:  # type: ignore[override]
        """Return the encoders of this device's modalities, and the head on all slots."""
        return SlotClassifier(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.modalities,
            self.partition.num_classes,
            width=self.length(),
            fill=self.options.fill,
            choice=self.settings.encoder_choice,
            seed=self.settings.seed,
        )

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return the prototypes, as the neighbourhood has averaged them."""
        return {"prototypes": self.model.prototypes}

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features of each modality."""
        return self.model.encode(inputs)

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Average the prototypes, and keep them in the model."""
        super().before_training(plan, inbox)
        for m in self.modalities:
            has = self.prototypes[f"has.{m}"].float()
            self.model.prototypes.put(m, self.prototypes[f"prototypes.{m}"], has)
        self.prototypes = {}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        o, y, z = self.options, batch.labels, self.model.encode(batch.inputs)
        slots = self.model.filled(z)
        loss = self.cross_entropy(self.model.fusion(slots), y)
        library = {m: self.model.prototypes.of(m) for m in slots}
        if o.weight:
            own = [contrast(x, *library[m], y, o.temperature) for m, x in z.items()]
            loss = loss + o.weight * total(own)
        if o.fused_weight:
            names = [m for m in self.model.slots if m in slots]
            fused = torch.cat([slots[m] for m in names], dim=-1)
            values = torch.cat([library[m][0] for m in names], dim=-1)
            known = torch.stack([library[m][1] for m in names]).amin(dim=0)
            loss = loss + o.fused_weight * contrast(fused, values, known, y, o.temperature)
        return loss
