"""The base learner: what one device does in a round. A method overrides its loss and its hooks."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import MethodError
from ..base.options import Group
from ..base.seeding import derive_seed, global_generator
from ..data import Partition, Samples
from ..gossip.aggregation.mean import Mean
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.aggregation.weighing import Weighing
from ..gossip.attacks import IN_DATA
from ..gossip.coupling import CouplingRule
from ..gossip.dpsgd import DPSGDRule
from ..gossip.rule import GossipRule
from ..losses import cross_entropy
from ..models import DecomposedClassifier
from ..models.late_fusion import LateFusion
from ..models.stacked import in_words, model_stacks
from ..payload.blocks import STATISTICS, check_kept, check_mixable
from ..payload.compression import Compressor
from ..payload.copies import Copies
from ..payload.flat import Flat
from ..payload.plan import Inbox, Outcome, Payload, Plan
from ..payload.routing import averaged, brought, by_courier, passed_on
from .balance import LocalPhase
from .batch import Batch, batch_of, draw_rows, pooled
from .calibration import Calibration, Noted, calibration_metrics
from .coupled import Coupled
from .devices import on_device, resolve_device
from .evaluated import BEST, Evaluated
from .evaluation import EVALUATION, accuracy_metrics, predictions
from .forging import Forger
from .hooks import Hooks
from .label_shares import LabelShares
from .mixing import Mixer, Taken, hooks
from .nonfinite import check_finite
from .optimisers import (
    OPTIMIZER,
    LocalSteps,
    StepRule,
    load_optimizer,
)
from .options import Options
from .serving import Serving
from .settings import DeviceSettings
from .speedometer import SPEEDS, Speedometer
from .spending import Spending
from .training import train
from .unicast import Sums, noisy_copies, parts_of_sums, sums_of, with_sums

IN_A_STACK = {
    "local_loss", "task_loss", "modulate", "build_model", "batches", "make_optimizer", "run_round",
    "begin", "finish",
}  # fmt: skip
"""Members with which a method says anew whether it :attr:`~.hooks.Hooks.stacks`."""
SEES_SAMPLES = {
    "local_loss", "task_loss", "cross_entropy", "modulate", "batches", "draw", "fixed", "running",
    "frozen", "statistics", "outgoing", "run_round", "begin", "finish", "after_mixing",
    "before_training", "after_training", "after_stack",
}  # fmt: skip
"""Members with which a method says anew what is :attr:`~.hooks.Hooks.unaccounted`."""
Kept = tuple[Any, ...]
"""What a device keeps besides its parameters."""
HOOKS = "after_mixing", "before_training", "after_training", "after_stack"
SKIPPED = "privacy.skipped"
"""Blocks that were not mixed in a round, as a part of their sum has not come: a metric."""
MEMORY = "memory."
"""Prefix of what a method keeps, in a learner's state."""


class Learner(Hooks):
    """Mix with the neighbours, train on one's own data, publish.

    How blocks move between neighbours is the gossip rule's business, what a device learns from is
    the method's.

    A method of your own overrides ``local_loss``; ``statistics``, ``before_training``, ... are
    there for methods that need more, ``blocks`` for what else is mixed. A model other than
    :class:`~flwr_dmml.models.DecomposedClassifier` comes with ``blocks`` and ``scores`` to match.

    Parameters
    ----------
    partition : Partition
        This device's data and modalities.
    settings : DeviceSettings
        The settings all methods share.
    options : Options
        The method's own, an instance of ``options_type``.
    rule : GossipRule, optional
        How blocks move between neighbours; plain gossip by default.
    aggregation : AggregationRule, optional
        What becomes of the neighbours' copies; the weighted mean by default.
    """

    def __init__(
        self,
        partition: Partition,
        settings: DeviceSettings,
        options: Options,
        rule: GossipRule | None = None,
        aggregation: AggregationRule | None = None,
    ) -> None:
        self.partition = partition
        self.rule = rule or DPSGDRule(Group())
        self.aggregation = aggregation or Mean(Group())
        self.modalities = tuple(partition.source_modalities)  # all that any device may have
        self.settings = settings.of_method(type(self))
        self.options = options
        self.device = resolve_device(settings.device)
        self.train_data = on_device(self._learned_from(partition.train), self.device)
        self.validation_data = on_device(partition.validation, self.device)
        self.test_data = on_device(partition.test, self.device)
        (self.pool,) = pooled([self.train_data])
        self.private_key = b""
        """Of masks (``privacy.secure-sums``): its node keeps it, and no state or message has it."""
        self.label_shift: Tensor | None = None
        """Added to logits of own samples ``[..., classes]``, of those whose loss is computed."""
        self.reset()

    def _learned_from(self, samples: Samples) -> Samples:
        """Return the own training samples; with labels turned round, if an attack says so."""
        attack, settings = self.settings.attack, self.settings
        lies = self.partition.partition_id in attack.liars(settings.num_nodes, settings.seed)
        if attack.kind != IN_DATA or not lies:
            return samples
        return replace(samples, labels=self.partition.num_classes - 1 - samples.labels)

    def reset(self) -> None:
        """Start afresh, from numbers that depend on the run's seed only.

        The built-in models give every device the same copies of the blocks it shares. A model of
        your own has to seed each block by its name for that, where devices build different ones.
        """
        self.server_round = 0
        with global_generator(derive_seed(self.settings.seed, "init", "model"), self.device):
            self.model = self.build_model().to(self.device)
        counts = torch.bincount(self.train_data.labels.cpu(), minlength=self.partition.num_classes)
        correction = self.settings.label_correction
        correction = "off" if correction == "auto" else correction
        self.label_shares = LabelShares(counts, correction, self.aggregation.liars)
        self.calibration = Calibration(
            self.settings.test_fusion,
            self.modalities,
            self.partition.num_classes,
            robust=self.aggregation.robust,
        )
        self.optimizer_state: dict[str, Tensor] = {}  # of the rounds so far, where it is kept
        self.memory: dict[str, Tensor] = {}  # what a method keeps from round to round
        self.rejected: list[str] = []
        self.measured: dict[str, float] = {}  # in this round; hooks may add to it
        self._best: Evaluated | None = None
        self._noise_scales: dict[str, Tensor] = {}
        self._for_others: Payload = {}  # in this round, for others
        self._planned: tuple[Plan | None, dict[str, tuple[float, float]]] = None, {}
        modules = self.blocks() | self.private_blocks()
        check_mixable(modules)
        check_kept(self.model, modules)
        self.flat = Flat(modules)
        self.serving = Serving(self.settings.serve, self.flat)
        me, nodes = self.partition.partition_id, self.settings.num_nodes
        self.mixer = Mixer(
            self.rule,
            self.aggregation,
            self.flat,
            me,
            nodes,
            momentum=self.settings.momentum if self.settings.optimizer == "sgd" else 0.0,
            normalises=self.settings.normalises,
            kept=self.settings.exchange.top_k,
            unicast=self.settings.privacy.zip_noise > 0,
        )
        plain = DPSGDRule(Group())  # the final merge, but where senders deal out what they have
        others = Mixer(plain, self.aggregation, self.flat, me, nodes)
        self.merger = self.mixer if self.rule.pushes else others
        self.merges = False  # in this round
        self.forger = Forger(self.settings.attack, me, nodes, self.settings.seed)
        self.speedometer = Speedometer(
            self.flat,
            self.encoders(),
            self.settings.speed_metric,
            robust=self.aggregation.robust,
        )
        rule = self.rule
        self.coupled = Coupled(rule, self.flat, me) if isinstance(rule, CouplingRule) else None
        """The blocks that stay here, coupled to the neighbours'; None where the rule has none."""
        stay = self.coupled.names if self.coupled else ()
        self.block_names = tuple(name for name in self.blocks() if name not in stay)
        self._recipients: Sequence[int] = ()  # of what this round publishes
        self._model_stacks = model_stacks(self.model)
        self._kinds: dict[str, str] = {}
        exchange = self.settings.exchange
        make = Copies if self.rule.coded else Compressor
        self.compressor = make(exchange.number_type, exchange.top_k)
        self.spending = Spending(self)

    # ---- predictions ------------------------------------------------------------------------

    @property
    def late_fusion(self) -> LateFusion | None:
        """How modalities are combined in predictions; None where :meth:`scores` does."""
        return self.calibration.fusion(self.partition.modalities)

    def predicted(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return what the device predicts by: :meth:`scores`, combined by ``test-fusion``."""
        late = self.late_fusion
        return (late.scores(self.scores) if late else self.scores)(inputs, subsets)

    # ---- the round --------------------------------------------------------------------------

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        """Mix, evaluate if asked, train, and publish.

        Raises
        ------
        NonFiniteModelError
            If training diverged; the caller keeps the state of before.
        """
        with self.in_round(plan):
            inbox = self.begin(plan, inbox)
            if plan.iterations == 0:
                return Outcome({}, self.measured, self.rejected)
            taken = None
            if self.trains(plan):
                self.remember(plan)
                self.before_training(plan, inbox)
                (taken,) = train([[(self, plan)]])
                self.after_training(plan, inbox)
                self.normalise(taken)
            return self.finish(plan, inbox, taken)

    @classmethod
    def after_stack(cls, turns: Sequence[tuple["Learner", Plan, Inbox]]) -> None:
        """Do :meth:`after_training` for many devices: in turn, unless overridden.

        They are of this method, and what :meth:`stack_key` returns is equal; their models may
        differ.
        """
        for learner, plan, inbox in turns:
            learner.after_training(plan, inbox)

    def in_round(self, plan: Plan) -> AbstractContextManager[None]:
        """Enter a round: torch's global generator is seeded for it, for dropout, say."""
        self.enter(plan)
        return global_generator(self.seed_for("global"), self.device)

    def enter(self, plan: Plan) -> None:
        """Take note of a round in which nothing is drawn at random."""
        self.server_round, self.measured, self.merges = plan.server_round, {}, plan.merges
        self.serving.forget()
        self.spending.enter(plan)

    def begin(self, plan: Plan, inbox: Inbox) -> Inbox:
        """Do the part of a round before training: mix, and evaluate if asked.

        Returns what the neighbours published, as it is once nothing of it is compressed.
        """
        self.flat.attach()
        self.note_own(plan)
        self._for_others, wrong = self.for_others(plan, inbox)
        me = self.partition.partition_id
        if plan.merged:
            inbox, why = self._merged(plan, inbox)
            inbox = self.forger.forge(plan, inbox, self.merger, self.memory)
            given = plan.weights, plan.sources, inbox, plan.recipients
            apart, rejected = self.merger.mix(*given, measure=plan.evaluate)
            self.begin_mixed(plan, {}, apart if plan.neighbours and plan.evaluate else None)
            self.rejected = [by_courier(why.get(line, line), plan) for line in rejected] + wrong
            return {}
        opened, why = self.compressor.decode(inbox | brought(plan.far, inbox), self.as_sent(), me)
        opened = self.forger.forge(plan, opened, self.mixer, self.memory)
        if self.settings.privacy.secure_sums:
            sums = self.sums(opened, plan.server_round - 1)
            plan, opened, more = with_sums(plan, opened, sums)
            wrong += more
            if sums.missing:
                self.measured[SKIPPED] = float(len(sums.missing))
        apart, rejected = self.mix(plan, opened)
        rejected = [by_courier(why.get(line, line), plan) for line in rejected]
        inbox = {n: opened[n] for n in inbox}
        rejected += wrong
        if plan.iterations:  # a closing message publishes nothing
            rejected += self.label_shares.read(inbox, len(plan.recipients))
        rejected += self.calibration.read(inbox)
        self.begin_mixed(plan, inbox, apart if plan.neighbours and plan.evaluate else None)
        self.rejected = rejected + self.rejected
        return inbox

    def as_sent(self) -> Payload:
        """Return the own blocks as they have been sent, before any compression."""
        return {name: self.mixer.published(name) for name in self.block_names}

    def _merged(self, plan: Plan, inbox: Inbox) -> tuple[Inbox, dict[str, str]]:
        """Return what has come of the final merge: blocks as they are.

        Couriers may still bring what was published before it, which has to be decoded.
        """
        own = {name: self.flat.vector[self.flat.slices[name]].cpu() for name in self.block_names}
        first = plan.num_rounds + 1  # of the merge
        late = [t for t in plan.far if plan.server_round - 1 - t.couriers < first]
        others = [t for t in plan.far if t not in late]
        found = inbox | brought(others, inbox)
        opened, why = self.compressor.decode(brought(late, inbox), own, self.partition.partition_id)
        for origin, payload in opened.items():  # of them the models: not what a rule sends besides
            models = {k: v[: len(own[k])] if k in own else v for k, v in payload.items()}
            found[origin] = found.get(origin, {}) | models
        return found, why

    def begin_mixed(self, plan: Plan, inbox: Inbox, apart: float | None) -> None:
        """Go on from rows that have been mixed; ``apart`` is the disagreement, where measured."""
        self.rejected = []
        self.measured |= self.mixer.dropped()
        if apart is not None:
            self.measured["mix.disagreement"] = apart
        if self.listens:
            self.flat.attach()
        self._recipients = plan.recipients
        if self.coupled and not plan.merged:
            found, wrong = self.coupled.couple(inbox, plan.neighbours, self.memory)
            self.measured |= found
            self.rejected += wrong
        if not plan.merged:
            self.after_mixing(plan, inbox)
        if plan.evaluate:
            self.flat.attach()
            self.measured |= self.serving.choose(self._validation_loss, len(self.validation_data))
            with self.serving.served():
                self.measured |= self.evaluate()
            held_out = self.measured.get("validation.accuracy")
            for name in self.spending.untold:
                self.measured.pop(name, None)
            self._note_best(plan, held_out)

    def note_own(self, plan: Plan) -> None:
        """Remember the own model before it is mixed, if it may be what is evaluated (``serve``)."""
        if plan.evaluate:
            self.serving.note()

    def _validation_loss(self) -> float:
        """Return the cross-entropy of the own validation samples; inf if none can be predicted."""
        self.model.eval()
        noted: Noted = []
        predictions(self.predicted, self.validation_data, [self.partition.modalities], noted=noted)
        if not noted:
            return inf
        logits, labels = (torch.cat(x) for x in zip(*noted, strict=True))
        shift = self.label_shares.shift()
        return float(cross_entropy(logits if shift is None else logits + shift, labels))

    def _note_best(self, plan: Plan, found: float | None) -> None:
        """Keep a copy of what was just evaluated if none so far was better, under ``keep-best``."""
        if not self.settings.keep_best or found is None:
            return
        if found >= float(self.memory.get(BEST, -1.0)):
            self.memory[BEST] = torch.tensor(found, dtype=torch.float64)
            self._best = self.evaluated(plan)

    def evaluated(self, plan: Plan) -> Evaluated:
        """Return the model that a plan has evaluated, if it has trained nothing since."""
        self.flat.attach()
        metrics = {k: v for k, v in self.measured.items() if k.startswith(EVALUATION)}
        with self.serving.served():
            weights = self.predictor().state_dict()
            copies = {name: x.detach().to("cpu", copy=True) for name, x in weights.items()}
        return Evaluated(plan.server_round - 1, copies, metrics, self.late_fusion)

    def take_best(self) -> Evaluated | None:
        """Return the best model of all evaluations if it is newer than the last call."""
        found, self._best = self._best, None
        return found

    def remember(self, plan: Plan) -> None:
        """Keep where training begins, if this device does not train as much as the others."""
        if any(own != mean for own, mean in self.planned(plan).values()):
            self.mixer.begin(self.block_names)
        self.spending.begin()

    def normalise(self, taken: Taken) -> None:
        """Scale what a round's training has come to, under ``gossip-normalise``."""
        self.mixer.normalise(taken, self.block_names)

    def finish(self, plan: Plan, inbox: Inbox, taken: Taken | None) -> Outcome:
        """Do the part of a round after training: publish.

        ``taken`` are the steps that it took; None of a device that rests.
        """
        if taken is not None:
            self.spending.end()
        payload = self._publish(plan, inbox, taken)
        self.measured |= self.spending.told()
        if plan.merged:
            return Outcome(payload, self.measured, self.rejected)
        near, wrong = self.speedometer.near(self.modalities, inbox)
        return Outcome(payload, self.measured | near, self.rejected + wrong)

    def updates(self, plan: Plan) -> dict[str, int]:
        """Return how many times a plan trains each owned modality: never once it has spent all."""
        owned = self.partition.modalities
        return {
            m: 0 if self.spending.spent else plan.by_modality.get(m, plan.iterations) for m in owned
        }

    def planned(self, plan: Plan) -> dict[str, tuple[float, float]]:
        """Return by block the steps that a plan gives this device, and the mean over its owners.

        Of those that train it; nothing where the plan does not say.
        """
        if self._planned[0] is plan:
            return self._planned[1]
        updates, found = self.updates(plan), dict[str, tuple[float, float]]()
        own = {"": len(self.steps(updates))} | updates if plan.steps else {}
        for block in self.block_names if own else ():
            of = self.modality_of(block)
            if own[of] and of in plan.steps:
                found[block] = float(own[of]), plan.steps[of]
        self._planned = plan, found
        return found

    def trains(self, plan: Plan) -> bool:
        """Return whether a plan trains anything here."""
        return any(self.updates(plan).values())

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

    @property
    def module(self) -> nn.Module:
        """The model, whatever a method makes of it."""
        return self.model

    @property
    def modulates(self) -> bool:
        """Whether the method changes gradients."""
        return overrides(type(self), ("modulate",))

    @property
    def draws(self) -> bool:
        """Whether an iteration draws something at random."""
        return overrides(type(self), ("draw",))

    def stack_key(self) -> Hashable:
        """Return what of this round, besides its plan, devices of one stack must have in common."""
        return ()

    def stacks_now(self) -> bool:
        """Return whether this round's iterations can be those of a stack, of one device or more.

        That depends on the method and the device alone, never on who else is there.
        """
        return (
            not self.settings.exact
            and not self.train_data.present
            and method_stacks(type(self))
            and self._model_stacks
            and self.spending.of_samples is None
        )

    def leads(self, other: "Learner") -> bool:
        """Return whether iterations of ``other`` can be computed with this one's model.

        Those of modalities that this device has: all its blocks are there, and all that its losses
        read is parameters, batches, and what is drawn. Both are of one method.
        """
        own, others = self._block_kinds(), other._block_kinds()
        return (
            type(self.model) is type(other.model) is DecomposedClassifier
            and not overrides(type(self), ("fixed", "running", "frozen", "modulate"))
            and all(others.get(name) == kind for name, kind in own.items())
        )

    def _block_kinds(self) -> dict[str, str]:
        """Return the layers and shapes of every block, in words."""
        if not self._kinds:
            self._kinds = {name: in_words(module) for name, module in self.flat.modules.items()}
        return self._kinds

    def local_steps(self, learners: Sequence["Learner"], plan: Plan, matrix: Tensor) -> LocalSteps:
        """Return what steps devices that are alike, this one the first of them.

        ``matrix`` holds their parameters, a row each.
        """
        flat, settings = self.flat, self.settings
        rate = settings.learning_rate_at(plan.server_round, plan.num_rounds)
        trained = flat.indices_of(self.trained_parameters())
        factors, optimizer = self.learning_rates(), None
        mixers = [learner.mixer for learner in learners]
        direct, follow = hooks(mixers, rate, settings.momentum)
        if type(self).make_optimizer is not Learner.make_optimizer:
            groups: dict[float, list[nn.Parameter]] = {}
            for i in trained:
                group = groups.setdefault(factors.get(flat.block_of(i), 1.0), [])
                group.append(flat.parameters[i])
            optimizer = self.make_optimizer([(ps, rate * f) for f, ps in groups.items()])
        if optimizer is not None:
            load_optimizer(optimizer, self.optimizer_state)
        how = StepRule(
            rate,
            family=settings.optimizer,
            momentum=0.0 if self.rule.momentum == "own" else settings.momentum,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm if self.spending.of_samples is None else 0.0,
            rates=factors,
        )
        return LocalSteps(
            flat,
            matrix,
            trained,
            how,
            kept=[learner.optimizer_state for learner in learners],
            direct=direct,
            follow=follow,
            optimizer=optimizer,
        )

    def loss_of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, with what the method has fixed and drawn for it."""
        self.label_shift = self.shift()
        given = self.fixed() | self.running() | self.draw(batch)
        return self.local_loss(replace(batch, given=given))

    def shift(self) -> Tensor | None:
        """Return the correction of this round's losses, see :attr:`label_shift`."""
        shift = self.label_shares.shift()
        return None if shift is None else shift.to(self.device)

    def keep_optimizer(self, local: LocalSteps, row: int) -> None:
        """Keep the momentum and the like of a row, where the gossip rule does."""
        if self.rule.momentum == "kept":
            self.optimizer_state = local.state(row)

    def note_training(self, loss: float, iterations: int, phases: Mapping[str, LocalPhase]) -> None:
        """Note what came of a round's local iterations."""
        if self.spending.how is None:
            self.measured["train.loss"] = loss
        self.measured["train.iterations"] = float(iterations)
        if self.spending.of_change is None:  # else speeds have no noise
            self.measured |= self.speedometer.take(phases)

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches from reshuffled passes over the device's training samples."""
        for rows in self.batch_rows(iterations):
            yield batch_of(self.train_data.subset(rows))

    def batch_rows(self, iterations: int) -> Tensor:
        """Return which training samples each mini-batch holds, ``[iterations, batch]`` int64."""
        rng, size = self.rng("batches"), self.settings.batch_size
        return draw_rows(len(self.train_data), iterations, size, rng)

    @property
    def noisy(self) -> list[str]:
        """Modalities whose inputs get noise in training: vectors, under ``input-noise``."""
        kinds = self.partition.source_modalities if self.settings.noise else {}
        return [m for m in self.partition.modalities if m in kinds and len(kinds[m].shape) == 1]

    def noise_scale(self, modality: str) -> Tensor:
        """Return the standard deviation of the noise on a vector ``[width]``.

        ``input-noise`` times that of each column among the own training samples.
        """
        if modality not in self._noise_scales:
            x = self.train_data.inputs[modality]
            self._noise_scales[modality] = self.settings.noise * x.std(dim=0, correction=0)
        return self._noise_scales[modality]

    @property
    def batches_of_rows(self) -> bool:
        """Whether its mini-batches are just these rows."""
        return not overrides(type(self), ("batches",)) and not self.train_data.present

    def evaluate(self) -> dict[str, float]:
        """Return accuracies in [0, 1] on the global test set and the own validation samples.

        ``test.accuracy`` uses all owned modalities; ``test.accuracy.<m>`` gives modality m alone.
        """
        self.model.eval()
        self.flat.attach()
        samples = self.test_data, self.validation_data
        self.calibration.fit(self.scores, self.validation_data, self.label_shares.shift())
        metrics = accuracy_metrics(self.predicted, self.partition, *samples, self.label_shares)
        if late := self.late_fusion:
            metrics |= calibration_metrics(self.scores, late, self.test_data)
        return metrics

    def _publish(self, plan: Plan, inbox: Inbox, taken: Taken | None) -> Payload:
        snapshot, names = self.flat.copy(), self.block_names
        check_finite(self.server_round, snapshot)
        if plan.merges:
            if not plan.merged:
                self.merger.start_over()
            whole = self.merger.publish(snapshot, names, names, None, plan.recipients)
            return whole | self._for_others
        sends = self.sends(plan)
        blocks = self.mixer.publish(snapshot, names, sends, taken, plan.recipients)
        written = self.outgoing(plan, inbox, blocks)
        if not self.own_format:
            self._check_format(written, blocks)
        if self.settings.privacy.unicast:
            written = self._unicast(written, plan)
        own = self.compressor.encode(written, self.block_lengths(), plan.resend) | self.extras()
        return own | self._for_others

    def _unicast(self, blocks: Payload, plan: Plan) -> Payload:
        """Return what each recipient gets of the blocks, where that is not the same."""
        privacy, me = self.settings.privacy, self.partition.partition_id
        if privacy.secure_sums:
            return parts_of_sums(blocks, plan, me, self.private_key, self.memory)
        sent, own = noisy_copies(blocks, plan, privacy.zip_noise)
        for block in blocks:
            self.mixer.keep_sent(block, own.get(block))
        return sent

    def sums(self, inbox: Inbox, server_round: int) -> Sums:
        """Return what parts that have come add up to, see :func:`~.unicast.sums_of`."""
        me, lengths = self.partition.partition_id, self.block_lengths()
        return sums_of(inbox, server_round, me, lengths, self.memory)

    def for_others(self, plan: Plan, inbox: Inbox) -> tuple[Payload, list[str]]:
        """Return what is published as a courier, and what was wrong with what it is made of."""
        compressor = Compressor() if plan.merged else self.compressor
        means, wrong = averaged(plan, inbox, compressor, self.partition.partition_id)
        return passed_on(plan, inbox) | means, wrong

    def extras(self) -> Payload:
        """Return what is published besides the blocks: nothing in the final merge."""
        if self.merges:
            return {}
        statistics = {STATISTICS + key: value for key, value in self.statistics().items()}
        found = self.reported(self.report()) | statistics
        if self.coupled:
            found |= self.coupled.payload(self._recipients, self.memory)
        return found

    def report(self) -> list[float]:
        """Return what is published of speeds, label counts and temperatures, as numbers."""
        speeds = self.speedometer.report(self.modalities)
        return [*speeds, *self.label_shares.report(), *self.calibration.report()]

    def reported(self, report: Sequence[float]) -> Payload:
        """Return the entries of a payload that hold a :meth:`report`, of any device."""
        labels = len(self.modalities)
        temperatures = labels + len(self.label_shares.report())
        speeds = {SPEEDS: torch.tensor(report[:labels], dtype=torch.float32)}
        counts = self.label_shares.payload(report[labels:temperatures])
        return speeds | counts | self.calibration.payload(report[temperatures:])

    def hear(self, reports: Sequence[Sequence[float]], plan: Plan) -> None:
        """Take up the label counts and temperatures in neighbours' :meth:`report`."""
        labels = len(self.modalities)
        temperatures = labels + len(self.label_shares.report())
        if self.label_shares.gossips and plan.iterations:
            told = [report[labels:temperatures] for report in reports]
            self.label_shares.hear(told, len(plan.recipients))
        self.calibration.hear([report[temperatures:] for report in reports])

    def near(self, reports: Sequence[Sequence[float]]) -> dict[str, float]:
        """Return the mean training speeds of a device and its neighbours, as metrics."""
        speeds = [report[: len(self.modalities)] for report in reports]
        return self.speedometer.near_of(self.modalities, speeds)

    @property
    def plain(self) -> bool:
        """Whether what is mixed of a device is its parameters as they are, by weighted means.

        Their weights may be those that an aggregation rule finds.
        """
        rule = type(self.rule)
        return (
            not overrides(type(self), ("mix", "sends", "outgoing"))
            and rule.mixed is GossipRule.mixed
            and rule.publish is GossipRule.publish
            and rule.weigh is GossipRule.weigh
            and isinstance(self.aggregation, Mean | Weighing)
            and type(self.aggregation).__call__ in (Mean.__call__, Weighing.__call__)
            and not self.compressor.active
            and self.spending.how is None
            and not self.settings.privacy.unicast
            and not self.settings.attack.in_payloads
        )

    @property
    def listens(self) -> bool:
        """Whether it does something with what its neighbours publish besides mixing it."""
        return overrides(type(self), HOOKS) or self.coupled is not None

    def kept(self) -> Kept:
        """Return what a device keeps besides its parameters, to :meth:`take_back`."""
        told = self.label_shares.state() | self.calibration.state()
        own = dict(self.optimizer_state), dict(self.memory), told
        return *own, self.mixer.kept(), self.speedometer.state(), self.compressor.state()

    def take_back(self, kept: Kept) -> None:
        """Go back to what was :meth:`kept`, after a round that failed."""
        self.optimizer_state, self.memory, told, mixer, speeds, compressor = kept
        self._best = None
        self.label_shares.load_state(told)
        self.calibration.load_state(told)
        self.mixer.take_back(mixer)
        self.speedometer.load_state(speeds)
        self.compressor.load_state(compressor)

    def _check_format(self, written: Payload, blocks: Payload) -> None:
        """Refuse what neighbours would take for damaged blocks.

        Raises
        ------
        MethodError
            The method writes blocks in a format of its own and has not said so.
        """
        odd = [k for k, x in blocks.items() if k not in written or written[k].shape != x.shape]
        if odd := odd + [k for k in written if k not in blocks]:
            raise MethodError(
                f"method '{self.name}': outgoing() changes the format of '{odd[0]}'; set "
                "own_format = True and read it in mix(), or return vectors as they were given"
            )

    # ---- state between rounds ---------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that must survive until the next round."""
        return self.flat.copy() | self.kept_state()

    def kept_state(self) -> dict[str, Tensor]:
        """Return copies of what must survive besides the blocks."""
        memory = {MEMORY + name: value for name, value in self.memory.items()}
        others = self.optimizer_state | self.speedometer.state() | self.compressor.state() | memory
        others |= self.label_shares.state() | self.calibration.state()
        copies = {name: value.clone() for name, value in others.items()}
        return self.mixer.state() | copies

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave, or blocks to start from."""
        self._best = None
        for name in self.flat.slices:
            if name in state:
                self.flat.load(name, state[name])
        self.mixer.load_state(state)
        kept = {k: v.clone() for k, v in state.items() if k.startswith((OPTIMIZER, MEMORY))}
        self.optimizer_state = {k: v for k, v in kept.items() if k.startswith(OPTIMIZER)}
        self.memory = {k.removeprefix(MEMORY): v for k, v in kept.items() if k.startswith(MEMORY)}
        self.speedometer.load_state(state)
        self.compressor.load_state(state)
        self.label_shares.load_state(state)
        self.calibration.load_state(state)

    def block_lengths(self) -> dict[str, int]:
        """Return the length of every block this device publishes."""
        lengths = {name: place.stop - place.start for name, place in self.flat.slices.items()}
        return {name: lengths[name] for name in self.block_names}


_overrides: dict[tuple[object, tuple[str, ...]], bool] = {}


def overrides(method: object, names: tuple[str, ...]) -> bool:
    """Return whether a method, a subclass of :class:`Learner`, has one of these members itself."""
    key = method, names
    if key not in _overrides:
        assert isinstance(method, type)
        _overrides[key] = any(name in vars(kind) for kind in _own(method) for name in names)
    return _overrides[key]


def _own(method: type[Learner]) -> tuple[type, ...]:
    """Return the classes that a method consists of, above :class:`Learner`."""
    return method.__mro__[: method.__mro__.index(Learner)]


def method_stacks(method: type[Learner]) -> bool:
    """Return whether a method's loss can be computed for many devices at once."""
    for kind in _own(method):
        if "stacks" in vars(kind):
            return bool(vars(kind)["stacks"])
        if not IN_A_STACK.isdisjoint(vars(kind)):
            return False
    return Learner.stacks


def unaccounted(method: type[Learner]) -> str:
    """Return what ``privacy.dp`` refuses of a method, see :attr:`.Hooks.unaccounted`."""
    for kind in _own(method):
        if "unaccounted" in vars(kind):
            break
        if not SEES_SAMPLES.isdisjoint(vars(kind)):
            return "what it does not say (Learner.unaccounted)"
    drawn = overrides(method, ("draw",))
    return method.unaccounted or ("what it draws for each mini-batch" if drawn else "")
