"""ModalityMirror: a fusion of the modalities teaches the network of one of them."""

from collections.abc import Collection, Hashable, Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..learning.batch import Batch, draw_batches, draw_indices, numbered
from ..learning.optimisers import total
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..losses import distillation_loss
from ..payload.plan import Inbox, Plan
from .staged import Staged
from .stages import DISTIL, FUSION, UNI_MODAL, StagedOptions, fleet
from .teaching import having, logits_of, share_right

PASSED = "passed"
"""Key under which it is stored whether the teacher has passed."""


class MirrorOptions(StagedOptions):
    """The stages, and how the teacher teaches."""

    fusion: float = Field(0.2, gt=0, lt=1, description="share of the rounds that train the teacher")
    student: str = Field("audio", description="modality whose network is taught after that")
    lam: float = Field(0.5, ge=0, le=1, description="lambda: weight of the teacher in the loss")
    temperature: float = Field(2.0, gt=0, description="temperature of the distillation")
    margin: float = Field(
        0.1, ge=0, le=1, description="teach if the teacher's held-out accuracy is this much higher"
    )
    all_nodes: bool = Field(
        True, description="devices without a teacher train in that time, too; off: they rest"
    )

    def ends(self) -> dict[str, float]:
        """Return the share of the rounds after which each stage ends, in order."""
        return {UNI_MODAL: self.uni_modal, FUSION: self.uni_modal + self.fusion, DISTIL: 1.0}

    def teaches(self, modalities: Collection[str]) -> bool:
        """Return whether a device with these modalities has a teacher of the student."""
        return len(modalities) > 1 and self.student in modalities

    def trained(self, phase: str, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of its ``modalities`` a device trains in a stage; () only mixes."""
        if phase != DISTIL:
            return super().trained(phase, modalities)
        if self.teaches(modalities):
            return (self.student,)
        return modalities if self.all_nodes else ()

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse a run in which nobody can teach the student, or judge the teacher."""
        problems, several = super().problems(settings), [m for m in fleet(settings) if len(m) > 1]
        if several and not any(self.teaches(modalities) for modalities in several):
            problems.append(
                f"modality-mirror.student = {self.student!r}: no device has it beside another "
                f"modality; there are {', '.join(sorted({'+'.join(m) for m in several}))}"
            )
        if self.lam and settings.validation_fraction == 0:
            problems.append(
                "validation-fraction = 0: the teacher is judged on samples that a device holds "
                "out; set it above 0, or modality-mirror.lam to 0"
            )
        return problems


class ModalityMirror(Staged):
    """Uni-modal networks, then a teacher that fuses them, then a student of one modality.

    The first two stages are those of :class:`~.staged.Staged`. The teacher is owned by devices with
    several modalities. It is mixed as a whole (``teacher.encoder.<m>``, ``teacher.head``) while it
    trains, then frozen. In the last stage these devices train the student's network S alone::

        L_S = (1 - lam) CE(S(x_s), y) + lam T^2 KL(softmax(teacher / T) || softmax(S(x_s) / T))

    if the teacher is better than S by ``margin`` on the samples that the device holds out and that
    have the student's modality, judged once, when the stage begins; elsewhere lam is 0. S is the
    network of its modality in all stages, so that every owner gets it by gossip. The others train
    their own networks on the labels, or with ``all-nodes`` off only mix, as in the paper's
    deployment.

    A device that a stage does not train rests: it mixes, and is not billed for computing. So do
    those with one modality in the fusion stage, as in the paper. The teacher is asked once a round
    about the own samples that the round draws. That is billed, for ``local-iterations``, in every
    round of the last stage, with the judging, also where it has not passed: at most too much.

    References
    ----------
    Feng, Zhang, Avestimehr and Narayanan, "ModalityMirror: Enhancing Audio Classification in
    Modality Heterogeneity Federated Learning via Multimodal Distillation", NOSSDAV 2025. Only its
    abstract is known: the stages are theirs, every formula is standard distillation (Hinton et al.,
    2015) and this project's reconstruction, as are ``margin`` and ``all-nodes``.
    """

    name: ClassVar[str] = "modality-mirror"
    paper: ClassVar[str] = "Feng et al., NOSSDAV 2025 (reconstruction)"
    references: ClassVar[tuple[str, ...]] = ("feng2025modalitymirror",)
    options_type: ClassVar[type[Options]] = MirrorOptions
    unaccounted: ClassVar[str] = "lessons of a teacher for whole mini-batches"
    stacks: ClassVar[bool] = True
    options: MirrorOptions

    def reset(self) -> None:
        """Start afresh, without lessons."""
        super().reset()
        self._lessons: Tensor | None = None  # the teacher's logits, [own samples, classes]

    def blocks(self) -> dict[str, nn.Module]:
        """Return the uni-modal networks and the teacher."""
        teacher = self.model.fusion_blocks().items()
        return self.model.blocks() | {f"teacher.{name}": block for name, block in teacher}

    def in_stage(self, stage: str) -> Collection[str]:
        """Return all in the fusion stage, else the uni-modal networks."""
        return self.blocks() if stage == FUSION else self.model.blocks()

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Ask the teacher about the own samples, and the first time whether it may teach."""
        o, self._lessons = self.options, None
        learns = self.stage == DISTIL and o.teaches(self.partition.modalities) and o.lam > 0
        if not learns or not self.memory.get(PASSED, True):
            return
        self.model.eval()
        lessons = self._ask(plan)
        if PASSED not in self.memory:  # judged last: measuring counts the lessons, passed or not
            student = lambda inputs: self.model.alone(inputs)[o.student]  # noqa: E731
            held_out, lead = having(self.validation_data, o.student), -1.0
            if len(held_out):
                own = share_right(student, held_out.restrict([o.student]))
                lead = self.measured["teacher.lead"] = share_right(self.model.fused, held_out) - own
            self.memory[PASSED] = torch.tensor([int(lead >= o.margin - 1e-9)])
        self._lessons = lessons if self.memory[PASSED] else None

    def _ask(self, plan: Plan) -> Tensor:
        """Return the teacher's logits ``[n, classes]`` of the samples that this round draws."""
        n, size, most = (
            len(self.train_data),
            self.settings.batch_size,
            self.settings.local_iterations,
        )
        planned = [plan.by_modality.get(m, plan.iterations) for m in self.partition.modalities]
        drawn = draw_indices(n, max(most, sum(planned)), size, self.rng("batches"))
        rows = torch.unique(torch.cat(list(drawn)))
        logits = torch.full((n, self.partition.num_classes), torch.nan, device=self.device)
        logits[rows] = logits_of(self.model.fused, self.train_data.subset(rows))
        return logits

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches as ever; where the teacher teaches, their labels are positions."""
        if self._lessons is None:
            return super().batches(iterations)
        size = self.settings.batch_size
        return draw_batches(numbered(self.train_data), iterations, size, self.rng("batches"))

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Return the classes and the teacher's logits of a batch, with lessons."""
        if self._lessons is None:
            return {}
        rows = batch.labels
        return {"classes": self.train_data.labels[rows], "lessons": self._lessons[rows]}

    def stack_key(self) -> Hashable:
        """Return the stage, and whether there are lessons."""
        return super().stack_key(), self._lessons is not None

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the stage; with lessons, that of the class docstring."""
        if self._lessons is None:
            return super().local_loss(batch)
        o, given, own = self.options, batch.given, self.model.alone(batch.inputs)
        losses = {m: self.cross_entropy(x, given["classes"]) for m, x in own.items()}
        if o.student in own:
            taught = distillation_loss(own[o.student], given["lessons"], o.temperature)
            losses[o.student] = (1 - o.lam) * losses[o.student] + o.lam * taught
        return total(losses.values())
