"""What a method may override, with what it does otherwise."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..base.seeding import derive_seed
from ..data import Partition
from ..losses import cross_entropies, cross_entropy
from ..models import DecomposedClassifier, Features, Fusion, ModalityModel
from ..payload.coding import Precision
from ..payload.plan import Inbox, Payload, Plan
from .balance import schedule
from .batch import Batch
from .label_shares import Correction
from .mixing import Mixer
from .optimisers import total
from .options import Options
from .settings import DeviceSettings, FusionChoice

CourierChoice = Literal["off", "forward", "average"]
STATISTICS_BYTES = 16 << 20
"""Enough for 100 prototypes of 40,000 numbers."""


class Hooks:
    """The part of a :class:`~.learner.Learner` that is the method's: names, defaults, and hooks."""

    name: ClassVar[str] = ""
    """Name of the method in the run config."""
    paper: ClassVar[str] = "this project"
    """Where the method comes from."""
    references: ClassVar[tuple[str, ...]] = ()
    """Keys of its papers in ``flwr_dmml/references.bib``."""
    options_type: ClassVar[type[Options]] = Options
    communicates: ClassVar[bool] = True
    """False for a method without neighbours: nothing is routed or mixed."""
    stagger: ClassVar[float] = 0.0
    """The setting ``stagger`` where the run config says "auto"."""
    gossip: ClassVar[str] = "dpsgd"
    """The setting ``gossip`` where the run config says "auto"."""
    allocation: ClassVar[str] = "uniform"
    """The setting ``allocation.rule`` where the run config says "auto"."""
    label_correction: ClassVar[Correction] = "off"
    """The setting ``label-correction`` where the run config says "auto"."""
    modality_loss: ClassVar[float] = 0.0
    """The setting ``modality-loss`` where the run config says "auto"."""
    fusion: ClassVar[FusionChoice] = "additive"
    """The setting ``fusion`` where the run config says "auto"."""
    input_noise: ClassVar[float] = 0.0
    """The setting ``input-noise`` where the run config says "auto"."""
    exchange_precision: ClassVar[Precision] = "float32"
    """The setting ``exchange.precision`` where the run config says "auto"."""
    couriers: ClassVar[CourierChoice] = "off"
    """The setting ``couriers`` where the run config says "auto"."""
    compares: ClassVar[bool] = False
    """Whether it looks at the models of single neighbours (``mixer.models``)."""
    own_weights: ClassVar[bool] = False
    """Whether the method changes the mixing weights, from round to round."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of blocks that the method reads of its neighbours', besides mixing
    them: no gossip rule with which they stay (:class:`.CouplingRule`) goes with it, nor
    ``privacy.zip-noise``, nor ``privacy.secure-sums``."""
    own_format: ClassVar[bool] = False
    """Whether ``outgoing`` writes blocks in a format of the method's own, and ``mix`` reads it:
    such a method is neither compressed (``exchange.precision``, ``exchange.top-k``) nor run with
    another gossip rule."""
    stacks: ClassVar[bool] = True
    """Whether its loss can be computed for many devices at once (:mod:`~.training`): then in
    ``local_loss`` and ``modulate`` parameters, ``batch.inputs``, ``batch.labels`` and
    ``batch.given`` have a first dimension more, for the devices, and the loss is ``[device]``.
    A class that overrides one of :data:`~.learner.IN_A_STACK` says so itself, or is taken one by
    one."""
    unaccounted: ClassVar[str] = ""
    """What it takes from own training samples besides the gradient of each sample's loss, in words
    such as "prototypes of own samples": ``privacy.dp`` refuses it. Empty if there is nothing. The
    loss of a mini-batch is then the mean of its samples', and nothing is drawn (``draw``). A class
    that overrides one of :data:`~.learner.SEES_SAMPLES` says so itself, or is refused."""

    partition: Partition
    settings: DeviceSettings
    model: DecomposedClassifier
    mixer: Mixer
    server_round: int
    label_shift: Tensor | None

    def build_model(self) -> DecomposedClassifier:
        """Return the model of this device's modalities, seeded by the run."""
        owned = {m: self.partition.source_modalities[m] for m in self.partition.modalities}
        return DecomposedClassifier(
            owned,
            self.partition.num_classes,
            common_dim=self.settings.common_dim,
            specific_dim=self.settings.specific_dim,
            choice=self.settings.encoder_choice,
            fusion=self._fusion(),
            seed=self.settings.seed,
        )

    def _fusion(self) -> Fusion:
        """Return ``fusion``; where the method does not say, it goes by the kind of the data."""
        if self.settings.fusion != "auto":
            return self.settings.fusion
        forms = self.partition.source_modalities.values()
        vectors = all(len(form.shape) == 1 for form in forms)
        return "detached" if vectors and self.settings.modality_weight else "additive"

    def blocks(self) -> dict[str, nn.Module]:
        """Return what is published and mixed, by block name; a plain module is one block."""
        model: nn.Module = self.model
        return model.blocks() if isinstance(model, ModalityModel) else {"model": model}

    def encoders(self) -> dict[str, nn.Module]:
        """Return the encoder of each modality, whose training speed is measured.

        A plain module has none, and its modalities no speed.
        """
        model: nn.Module = self.model
        return dict(model.encoders.items()) if isinstance(model, ModalityModel) else {}

    def modality_of(self, block: str) -> str:
        """Return the only modality whose iterations train a block; empty if all iterations do.

        As the last part of its name says: ``encoder.audio``.
        """
        name = block.rpartition(".")[2]
        return name if name in self.partition.modalities else ""

    def sends(self, plan: Plan) -> Collection[str]:
        """Return which of the blocks are sent in a round; of the others goes an empty vector."""
        return self.blocks()

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser steps."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return what is neither published nor mixed but must survive from round to round."""
        return {}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the scalar to minimise: :meth:`task_loss` unless overridden."""
        a, x, y = self.settings.modality_weight, batch.inputs, batch.labels
        if a and isinstance(self.model, DecomposedClassifier):
            return self.task_loss(self.model.encode(x), y)
        loss = self.cross_entropy(self.model(x), y)
        if a and len(x) > 1:
            loss = loss + a * sum(self.cross_entropy(self.model({m: x[m]}), y) for m in x)
        return loss

    def cross_entropy(self, logits: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of own samples, corrected for the device's label shares.

        ``CE(f + a, y)`` with a of :meth:`.LabelShares.shift`, under ``label-correction``. Soft
        labels are those of public samples, and not corrected.

        Parameters
        ----------
        logits, labels : Tensor
            See :func:`~flwr_dmml.losses.cross_entropy`.
        of : Tensor, optional
            Which samples count, ``[..., batch]`` bool; all by default. Of none it is 0.
        """
        if self.label_shift is not None and not labels.is_floating_point():
            logits = logits + self.label_shift[..., None, :]
        if of is None:
            return cross_entropy(logits, labels)
        return (cross_entropies(logits, labels) * of).sum(dim=-1) / of.sum(dim=-1).clamp_min(1)

    def task_loss(self, features: Features, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the fused prediction, and of each modality's own.

        ``CE(fused, y) + a sum_m CE(m alone, y)``, a = ``modality-loss``; solo, the first term only.
        """
        loss = self.cross_entropy(self.model.fuse(features), labels)
        return self.with_modality_losses(loss, features, labels)

    def with_modality_losses(self, loss: Tensor, features: Features, labels: Tensor) -> Tensor:
        """Return a loss plus the second term of :meth:`task_loss`."""
        if self.settings.modality_weight and len(features.common) > 1:
            alone = [self.model.fuse(features.only([m])) for m in features.common]
            own = total(self.cross_entropy(logits, labels) for logits in alone)
            loss = loss + self.settings.modality_weight * own
        return loss

    def steps(self, updates: Mapping[str, int]) -> list[tuple[str, ...]]:
        """Return which modalities each iteration of a round trains."""
        if len(updates) == 1:  # there is nothing to shuffle
            return [(m,) for m, count in updates.items() for _ in range(count)]
        seed = derive_seed(self.settings.seed, "schedule", self.server_round)
        return schedule(updates, self.settings.stagger_share, seed)

    def fixed(self) -> dict[str, Tensor]:
        """Return tensors that the loss of every iteration of this round reads, besides the batch.

        They are in ``batch.given``: a loss that is computed for many devices at once
        (:attr:`stacks`) reads them there, not from ``self``.
        """
        return {}

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Return what else an iteration has of this device, such as what it draws at random.

        It is in ``batch.given``; equal modalities, equal names and shapes on all devices.
        """
        return {}

    def running(self) -> dict[str, Tensor]:
        """Return what :meth:`modulate` brings up to date, in place, from iteration to iteration.

        It is in ``batch.given``, and in ``memory`` after the last iteration of a round.
        """
        return {}

    def frozen(self) -> dict[str, nn.Module]:
        """Return further modules that the loss calls in this round, and that it does not train."""
        return {}

    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> Mapping[str, Tensor] | None:
        """Change the gradients of an iteration of these modalities, before they are clipped.

        Those of :meth:`trained_parameters`; None of what the loss has not reached, or is not to be
        stepped. Return by block which devices let it rest, ``[...]`` bool: it stays as it is there,
        its momentum too, as if the loss had not reached it.
        """
        return None

    def statistics(self) -> dict[str, Tensor]:
        """Return small tensors that travel with the blocks and are not mixed."""
        return {}

    def statistics_bytes(self) -> int:
        """Return the most bytes of statistics in any device's payload: a longer one is refused."""
        return STATISTICS_BYTES

    def learning_rates(self) -> dict[str, float]:
        """Return factors on the learning rate by block; 1 where none is given."""
        return {}

    def make_optimizer(
        self, groups: Sequence[tuple[list[nn.Parameter], float]]
    ) -> torch.optim.Optimizer | None:
        """Return an optimiser of the method's own; None for the package's SGD or Adam.

        Parameters
        ----------
        groups : sequence of (list of Parameter, float)
            What is to be optimised, with the learning rate of the round.
        """
        return None

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix the blocks in place; return what :meth:`~.mixing.Mixer.mix` does."""
        given = plan.weights, plan.sources, inbox, plan.recipients
        late = {there.origin: there.couriers for there in plan.far}
        return self.mixer.mix(
            *given,
            anew=plan.anew,
            late=late,
            measure=plan.evaluate,
            progress=self.progress(plan),
        )

    def progress(self, plan: Plan) -> float:
        """Return the share of the run's rounds that are over, in [0, 1]."""
        return (plan.server_round - 1) / (plan.num_rounds or self.settings.num_server_rounds)

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs before anything else, once the blocks are mixed."""

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs after mixing and before the local iterations."""

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs after the local iterations and before publishing."""

    def outgoing(self, plan: Plan, inbox: Inbox, blocks: Payload) -> Payload:
        """Return what is published instead of ``blocks``: flat vectors, as the rule sends them.

        See :attr:`own_format` for a method that writes them in another way.
        """
        return blocks

    def scores(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return what tells the classes, from each subset of ``inputs``, which may lack modalities.

        Logits, or logarithms of probabilities: ``[batch, classes]``, the highest is predicted.
        """
        model = self.predictor()
        if isinstance(model, ModalityModel):
            return model.logits(inputs, subsets)
        return [model({m: inputs[m] for m in subset}) for subset in subsets]

    def predictor(self) -> nn.Module:
        """Return what predicts: the model, set to how it does so now. It is what a run keeps."""
        return self.model
