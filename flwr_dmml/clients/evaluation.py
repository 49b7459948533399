"""How often predictions are right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..data import Samples

Predict = Callable[[Mapping[str, Tensor], Sequence[tuple[str, ...]]], list[Tensor]]
"""(inputs by modality, subsets of the modalities) -> classes ``[batch]`` from each subset."""

_BATCH = 500


@torch.no_grad()
def accuracies(predict: Predict, data: Samples, subsets: Sequence[tuple[str, ...]]) -> list[float]:
    """Return the accuracy in [0, 1] on ``data`` from each subset of the modalities alone."""
    right = [0] * len(subsets)
    for indices in torch.split(torch.arange(len(data)), _BATCH):
        part = data.subset(indices)
        for k, predicted in enumerate(predict(part.inputs, subsets)):
            right[k] += int((predicted == part.labels).sum())
    return [count / len(data) for count in right]
