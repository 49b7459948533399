"""The base of methods in stages: a network of each modality first, then a fusion of them."""

from collections.abc import Collection, Hashable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..models import ModalityNetworks
from ..payload.plan import Inbox, Payload, Plan
from .stages import FUSION, STAGES, UNI_MODAL, StagedOptions


class Staged(Learner):
    """Uni-modal networks first, ``L = sum_m CE(h_m(f_m(x_m)), y)``, then their fusion.

    In the fusion stage a device with several modalities minimises ``CE(h([f'_1; f'_2; ...]), y)``;
    the encoders f' begin as copies of its f when the stage does. A mini-batch row, or an iteration,
    that lacks a modality is fused without it. What a stage leaves alone is not sent in it: such a
    block travels as an empty vector, and is not mixed.

    Several modalities are predicted by the fusion network once one has been published
    (:class:`~flwr_dmml.models.ModalityNetworks`). Training speeds are those of f, which stand still
    while f' trains. ``modality-loss`` has no effect.
    """

    options_type: ClassVar[type[Options]] = StagedOptions
    unaccounted: ClassVar[str] = ""
    stacks: ClassVar[bool] = True
    options: StagedOptions
    model: ModalityNetworks  # type: ignore[assignment]

    def reset(self) -> None:
        """Start afresh, in the first stage."""
        super().reset()
        self.stage = UNI_MODAL

    def build_model(self) -> ModalityNetworks:  # type: ignore[override]
        """Return the networks of this device's modalities."""
        s = self.settings
        return ModalityNetworks(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.modalities,
            self.partition.num_classes,
            width=s.common_dim + s.specific_dim,
            choice=s.encoder_choice,
            seed=s.seed,
        )

    def in_stage(self, stage: str) -> Collection[str]:
        """Return the blocks that are sent and mixed in a stage; override it."""
        return self.model.blocks()

    def sends(self, plan: Plan) -> Collection[str]:
        """Return what this stage sends."""
        return self.in_stage(self.stage)

    @property
    def published(self) -> str:
        """The stage in which this device has last published."""
        return STAGES[int(self.memory["stage"])] if "stage" in self.memory else UNI_MODAL

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix what the stage of the round before has sent."""
        sent = self.in_stage(self.published)
        weights = {name: w for name, w in plan.weights.items() if name in sent}
        return super().mix(replace(plan, weights=weights), inbox)

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Begin the plan's stage; the closing message has none, and is of the last."""
        self.stage = plan.phase or self.published
        if self.stage != UNI_MODAL and self.published == UNI_MODAL:
            self.model.begin_fusion()

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        if self.stage == FUSION and self.model.fuses:
            return self.cross_entropy(self.model.fused(batch.inputs), batch.labels)
        own = self.model.alone(batch.inputs).values()
        return total(self.cross_entropy(logits, batch.labels) for logits in own)

    def stack_key(self) -> Hashable:
        """Return the stage."""
        return self.stage

    def outgoing(self, plan: Plan, inbox: Inbox, blocks: Payload) -> Payload:
        """Note in which stage this was published."""
        self.memory["stage"] = torch.tensor([STAGES.index(self.stage)])
        return blocks

    def predictor(self) -> ModalityNetworks:
        """Return the networks, set to what has been published."""
        self.model.predicts_fused = self.published != UNI_MODAL
        return self.model
