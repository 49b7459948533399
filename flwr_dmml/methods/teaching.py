"""Logits and accuracy of a teacher network on samples, some of which may lack modalities."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..data import Samples
from ..learning.batch import every_part

Network = Callable[[Mapping[str, Tensor]], Tensor]
"""Inputs by modality, ``[batch, *shape]`` each, to logits ``[batch, classes]``."""


def having(samples: Samples, modality: str) -> Samples:
    """Return the samples that have a modality, with all that they have."""
    if samples.present is None:
        return samples
    return samples.subset(torch.nonzero(samples.present[modality]).flatten())


@torch.no_grad()
def logits_of(network: Network, samples: Samples) -> Tensor:
    """Return what a network makes of each sample, from the modalities that it has.

    ``[n, classes]`` in the order of the samples. There is at least one, and each has a modality.
    """
    found, rows = list[Tensor](), list[Tensor]()
    for part in every_part(samples):
        found.append(network(part.inputs))
        rows.append(part.labels)
    return torch.cat(found)[torch.argsort(torch.cat(rows))]


def share_right(network: Network, samples: Samples) -> float:
    """Return the share of samples that a network gets right in [0, 1], of those with a modality."""
    samples = samples.with_any()
    found = logits_of(network, samples).argmax(dim=1)
    return int((found == samples.labels).sum()) / len(samples)
