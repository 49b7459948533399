"""How sure each modality is of the true classes by itself, and how far ahead of the others."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..learning.optimisers import total

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
