"""DMML-KD: distil what modalities share through a gossiped generator of common features."""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..blocks import STATISTICS, load_flat, vector_problem
from ..config import Options
from ..losses import (
    diversity_loss,
    ensemble_loss,
    label_weights,
    latent_distillation_loss,
    orthogonality_loss,
    sampling_distribution,
    similarity_loss,
)
from ..models import Features, Generator
from ..plan import Inbox, Plan
from .learner import Batch, Learner

COUNTS = "label-counts"


class DmmlKdOptions(Options):
    """Ingredients and weights of DMML-KD; each ingredient can be switched off."""

    decomposition: bool = Field(True, description="losses that keep common and specific apart")
    generator: bool = Field(True, description="train a generator; its features teach the head")
    distillation: bool = Field(True, description="its features teach the encoders as well")
    generator_gossip: bool = Field(True, description="mix the generators of neighbours")
    label_counts: bool = Field(True, description="send label counts; off keeps them private")
    common_weight: float = Field(1.0, ge=0, description="weight of the common head's loss")
    orthogonality_weight: float = Field(0.3, ge=0, description="weight of common versus specific")
    similarity_weight: float = Field(0.1, ge=0, description="weight of modality versus modality")
    guidance: float = Field(1.0, ge=0, description="weight of the generator's terms at round 2")
    guidance_decay: float = Field(0.98, gt=0, le=1, description="their factor from round to round")
    generator_steps: int = Field(20, ge=1, description="generator steps a round")
    generator_lr: float = Field(3e-4, gt=0, description="generator learning rate (Adam)")
    generator_weight_decay: float = Field(0.01, ge=0, description="generator weight decay")
    diversity_weight: float = Field(1.0, ge=0, description="weight of the diversity loss")

    @model_validator(mode="after")
    def _distillation_needs_a_generator(self) -> "DmmlKdOptions":
        if self.distillation and not self.generator:
            raise ValueError("distillation = true needs generator = true: set both to false")
        return self


class DmmlKd(Learner):
    """Decomposed features, a generator of the common ones, and distillation from it.

    On top of gossip, device k minimises (METHODS 6.2; weights in :class:`DmmlKdOptions`)::

        L = CE(fused, y) + l_com mean_m CE(h(c^m), y) + l_orth mean_m L_orth(c^m, s^m) + l_sim L_sim
            + B_t E CE(h(G(y', eps)), y') + B_t mean_m KL(h(G(y, eps)) || h(c^m))

    with ``B_t = b0 * decay^(t-2)`` from round 2 on (the generator is untrained before), and after
    the local iterations trains G against the neighbours' common heads, each weighted by its owner's
    label counts (FedGen's ensemble, decentralised).

    References
    ----------
    Yin, Chen and Tao, "Knowledge Distillation and Training Balance for Heterogeneous Decentralized
    Multi-Modal Learning over Wireless Networks", IEEE TMC 2024: decomposition and generator are
    named in its abstract. Every formula here is this project's reconstruction from published parts
    (FedGen, MISA, ShaSpec), and no result of the paper is claimed to be reproduced.
    """

    name: ClassVar[str] = "dmml-kd"
    paper: ClassVar[str] = "Yin, Chen and Tao, IEEE TMC 2024 (reconstruction)"
    options_type: ClassVar[type[Options]] = DmmlKdOptions
    options: DmmlKdOptions

    def reset(self) -> None:
        self.generator = Generator(
            self.partition.num_classes, self.settings.common_dim, seed=self.settings.seed
        )
        super().reset()
        self.generator.to(self.device)
        counts = torch.bincount(self.train_data.labels, minlength=self.partition.num_classes)
        self.counts = counts.float().cpu()  # [classes]

    def blocks(self) -> dict[str, nn.Module]:
        gossiped = self.options.generator and self.options.generator_gossip
        return self.model.blocks() | ({"generator": self.generator} if gossiped else {})

    def private_blocks(self) -> dict[str, nn.Module]:
        alone = self.options.generator and not self.options.generator_gossip
        return {"generator": self.generator} if alone else {}

    def statistics(self) -> dict[str, Tensor]:
        sends = self.options.generator and self.options.label_counts
        return {COUNTS: self.counts} if sends else {}

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Gather who votes: the own head and the neighbours', with weights and label counts."""
        classes = self.partition.num_classes
        weights = plan.weights.get("head.common", (1.0,))
        self._heads: list[Tensor] = []
        votes, counts = [weights[0]], [self._votes_of(self.counts)]
        for neighbour, weight in zip(plan.neighbours, weights[1:], strict=True):
            head = inbox[neighbour].get("head.common")
            n = inbox[neighbour].get(STATISTICS + COUNTS, torch.ones(classes))
            if head is None or vector_problem(head, self.block_lengths()["head.common"]):
                continue  # already named when it was not mixed
            if vector_problem(n, classes) or bool((n < 0).any()):
                continue
            self._heads.append(head)
            votes.append(weight)
            counts.append(self._votes_of(n))
        mixing, known = torch.tensor(votes), torch.stack(counts)  # [heads], [heads, classes]
        self._omega = label_weights(mixing, known).to(self.device)
        self._labels = sampling_distribution(mixing, known)
        self._noise_rng = self.rng("noise")
        o, t = self.options, self.server_round
        ready = o.generator and t >= 2
        self._guidance = o.guidance * o.guidance_decay ** (t - 2) if ready else 0.0

    def _votes_of(self, counts: Tensor) -> Tensor:
        """Return label counts as votes: how many, or the same for all where they are private."""
        return counts if self.options.label_counts else torch.ones_like(counts)

    def local_loss(self, batch: Batch) -> Tensor:
        o, features = self.options, self.model.encode(batch.inputs)
        loss = F.cross_entropy(self.model.fuse(features), batch.labels)  # L_task
        if o.decomposition:
            loss = loss + self._decomposition_loss(features, batch.labels)
        if self._guidance:
            loss = loss + self._guidance * self._generator_guidance(features, batch.labels)
        return loss

    def _decomposition_loss(self, features: Features, labels: Tensor) -> Tensor:
        """Return ``l_com L_com + l_orth L_orth + l_sim L_sim``."""
        o, modalities = self.options, list(features.common)
        common = [F.cross_entropy(self.model.common_logits(features.common[m]), labels) for m in modalities]
        apart = [orthogonality_loss(features.common[m], features.specific[m]) for m in modalities]
        loss = o.common_weight * torch.stack(common).mean()
        loss = loss + o.orthogonality_weight * torch.stack(apart).mean()
        if len(modalities) > 1:
            loss = loss + o.similarity_weight * similarity_loss(list(features.common.values()))
        return loss

    def _generator_guidance(self, features: Features, labels: Tensor) -> Tensor:
        """Return ``L_gen + L_kd``: generated features teach the head, and through it the encoders."""
        drawn, generated = self._generate(len(labels))
        loss = F.cross_entropy(self.model.common_logits(generated.detach()), drawn)
        if self.options.distillation:
            with torch.no_grad():
                noise = self.generator.noise(len(labels), self._noise_rng).to(self.device)
                teacher = self.model.common_logits(self.generator(labels, noise))
            terms = [
                latent_distillation_loss(self.model.common_logits(c), teacher)
                for c in features.common.values()
            ]
            loss = loss + torch.stack(terms).mean()
        return loss

    def _generate(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw labels ``[size]`` that somebody near holds, and features ``[size, common_dim]``."""
        labels = torch.multinomial(self._labels, size, replacement=True, generator=self._noise_rng)
        labels = labels.to(self.device)
        self._noise = self.generator.noise(size, self._noise_rng).to(self.device)
        return labels, self.generator(labels, self._noise)

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Train the generator against the ensemble of common heads (METHODS 6.3)."""
        o = self.options
        if not o.generator:
            return
        heads = self._stacked_heads()
        optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=o.generator_lr, weight_decay=o.generator_weight_decay
        )
        for _ in range(o.generator_steps):
            labels, generated = self._generate(self.settings.batch_size)
            logits = torch.vmap(
                lambda head: functional_call(self.model.head_common, head, (generated,))  # noqa: B023
            )(heads)  # [heads, batch, classes]
            loss = ensemble_loss(logits, labels, self._omega)
            loss = loss + o.diversity_weight * diversity_loss(self._noise, generated)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _stacked_heads(self) -> dict[str, Tensor]:
        """Return the own common head (as trained) and the neighbours', stacked by parameter."""
        module = self.model.head_common
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        stacks = {name: [value] for name, value in own.items()}
        scratch = self.build_model().head_common.to(self.device)
        for head in self._heads:
            load_flat(scratch, head)
            for name, p in scratch.named_parameters():
                stacks[name].append(p.detach().clone())
        return {name: torch.stack(values) for name, values in stacks.items()}
