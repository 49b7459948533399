"""The base learner: what one device does in a round. A method overrides its loss and its hooks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.seeding import derive_seed, global_generator
from ..data import Partition
from ..models import DecomposedClassifier, Features
from ..payload.blocks import (
    STATISTICS,
    check_kept,
    check_mixable,
    flatten,
    load_flat,
    num_parameters,
)
from ..payload.compression import Compressor
from ..payload.plan import Inbox, Outcome, Payload, Plan
from .balance import schedule
from .batch import Batch, draw_batches, mean_over
from .devices import on_device, resolve_device
from .evaluation import accuracy_metrics
from .mixing import mix_blocks
from .nonfinite import check_finite
from .optimisers import OPTIMIZER, make_optimizer, optimizer_tensors
from .options import Options
from .settings import DeviceSettings
from .speedometer import SPEEDS, Speedometer

MEMORY = "memory."
"""Prefix of what a method keeps, in a learner's state."""


class Learner:
    """Mix with the neighbours, train on one's own data, publish: D-PSGD unless overridden.

    A method of your own overrides ``local_loss``; ``statistics``, ``before_training``, ... are
    there for methods that need more, ``blocks`` for what else is mixed. A model other than
    :class:`~flwr_dmml.models.DecomposedClassifier` comes with ``blocks`` and ``predict`` to match.

    Parameters
    ----------
    partition : Partition
        This device's data and modalities.
    settings : DeviceSettings
        The settings all methods share.
    options : Options
        The method's own, an instance of ``options_type``.
    """

    name: ClassVar[str] = ""
    """Name of the method in the run config."""
    paper: ClassVar[str] = "this project"
    """Where the method comes from."""
    options_type: ClassVar[type[Options]] = Options
    communicates: ClassVar[bool] = True
    """False for a method without neighbours: nothing is routed or mixed."""
    stagger: ClassVar[float] = 0.0
    """The setting ``stagger`` where the run config says "auto"."""
    rule: ClassVar[str] = "uniform"
    """The setting ``allocation.rule`` where the run config says "auto"."""
    addressed: ClassVar[bool] = False
    """Whether a device sends every neighbour blocks of its own, instead of the same to all."""
    keeps_optimizer: ClassVar[bool] = False
    """Whether momentum and the like survive from one round to the next."""
    batched: ClassVar[bool] = False
    """Whether devices may be trained together (:mod:`~.together`). Such a method overrides nothing
    that happens in a round but ``local_loss``, a function of the parameters and the batch alone."""

    def __init__(self, partition: Partition, settings: DeviceSettings, options: Options) -> None:
        self.partition = partition
        self.modalities = tuple(partition.source_modalities)  # all that any device may have
        self.settings = settings.of_method(self.stagger, self.rule)
        self.options = options
        self.device = resolve_device(settings.device)
        self.train_data = on_device(partition.train, self.device)
        self.validation_data = on_device(partition.validation, self.device)
        self.test_data = on_device(partition.test, self.device)
        self.reset()

    def reset(self) -> None:
        """Start afresh, from numbers that depend on the run's seed only.

        The built-in models give every device the same copies of the blocks it shares. A model of
        your own has to seed each block by its name for that, where devices build different ones.
        """
        self.server_round = 0
        with global_generator(derive_seed(self.settings.seed, "init", "model"), self.device):
            self.model = self.build_model().to(self.device)
        self.optimizer_state: dict[str, Tensor] = {}
        self.memory: dict[str, Tensor] = {}  # what a method keeps from round to round
        self.rejected: list[str] = []
        self.measured: dict[str, float] = {}  # in this round; hooks may add to it
        self.speedometer = Speedometer(self.encoders(), self.settings.speed_metric)
        self.compressor = Compressor(self.settings.exchange.precision, self.settings.exchange.top_k)
        modules = self.blocks() | self.private_blocks()
        check_mixable(modules)
        check_kept(self.model, modules)

    # ---- what a method overrides ------------------------------------------------------------

    def build_model(self) -> DecomposedClassifier:
        """Return the model of this device's modalities, seeded by the run."""
        owned = {m: self.partition.source_modalities[m] for m in self.partition.modalities}
        return DecomposedClassifier(
            owned,
            self.partition.num_classes,
            common_dim=self.settings.common_dim,
            specific_dim=self.settings.specific_dim,
            choice=self.settings.encoder_choice,
            seed=self.settings.seed,
        )

    def blocks(self) -> dict[str, nn.Module]:
        """Return what is published and mixed, by block name."""
        return self.model.blocks()

    def encoders(self) -> dict[str, nn.Module]:
        """Return the encoder of each modality, whose training speed is measured."""
        return dict(self.model.encoders.items())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser steps."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return what is neither published nor mixed but must survive from round to round."""
        return {}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the scalar to minimise: :meth:`task_loss` unless overridden."""
        if self.settings.modality_loss:
            return self.task_loss(self.model.encode(batch.inputs), batch.labels)
        return F.cross_entropy(self.model(batch.inputs), batch.labels)

    def task_loss(self, features: Features, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the fused prediction, and of each modality's own.

        ``CE(fused, y) + a sum_m CE(m alone, y)``, a = ``modality-loss``; solo, the first term only.
        """
        loss = F.cross_entropy(self.model.fuse(features), labels)
        if self.settings.modality_loss and len(features.common) > 1:
            alone = [self.model.fuse(features.only([m])) for m in features.common]
            own = torch.stack([F.cross_entropy(logits, labels) for logits in alone])
            loss = loss + self.settings.modality_loss * own.sum()
        return loss

    def steps(self, updates: Mapping[str, int]) -> list[tuple[str, ...]]:
        """Return which modalities each iteration of a round trains."""
        return schedule(updates, self.settings.stagger_share, self.rng("schedule"))

    def modulate(self, modalities: tuple[str, ...]) -> None:
        """Change the gradients of an iteration of these modalities, before they are clipped."""

    def statistics(self) -> dict[str, Tensor]:
        """Return small tensors that travel with the blocks and are not mixed."""
        return {}

    def make_optimizer(
        self, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Return the optimiser of a round's local iterations."""
        return make_optimizer(self.settings, parameters, learning_rate, self.optimizer_state)

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix the blocks in place; return what :func:`~.gossip.mix_blocks` does."""
        return mix_blocks(self.blocks(), plan.weights, plan.neighbours, inbox)

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs before anything else, once the blocks are mixed."""

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs after mixing and before the local iterations."""

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Do what a method needs after the local iterations and before publishing."""

    def outgoing(self, plan: Plan, inbox: Inbox, blocks: Payload) -> Payload:
        """Return what is published of the trained ``blocks`` (flat, by name)."""
        return blocks

    def predict(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return classes ``[batch]`` from each subset of ``inputs``, which may lack modalities."""
        features = self.model.encode(inputs)
        return [self.model.fuse(features.only(subset)).argmax(dim=1) for subset in subsets]

    # ---- the round --------------------------------------------------------------------------

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        """Mix, evaluate if asked, train, and publish.

        Raises
        ------
        NonFiniteModelError
            If training diverged; the caller keeps the state of before.
        """
        self.server_round, self.measured = plan.server_round, {}
        with global_generator(self.seed_for("global"), self.device):  # for dropout, say
            inbox, why = self.compressor.decode(inbox, self.blocks(), self.partition.partition_id)
            disagreement, rejected = self.mix(plan, inbox)
            self.rejected = [why.get(line, line) for line in rejected]
            self.measured |= {"mix.disagreement": disagreement} if plan.neighbours else {}
            self.after_mixing(plan, inbox)
            if plan.evaluate:
                self.measured |= self.evaluate()
            if plan.iterations == 0:
                return Outcome({}, self.measured, self.rejected)
            if any((updates := self.updates(plan)).values()):
                self.before_training(plan, inbox)
                self.measured |= self._train(plan, updates)
                self.after_training(plan, inbox)
            near, wrong = self.speedometer.near(self.modalities, inbox)
            return Outcome(self._publish(plan, inbox), self.measured | near, self.rejected + wrong)

    def updates(self, plan: Plan) -> dict[str, int]:
        """Return how many times a plan trains each owned modality."""
        return {m: plan.by_modality.get(m, plan.iterations) for m in self.partition.modalities}

    def precision(self) -> torch.autocast:
        """Return the context in which losses are computed: bfloat16 under ``mixed-precision``."""
        return torch.autocast(self.device.type, torch.bfloat16, self.settings.mixed_precision)

    def rng(self, purpose: str) -> torch.Generator:
        """Return a generator for one purpose of this device in this round."""
        return torch.Generator().manual_seed(self.seed_for(purpose))

    def seed_for(self, purpose: str) -> int:
        """Return a seed for one purpose of this device in this round."""
        node = self.partition.partition_id
        return derive_seed(self.settings.seed, purpose, node, self.server_round)

    def _train(self, plan: Plan, updates: Mapping[str, int]) -> dict[str, float]:
        self.model.train()
        parameters = self.trained_parameters()
        rate = self.settings.learning_rate_at(plan.server_round, plan.num_rounds)
        optimizer = self.make_optimizer(parameters, rate)
        steps, total = self.steps(updates), 0.0
        self.speedometer.begin()
        for modalities, batch in zip(steps, self.batches(len(steps)), strict=True):
            optimizer.zero_grad(set_to_none=True)
            with self.precision():
                loss = mean_over(batch.only(modalities), self.local_loss)
            loss.backward()  # type: ignore[no-untyped-call]
            self.modulate(modalities)
            if self.settings.clip_norm:
                nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
            self.speedometer.before_step(modalities)
            optimizer.step()
            self.speedometer.after_step(modalities)
            total += loss.item()
        optimizer.zero_grad(set_to_none=True)  # a process may keep a thousand devices
        if self.keeps_optimizer:
            self.optimizer_state = optimizer_tensors(optimizer)
        metrics = {"train.loss": total / len(steps), "train.iterations": float(len(steps))}
        return metrics | self.speedometer.end()

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches from reshuffled passes over the device's training samples."""
        rng, size = self.rng("batches"), self.settings.batch_size
        return draw_batches(self.train_data, iterations, size, rng)

    def evaluate(self) -> dict[str, float]:
        """Return accuracies in [0, 1] on the global test set and the own validation samples.

        ``test.accuracy`` uses all owned modalities; ``test.accuracy.<m>`` gives modality m alone.
        """
        self.model.eval()
        return accuracy_metrics(self.predict, self.partition, self.test_data, self.validation_data)

    def _publish(self, plan: Plan, inbox: Inbox) -> Payload:
        state = self.state()
        check_finite(self.server_round, state)
        blocks = self.outgoing(plan, inbox, {name: state[name] for name in self.blocks()})
        payload = self.compressor.encode(blocks, self.block_lengths())
        payload[SPEEDS] = self.speedometer.report(self.modalities)
        return payload | {STATISTICS + key: value for key, value in self.statistics().items()}

    # ---- state between rounds ---------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that must survive until the next round."""
        blocks = {n: flatten(m) for n, m in (self.blocks() | self.private_blocks()).items()}
        memory = {MEMORY + name: value for name, value in self.memory.items()}
        others = self.optimizer_state | self.speedometer.state() | self.compressor.state() | memory
        return blocks | {name: value.clone() for name, value in others.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave, or blocks to start from."""
        for name, module in (self.blocks() | self.private_blocks()).items():
            if name in state:
                load_flat(module, state[name])
        kept = {k: v.clone() for k, v in state.items() if k.startswith((OPTIMIZER, MEMORY))}
        self.optimizer_state = {k: v for k, v in kept.items() if k.startswith(OPTIMIZER)}
        self.memory = {k.removeprefix(MEMORY): v for k, v in kept.items() if k.startswith(MEMORY)}
        self.speedometer.load_state(state)
        self.compressor.load_state(state)

    def block_lengths(self) -> dict[str, int]:
        """Return the length of every block this device publishes."""
        return {name: num_parameters(module) for name, module in self.blocks().items()}
