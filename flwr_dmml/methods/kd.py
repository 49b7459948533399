"""KD: neighbours exchange soft labels of a public set and train on them beside their own data."""

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..data import public_problems
from ..learning.batch import Batch, batch_of, draw_indices
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox, Plan
from .labelling import received, sent, taught
from .soft_labels import LABELS, SoftLabels, average
from .teaching import logits_of
from .with_public import WithPublic

TRAIN, LABEL, FINE_TUNE = "train", "label", "fine-tune"
"""The phases: in ``label`` devices label the public set before they train."""
OWN, TAUGHT = "own", "taught"


class KdOptions(Options):
    """Schedule of the exchanges of soft labels."""

    start: float = Field(0.4, ge=0, lt=1, description="share of the rounds before the first labels")
    exchange_every: int = Field(
        8, ge=0, description="rounds from one exchange of labels to the next; 0 exchanges once"
    )

    def label_rounds(self, num_rounds: int) -> range:
        """Return the rounds in which devices label; never the last one, which teaches nobody."""
        first = round(self.start * num_rounds) + 1
        return range(first, num_rounds, self.exchange_every or num_rounds)

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``train``, ``label`` or, between labels, ``fine-tune``."""
        rounds = self.label_rounds(num_rounds)
        if server_round in rounds:
            return LABEL
        return FINE_TUNE if rounds and server_round > rounds[0] else TRAIN

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse a run without a fit public set, or too short to exchange labels."""
        problems = super().problems(settings)
        rounds = settings.num_server_rounds
        if not self.label_rounds(rounds):
            problems.append(
                f"num-server-rounds = {rounds}: no round is left to label in and to train on the "
                f"labels after a share of {self.start:g} of them (start); set more rounds"
            )
        if settings.allocation.rule == "sync-only":
            problems.append(
                "allocation.rule = 'sync-only': devices that do not train in a round do not label "
                "in it either; use another rule"
            )
        return problems + public_problems(settings.public, settings.partition_options())


class Kd(WithPublic):
    """Vanilla distillation over a graph: every public sample is labelled by every device.

    In a labelling round a device sends ``softmax(f(u))`` for the public samples u that it chooses,
    here all of them. It averages what it gets with its own, per sample over those who sent a label,
    and from then on draws its mini-batches from its own data and the labelled public samples
    together, on the cross-entropy with soft labels. New labels replace the old, whenever they come.
    A device labels from the modalities it owns: the owner of a camera teaches that of a microphone.

    References
    ----------
    The baseline of IDKD (Ravikumar et al., TMLR 2024): :class:`~.idkd.Idkd` without its detector.
    """

    name: ClassVar[str] = "kd"
    paper: ClassVar[str] = "baseline of Ravikumar et al., TMLR 2024"
    references: ClassVar[tuple[str, ...]] = ("ravikumar2024homogenizing",)
    gossip: ClassVar[str] = "qg-dsgdm-n"
    options_type: ClassVar[type[Options]] = KdOptions
    unaccounted: ClassVar[str] = "mini-batches of own samples together with public ones"
    stacks: ClassVar[bool] = True

    # ---- labelling --------------------------------------------------------------------------

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Label the public set in a labelling round."""
        super().before_training(plan, inbox)
        if plan.phase == LABEL:
            self.model.eval()
            logits = logits_of(self.model, self.public)  # [public, classes]
            chosen = self.choose(logits).cpu()
            labels = SoftLabels.of(chosen, F.softmax(logits, dim=1).cpu()[chosen])
            self._keep(OWN, labels)
            self.measured |= sent(chosen, self.public_set)

    def choose(self, logits: Tensor) -> Tensor:
        """Return the positions of the public samples to label, sorted, from ``[public, classes]``.

        Override it for a detector of your own.
        """
        return torch.arange(len(logits))

    def statistics(self) -> dict[str, Tensor]:
        """Return the labels of a labelling round, if there are any."""
        labels = self._kept(OWN)
        message = labels.pack() if labels is not None and len(labels.index) else {}
        prefix = LABELS.removeprefix(STATISTICS)
        return super().statistics() | {prefix + key: value for key, value in message.items()}

    def statistics_bytes(self) -> int:
        """Return those of labels for the whole public set, beside the usual."""
        sample = 4 + 2 * self.partition.num_classes  # int32 and float16
        return super().statistics_bytes() + len(self.public_set) * sample

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Average the labels that have come with the own ones of the round before."""
        super().after_mixing(plan, inbox)
        shape = len(self.public), self.partition.num_classes
        senders, wrong = received(inbox, *shape)
        self.rejected += wrong
        if (own := self._kept(OWN)) is not None:
            senders.append(own)
            self._drop(OWN)
        if senders:
            labels = average(senders, *shape, robust=self.aggregation.robust)
            self._keep(TAUGHT, labels)
            self.measured |= taught(labels, self.public_set, self.train_data.labels.cpu())

    # ---- training on the labels -------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether this device has labels to train on."""
        return f"{TAUGHT}.index" in self.memory and len(self.memory[f"{TAUGHT}.index"]) > 0

    @property
    def whole(self) -> bool:
        """Whether every sample, own or public, has all of this device's modalities."""
        return not self.train_data.present and set(self.partition.modalities) <= {
            *self.public_set.inputs
        }

    def stack_key(self) -> Hashable:
        """Return whether there are labels to train on."""
        return self.learns

    def stacks_now(self) -> bool:
        """Return False while rows of a mini-batch have different modalities: each by itself."""
        return super().stacks_now() and (not self.learns or self.whole)

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches of own and labelled public samples, from passes over both together.

        Where all have the same modalities, own labels are written as probabilities, too.
        """
        labels = self._kept(TAUGHT)
        if labels is None or not self.learns:
            yield from super().batches(iterations)
            return
        public = self.public.subset(labels.index)
        targets = labels.labels.float().to(self.device)  # [k, classes]
        own, size = len(self.train_data), self.settings.batch_size
        for rows in draw_indices(own + len(public), iterations, size, self.rng("batches")):
            private, others = batch_of(self.train_data.subset(rows[rows < own])), rows[rows >= own]
            drawn, soft = public.subset(others - own), targets[others - own]
            if not self.whole:
                yield replace(private, others=(*private.others, Batch(dict(drawn.inputs), soft)))
                continue
            known = F.one_hot(private.labels, self.partition.num_classes).to(soft)
            inputs = {m: torch.cat([x, drawn.inputs[m]]) for m, x in private.inputs.items()}
            yield Batch(inputs, torch.cat([known, soft]))

    # ---- labels in the state ----------------------------------------------------------------

    def _keep(self, name: str, labels: SoftLabels) -> None:
        self.memory |= {f"{name}.{key}": value for key, value in labels.pack().items()}

    def _kept(self, name: str) -> SoftLabels | None:
        if f"{name}.index" not in self.memory:
            return None
        return SoftLabels(self.memory[f"{name}.index"], self.memory[f"{name}.labels"])

    def _drop(self, name: str) -> None:
        for key in ("index", "labels"):
            self.memory.pop(f"{name}.{key}", None)
