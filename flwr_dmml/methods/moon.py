"""MOON: representations follow the mixed model's, away from those of the device's own last one."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import cross_entropy
from ..models import DecomposedClassifier, Features
from ..payload.blocks import flatten, load_flat
from ..payload.plan import Inbox, Plan


class MoonOptions(Options):
    """Options of the model-contrastive loss."""

    mu: float = Field(1.0, ge=0, description="weight of the model-contrastive loss")
    tau: float = Field(0.5, gt=0, description="its temperature")


class Moon(Learner):
    """Plain gossip with a model-contrastive loss.

    From round 2 on a device minimises, the second term averaged over the batch::

        CE(fused, y) - mu log( exp(cos(z, z_glob)/tau)
                               / (exp(cos(z, z_glob)/tau) + exp(cos(z, z_prev)/tau)) )

    z is the representation of a sample in the model being trained, z_glob in the model that mixing
    left in this round, z_prev in the device's own as its last training left it, before mixing. The
    last two are frozen.

    This project's reading: z is what the heads read, the mean common feature and the specific ones
    of the modalities present; there is no projection head. A device that has not trained yet has
    z_prev = z_glob, which has no gradient. With mu = 0 this is ``dpsgd``.

    References
    ----------
    Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021.
    """

    name: ClassVar[str] = "moon"
    paper: ClassVar[str] = "Li, He and Song, CVPR 2021"
    references: ClassVar[tuple[str, ...]] = ("li2021model",)
    options_type: ClassVar[type[Options]] = MoonOptions
    unaccounted: ClassVar[str] = ""
    stacks: ClassVar[bool] = True
    options: MoonOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Freeze the mixed model and the own one of before."""
        self._mixed = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._previous = copy.deepcopy(self._mixed)
        for m, encoder in self._previous.encoders.items():
            if m in self.memory:
                load_flat(encoder, self.memory[m])

    def frozen(self) -> dict[str, nn.Module]:
        """Return both frozen models."""
        if self.server_round < 2:
            return {}
        return {"mixed": self._mixed, "previous": self._previous}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features = self.model.encode(batch.inputs)
        loss = self.task_loss(features, batch.labels)
        if self.server_round < 2:
            return loss
        z = representation(features)
        z_glob, z_prev = (_frozen(model, batch.inputs) for model in (self._mixed, self._previous))
        return loss + self.options.mu * contrastive_loss(z, z_glob, z_prev, self.options.tau)

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Keep the trained encoders, which make the representation."""
        self.memory |= {m: flatten(encoder) for m, encoder in self.encoders().items()}


def representation(features: Features) -> Tensor:
    """Return what the heads read ``[..., batch, common_dim + modalities * specific_dim]``."""
    common = total(features.common.values()) / len(features.common)
    return torch.cat([common, *features.specific.values()], dim=-1)


def contrastive_loss(z: Tensor, z_glob: Tensor, z_prev: Tensor, tau: float) -> Tensor:
    """Return MOON's loss ``[...]`` of representations ``[..., batch, length]``."""
    similarities = [F.cosine_similarity(z, other, dim=-1) / tau for other in (z_glob, z_prev)]
    first = torch.zeros(z.shape[:-1], dtype=torch.long, device=z.device)
    return cross_entropy(torch.stack(similarities, dim=-1), first)


@torch.no_grad()
def _frozen(model: DecomposedClassifier, inputs: Mapping[str, Tensor]) -> Tensor:
    return representation(model.encode(inputs))
