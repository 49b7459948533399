"""What a teacher says of a device's samples, for each to be found again in a mini-batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..data import Samples
from .batch import batch_of
from .evaluation import BATCH

Network = Callable[[Mapping[str, Tensor]], Tensor]
"""Inputs by modality, ``[batch, *shape]`` each, to logits ``[batch, classes]``."""


def numbered(samples: Samples) -> Samples:
    """Return samples with their positions ``0 .. n-1`` for labels."""
    return replace(samples, labels=torch.arange(len(samples), device=samples.labels.device))


@torch.no_grad()
def logits_of(network: Network, samples: Samples) -> Tensor:
    """Return what a network makes of each sample, from the modalities that it has.

    ``[n, classes]`` in the order of the samples, of which there is at least one.
    """
    data, found, rows = numbered(samples), list[Tensor](), list[Tensor]()
    for chunk in torch.split(torch.arange(len(data)), BATCH):
        for part in batch_of(data.subset(chunk)).parts:
            found.append(network(part.inputs))
            rows.append(part.labels)
    return torch.cat(found)[torch.argsort(torch.cat(rows))]


def share_right(network: Network, samples: Samples) -> float:
    """Return the share of the samples that a network gets right, in [0, 1]."""
    found = logits_of(network, samples).argmax(dim=1)
    return int((found == samples.labels).sum()) / len(samples)
