"""DMML-KD: distil what modalities share through a gossiped generator of common features."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..gossip.aggregation.median import median_of_those
from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import (
    cross_entropy,
    label_weights,
    latent_distillation_loss,
    orthogonality_loss,
    sampling_distribution,
    similarity_loss,
)
from ..models import Features, Generator, GeneratorTraining, draw_labels, train_generators
from ..payload.blocks import STATISTICS, flatten, unflatten
from ..payload.plan import Inbox, Plan
from ..payload.received import received
from .dmml import Dmml

COUNTS, HEAD = "label-counts", "head.common"


class DmmlKdOptions(Options):
    """Ingredients and weights of DMML-KD; each ingredient can be switched off."""

    decomposition: bool = Field(True, description="losses that make features common or specific")
    generator: bool = Field(True, description="train a generator; its features teach the head")
    distillation: bool = Field(True, description="its features teach the encoders as well")
    generator_gossip: bool = Field(True, description="mix the generators of neighbours")
    label_counts: bool = Field(True, description="send label counts; off keeps them private")
    common_weight: float = Field(1.0, ge=0, description="weight of the common head's loss")
    orthogonality_weight: float = Field(0.0, ge=0, description="weight of common versus specific")
    similarity_weight: float = Field(0.0, ge=0, description="weight of modality versus modality")
    guidance: float = Field(1.0, ge=0, description="weight of the generator's terms at round 2")
    guidance_decay: float = Field(0.98, gt=0, le=1, description="their factor per round")
    generator_steps: int = Field(20, ge=1, description="generator steps per round")
    generator_batch_size: int = Field(
        32, ge=2, le=512, description="generated features per step; memory grows with the square"
    )
    generator_lr: float = Field(3e-4, gt=0, description="generator learning rate (Adam)")
    generator_weight_decay: float = Field(0.01, ge=0, description="generator weight decay")
    diversity_weight: float = Field(1.0, ge=0, description="weight of the diversity loss")

    @model_validator(mode="after")
    def _distillation_needs_a_generator(self) -> "DmmlKdOptions":
        if self.distillation and not self.generator:
            raise ValueError("distillation = true needs generator = true: set both to false")
        return self


class GeneratorDistillation(Learner):
    """Decomposed features, a generator of the common ones, and distillation from it.

    On top of gossip, device k minimises (weights in :class:`DmmlKdOptions`)::

        L = CE(fused, y) + l_com mean_m CE(h(c^m), y) + l_orth mean_m L_orth(c^m, s^m) + l_sim L_sim
            + B_t E CE(h(G(y', eps)), y') + B_t mean_m KL(h(G(y, eps)) || h(c^m))

    with ``B_t = b0 * decay^(t-2)`` from round 2 on (the generator is untrained before), and after
    the local iterations trains G against the neighbours' common heads, each weighted by its owner's
    label counts (FedGen's ensemble, decentralised).
    """

    options_type: ClassVar[type[Options]] = DmmlKdOptions
    reads: ClassVar[tuple[str, ...]] = (HEAD,)
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "a generator that trains on own samples, and label counts"
    options: DmmlKdOptions

    def reset(self) -> None:
        """Start afresh, generator included."""
        self.generator = Generator(
            self.partition.num_classes, self.settings.common_dim, seed=self.settings.seed
        ).to(self.device)
        super().reset()
        labels = self.train_data.labels.cpu()
        self.counts = torch.bincount(labels, minlength=self.partition.num_classes).float()

    def blocks(self) -> dict[str, nn.Module]:
        """Return the model's blocks and, where it is gossiped, the generator."""
        gossiped = self.options.generator and self.options.generator_gossip
        return self.model.blocks() | ({"generator": self.generator} if gossiped else {})

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return the generator where it stays at home."""
        alone = self.options.generator and not self.options.generator_gossip
        return {"generator": self.generator} if alone else {}

    def statistics(self) -> dict[str, Tensor]:
        """Return the label counts ``[classes]``, unless they are private."""
        sends = self.options.generator and self.options.label_counts
        return {COUNTS: self.counts} if sends else {}

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Gather the neighbours' common heads, and who of them knows which class."""
        classes, length = self.partition.num_classes, self.block_lengths()[HEAD]
        mine = self.counts if self.options.label_counts else torch.ones(classes)
        own_vote, others = self._votes(plan)
        votes, counts, self._heads = [own_vote], [mine], list[Tensor]()
        heads, _ = received(inbox, HEAD, length)  # a bad one was named when it was not mixed
        key = STATISTICS + COUNTS
        known, wrong = received(inbox, key, classes, optional=True, called=COUNTS, lowest=0)
        self.rejected += wrong
        refused = {int(line.partition(":")[0]) for line in wrong}
        for neighbour, weight in others.items():
            if neighbour not in heads or neighbour in refused:
                continue
            self._heads.append(heads[neighbour])
            votes.append(weight)
            counts.append(known.get(neighbour, torch.ones(classes)))
        mixing, known_by = torch.tensor(votes), torch.stack(counts)  # [heads], [heads, classes]
        if self.aggregation.robust:  # nobody knows more than the middle one of those who know
            known_by = torch.minimum(known_by, median_of_those(known_by, known_by > 0))
        self._omega = label_weights(mixing, known_by).to(self.device)
        self._near = sampling_distribution(mixing, known_by)
        self._rng = self.rng("generator")
        o, t = self.options, self.server_round
        trained = o.generator and t >= 2
        self._guidance = o.guidance * o.guidance_decay ** (t - 2) if trained else 0.0

    def _votes(self, plan: Plan) -> tuple[float, dict[int, float]]:
        """Return the weights of the own head and the neighbours' as teachers of the generator.

        The mixing weights; under robust aggregation those that it gave, none to heads that it
        dropped, nor to any where it is a rule that weighs no copies.
        """
        own, *weights = plan.weights.get(HEAD, (1.0,))
        given = dict(zip(plan.sources, weights, strict=True))
        if not self.aggregation.robust:
            return own, given
        shares = {j: x for j, x in self.mixer.shares.get(HEAD, {}).items() if x > 0}
        return 1 - sum(shares.values()), shares

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        o, features = self.options, self.model.encode(batch.inputs)
        loss = self.task_loss(features, batch.labels)  # L_task
        logits = list[Tensor]()  # of each modality's common features
        if o.decomposition or (self._guidance and o.distillation):
            logits = [self.model.common_logits(c) for c in features.common.values()]
        if o.decomposition:
            loss = loss + self._decomposition_loss(features, logits, batch.labels)
        if self._guidance:
            loss = loss + self._guidance * self._guidance_loss(logits, batch)
        return loss

    def _decomposition_loss(
        self, features: Features, logits: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """Return ``l_com L_com + l_orth L_orth + l_sim L_sim``."""
        o, common, specific = self.options, features.common, features.specific
        classify = [self.cross_entropy(x, labels) for x in logits]
        loss = o.common_weight * total(classify) / len(classify)
        if o.orthogonality_weight:
            apart = [orthogonality_loss(common[m], specific[m]) for m in common]
            loss = loss + o.orthogonality_weight * total(apart) / len(apart)
        if o.similarity_weight and len(common) > 1:
            loss = loss + o.similarity_weight * similarity_loss(list(common.values()))
        return loss

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw y' and eps, and the eps of the batch's own labels."""
        if not self._guidance:
            return {}
        size = len(batch.labels)
        drawn = {"drawn": draw_labels(self._near, size, self._rng)}
        drawn["noise.drawn"] = self.generator.noise(size, self._rng)
        if self.options.distillation:
            drawn["noise"] = self.generator.noise(size, self._rng)
        return {name: value.to(self.device) for name, value in drawn.items()}

    def _guidance_loss(self, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return ``L_gen + L_kd``: generated features teach the head, and the encoders by it."""
        drawn, given = batch.given["drawn"], batch.given
        generated = self._generate(drawn, given["noise.drawn"])
        loss = cross_entropy(self.model.common_logits(generated), drawn)  # L_gen
        if self.options.distillation:
            with torch.no_grad():
                teacher = self.model.common_logits(self._generate(batch.labels, given["noise"]))
            terms = [latent_distillation_loss(student, teacher) for student in logits]
            loss = loss + total(terms) / len(terms)  # L_kd
        return loss

    @torch.no_grad()
    def _generate(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return a feature for each label ``[..., common_dim]``; G is frozen while we train."""
        features: Tensor = self.generator(labels, noise)
        return features

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Train the generator against the own common head and the neighbours'."""
        self.after_stack([(self, plan, inbox)])

    @classmethod
    def after_stack(cls, turns: Sequence[tuple[Learner, Plan, Inbox]]) -> None:
        """Train all generators at once, those of devices with as many neighbours each."""
        alike: dict[int, list[GeneratorDistillation]] = {}
        for learner, _, _ in turns:
            assert isinstance(learner, GeneratorDistillation)
            if learner.options.generator:
                alike.setdefault(len(learner._heads), []).append(learner)
        for learners in alike.values():
            o, model = learners[0].options, learners[0].model
            heads = [torch.stack([flatten(d.model.head_common), *d._heads]) for d in learners]
            every = unflatten(model.head_common, torch.cat(heads).to(learners[0].device))
            devices, x = len(learners), model.head_common
            train_generators(
                [each.generator for each in learners],
                (
                    every["weight"].view(devices, -1, *x.weight.shape),
                    every["bias"].view(devices, -1, *x.bias.shape),
                ),
                torch.stack([each._omega for each in learners]),
                [each._near for each in learners],
                GeneratorTraining(
                    steps=o.generator_steps,
                    batch_size=o.generator_batch_size,
                    learning_rate=o.generator_lr,
                    weight_decay=o.generator_weight_decay,
                    diversity_weight=o.diversity_weight,
                ),
                [each._rng for each in learners],
            )


class DmmlKd(GeneratorDistillation, Dmml):
    """Distillation from a gossiped generator of common features, with the choices of dmml.

    References
    ----------
    Yin, Chen and Tao, "Knowledge Distillation and Training Balance for Heterogeneous Decentralized
    Multi-Modal Learning over Wireless Networks", IEEE TMC 2024: decomposition and generator are
    named in its abstract. Every formula here is this project's reconstruction from published parts
    (FedGen, MISA, ShaSpec), and no result of the paper is claimed to be reproduced.
    """

    name: ClassVar[str] = "dmml-kd"
    paper: ClassVar[str] = "Yin, Chen and Tao, IEEE TMC 2024 (reconstruction)"
    references: ClassVar[tuple[str, ...]] = ("yin2024knowledge",)
