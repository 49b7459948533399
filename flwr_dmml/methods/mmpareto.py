"""MMPareto: encoders follow a direction that serves the fused and their own prediction."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..payload.plan import Inbox, Plan


class MmParetoOptions(Options):
    """The option of the Pareto gradients."""

    gamma: float = Field(1.5, gt=0, description="factor on the length of the encoders' gradients")


class MmPareto(Learner):
    """Plain gossip with Pareto gradients of the encoders.

    The loss of a joint iteration is ``L_F + a sum_m L_m``, the cross-entropy of the fused
    prediction and of that from each modality alone, with a = ``modality-loss``, here 1 by default.
    Heads get its gradient; encoder m, with g_1 of L_F and g_2 of a L_m, gets::

        k = 1/2                                            where g_1 . g_2 > 0,  else
            (g_2 - g_1) . g_2 / ||g_1 - g_2||^2            within .001 .. .999
        h = 2 k g_1 + 2 (1 - k) g_2
        g = gamma max(1, ||g_1 + g_2|| / ||h||) h          norms of each parameter tensor

    that is, the shortest vector between two gradients in conflict, at the length of their sum.

    This project's reading: L_m is of the model's prediction from m alone; in the paper each
    modality has a head besides the fused one. Gradients are changed before ``clip-norm`` and
    momentum. An iteration takes a backward pass more of each encoder, and is billed for it. In
    iterations of one modality, and so on devices with one sensor, L_F is L_m, and all is as in
    ``dpsgd``; rows that lack modalities count to g_1. With ``modality-loss = 0`` this is ``dpsgd``,
    and with gamma = 1 ``dpsgd`` with that loss, but for encoders in conflict.

    References
    ----------
    Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML
    2024; formulas as in its released code.
    """

    name: ClassVar[str] = "mmpareto"
    paper: ClassVar[str] = "Wei and Hu, ICML 2024"
    references: ClassVar[tuple[str, ...]] = ("wei2024mmpareto",)
    options_type: ClassVar[type[Options]] = MmParetoOptions
    modality_loss: ClassVar[float] = 1.0
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "gradients of several losses over whole mini-batches"
    options: MmParetoOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Begin without gradients."""
        self._own: list[tuple[int, dict[str, list[Tensor]]]] = []  # rows, and g_2 by encoder

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss, and note each modality's own gradient of its encoder."""
        features, y = self.model.encode(batch.inputs), batch.labels
        loss, a = self.cross_entropy(self.model.fuse(features), y), self.settings.modality_weight
        found: dict[str, list[Tensor]] = {}
        for m in features.common if a and len(features.common) > 1 else ():
            own = self.cross_entropy(self.model.fuse(features.only([m])), y)
            weights = self._weights(m)
            found[m] = list(torch.autograd.grad(a * own.sum(), weights, retain_graph=True))
            loss = loss + a * own
        self._own.append((y.shape[-1], found))
        return loss

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Replace the encoders' gradients by those of the class docstring."""
        noted, self._own = self._own, []
        rows = sum(count for count, _ in noted)
        for m in dict.fromkeys(m for _, found in noted for m in found):
            shares = [(n / rows, found[m]) for n, found in noted if m in found]
            weights = self._weights(m)
            seconds = [total(share * own[i] for share, own in shares) for i in range(len(weights))]
            sums = [w.grad for w in weights if w.grad is not None]
            firsts = [s - g for s, g in zip(sums, seconds, strict=True)]
            changed = pareto(firsts, seconds, batch.labels.dim() - 1, self.options.gamma)
            for w, g in zip(weights, changed, strict=True):
                w.grad = g

    def _weights(self, modality: str) -> list[Tensor]:
        """Return what is trained of an encoder."""
        return [w for w in self.encoders()[modality].parameters() if w.requires_grad]


def pareto(
    firsts: list[Tensor], seconds: list[Tensor], lead: int, gamma: float = 1.5
) -> list[Tensor]:
    """Return the gradients of an encoder's parameters from those of both losses.

    Parameters
    ----------
    firsts, seconds : list of Tensor
        g_1 and g_2, ``[..., *shape]`` of each parameter.
    lead : int
        How many dimensions are for the devices.
    gamma : float
        A factor on the length.
    """

    def dot(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
        pairs = zip(xs, ys, strict=True)
        return total((x * y).flatten(lead).sum(dim=-1) for x, y in pairs)

    def norm(x: Tensor) -> Tensor:
        return x.flatten(lead).square().sum(dim=-1).sqrt()

    both, one, two = dot(firsts, seconds), dot(firsts, firsts), dot(seconds, seconds)
    between = (two - both) / (one + two - 2 * both).clamp_min(1e-30)
    between = torch.where(both >= one, 0.999, torch.where(both >= two, 0.001, between))
    k = torch.where(both > 0, 0.5, between)
    found: list[Tensor] = []
    for a, b in zip(firsts, seconds, strict=True):
        ones = [1] * (a.dim() - lead)
        share = k.reshape(*k.shape, *ones)
        h = 2 * share * a + 2 * (1 - share) * b
        longer = (norm(a + b) / norm(h).clamp_min(1e-30)).clamp_min(1.0)
        found.append(gamma * longer.reshape(*k.shape, *ones) * h)
    return found
