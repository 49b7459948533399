"""MLA: modalities take turns in training one head, whose steps spare what the others taught it."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..losses import cross_entropies, rank_loss
from ..models.experts import ExpertsClassifier, confidence
from ..models.stacked import product
from ..payload.plan import Inbox, Plan

PROJECTION, TURNS = "projection", "turns"


class MlaOptions(Options):
    """Options of the alternating training."""

    variant: Literal["mla", "qmf"] = Field(
        "mla", description="turns with one head, or joint training with uncertainty weights"
    )
    unit_norm: bool = Field(
        True,
        description="scale the projection to Frobenius norm 1, as the code does; or sqrt(width)",
    )
    rank_weight: float = Field(0.1, ge=0, description="of qmf: weight of the rank loss")

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Return the problem of joint training without joint iterations."""
        problems, stagger = super().problems(settings), settings.stagger
        if self.variant == "qmf" and (1.0 if stagger == "auto" else stagger) == 1:
            problems.append("mla.variant = 'qmf': trains modalities together; set stagger below 1")
        return problems


class Mla(Learner):
    """Plain gossip with alternating uni-modal adaptation.

    Every modality has an encoder, all have one linear head h, which all devices share. An iteration
    trains one modality, ``CE(h(z^m), y)`` (``stagger`` is 1 by default), and gives h's weights the
    gradient ``G P^T``, with P = I at first and, r the mean feature of the mini-batch::

        k = P r      P <- P - k k^T / (a + r . k)      P <- P / ||P||      a = 0.1^(1 + b / B)

    in iteration b of the round's B; the first one of all leaves G as it is. So a modality's steps
    change little in the directions of features that h has read before. P stays on its device.
    Several modalities predict by ``sum_m w_m h(z^m)``, ``w = softmax_m(-entropy_m)``.

    With ``variant = "qmf"`` modalities have heads of their own and are trained together, with c_m
    the energy ``log sum exp(o_m) / 10`` of a sample, which the first term does not train::

        CE(sum_m c_m o_m, y) + sum_m CE(o_m, y) + rank_weight sum_m rank(c_m)
        rank(c) = mean_i max(0, sign(l_i - l_j) (c_i - c_j) + |l_i - l_j|)

    l_i being the sample's own cross-entropy from m, scaled to 0 .. 1 over the mini-batch, and j the
    sample after i. It predicts with the same weights c_m.

    This project's reading: a turn has a mini-batch of its own, in the shuffled order of solo
    iterations; the paper's code goes through all modalities with each mini-batch, and b counts
    mini-batches of an epoch. A joint iteration (``stagger`` below 1) has the sum of the losses and
    the mean of the features. QMF's losses l are accumulated over epochs in its code. A device with
    one sensor trains its encoder and h by cross-entropy, without P. ``fusion`` and
    ``modality-loss`` have no effect.

    References
    ----------
    Zhang, Yoon, Bansal and Yao, "Multimodal Representation Learning by Alternating Unimodal
    Adaptation", CVPR 2024; formulas as in its released code. QMF: Zhang et al., "Provable Dynamic
    Fusion for Low-Quality Multimodal Data", ICML 2023.
    """

    name: ClassVar[str] = "mla"
    paper: ClassVar[str] = "Zhang et al., CVPR 2024; QMF: Zhang et al., ICML 2023"
    references: ClassVar[tuple[str, ...]] = ("zhang2024multimodal", "zhang2023provable")
    options_type: ClassVar[type[Options]] = MlaOptions
    stagger: ClassVar[float] = 1.0
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "mean features of own samples, which turn gradients"
    options: MlaOptions
    model: ExpertsClassifier  # type: ignore[assignment]

    def build_model(self) -> ExpertsClassifier:  # type: ignore[override]
        """Return the encoders and their head, or heads."""
        s, alternates = self.settings, self.options.variant == "mla"
        return ExpertsClassifier(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.partition.num_classes,
            width=s.common_dim + s.specific_dim,
            own=not alternates,
            shared=alternates,
            fused=False,
            weighing="entropy" if alternates else "energy",
            choice=s.encoder_choice,
            seed=s.seed,
        )

    @property
    def projects(self) -> bool:
        """Whether the head's gradients are projected."""
        return self.options.variant == "mla" and len(self.partition.modalities) > 1

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Count the turns of this round."""
        self._turns = len(self.steps(self.updates(plan)))
        self._read: list[tuple[int, Tensor]] = []  # rows, and their mean features

    def running(self) -> dict[str, Tensor]:
        """Return P ``[width, width]`` and the turns so far."""
        fresh = {PROJECTION: torch.eye(self.model.width), TURNS: torch.tensor(0)}
        return {k: self.memory.get(k, x) for k, x in fresh.items() if self.projects}

    def fixed(self) -> dict[str, Tensor]:
        """Return the turns before this round, and in it."""
        if not self.projects:
            return {}
        before = self.memory.get(TURNS, torch.tensor(0))
        return {"before": before.to(self.device), "all": torch.tensor(self._turns).to(self.device)}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        z, y = self.model.encode(batch.inputs), batch.labels
        alone = self.model.alone(z)
        loss = total(self.cross_entropy(o, y) for o in alone.values())
        if self.projects:
            means = [x.detach().float().mean(dim=-2) for x in z.values()]
            self._read.append((y.shape[-1], total(means) / len(means)))
        if self.options.variant == "qmf" and len(alone) > 1:
            loss = loss + self.cross_entropy(self.model.decide(z), y)
            if self.options.rank_weight:
                loss = loss + self.options.rank_weight * total(
                    rank_loss(confidence(o), cross_entropies(o, y)) for o in alone.values()
                )
        return loss

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Bring P up to date, and project the gradient of the head's weights."""
        read, self._read = self._read, []
        weight = self.model.head.weight if self.projects else None
        if weight is None or weight.grad is None or not read:
            return
        given, p = batch.given, batch.given[PROJECTION]
        rows = sum(count for count, _ in read)
        r = total(count / rows * mean for count, mean in read)
        turns = given[TURNS]
        small = 0.1 ** (1 + (turns - given["before"]) / given["all"])
        p.copy_(narrowed(p, r, small, 1.0 if self.options.unit_norm else r.shape[-1] ** 0.5))
        g = weight.grad
        projected = product(g, p.mT) if g.dim() > 2 else g @ p.mT
        weight.grad = torch.where((turns == 0)[..., None, None], g, projected)
        turns += 1


def narrowed(p: Tensor, r: Tensor, small: Tensor, norm: float) -> Tensor:
    """Return the next projection ``[..., width, width]``, without the direction of a mean feature.

    Parameters
    ----------
    p : Tensor
        The last one.
    r : Tensor
        The mean feature ``[..., width]``.
    small : Tensor
        a ``[...]``, > 0.
    norm : float
        The Frobenius norm of the result.
    """
    k = (p * r[..., None, :]).sum(dim=-1)
    inner = small + (r * k).sum(dim=-1)
    new = p - k[..., :, None] * k[..., None, :] / inner[..., None, None]
    length = new.flatten(-2).square().sum(dim=-1).sqrt()
    return new * (norm / length)[..., None, None]
