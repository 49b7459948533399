"""How sure each modality is of the true classes by itself, and how far ahead of the others."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..payload.plan import Inbox, Plan

Against = Literal["mean", "sum", "weakest"]
"""What a modality's score stands against: the others' mean, sum or minimum. Of two, all are one."""


def true_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probabilities ``[..., batch]`` of the true classes ``[..., batch]``.

    ``logits`` are ``[..., batch, classes]``.
    """
    shares = F.softmax(logits, dim=-1)
    return shares.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def leads(scores: Mapping[str, Tensor], against: Against = "mean") -> dict[str, Tensor]:
    """Return how far each modality is ahead, ``rho_m = s_m / s_others`` ``[...]``, float64.

    Parameters
    ----------
    scores : mapping of str to Tensor
        ``s_m`` ``[...]`` in (0, 1], by modality; of one alone comes nothing.
    against : {"mean", "sum", "weakest"}
        What ``s_others`` is.
    """
    found: dict[str, Tensor] = {}
    for m, own in scores.items() if len(scores) > 1 else ():
        others = [s.double() for o, s in scores.items() if o != m]
        rival = torch.stack(others).amin(dim=0) if against == "weakest" else total(others)
        number = len(others) if against == "mean" else 1
        found[m] = own * number / rival.clamp_min(1e-12)
    return found


class Watched(Learner):
    """Plain gossip that watches how sure each modality is by itself, in each joint iteration."""

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Begin without scores."""
        self._scores: dict[str, list[Tensor]] = {}  # of the iteration under way

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the task's loss, and note how sure each modality is of the true classes."""
        features = self.model.encode(batch.inputs)
        if len(features.common) > 1:
            with torch.no_grad():
                for m in features.common:
                    alone = self.model.fuse(features.only([m]))
                    true = true_probabilities(alone, batch.labels)
                    self._scores.setdefault(m, []).append(true)
        return self.task_loss(features, batch.labels)

    def watched(self) -> dict[str, Tensor]:
        """Return the true classes' probabilities ``[..., rows]`` by modality, and forget them.

        Of the rows of two or more modalities that have it.
        """
        found = {m: torch.cat(true, dim=-1) for m, true in self._scores.items()}
        self._scores = {}
        return found
