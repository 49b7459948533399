"""How often predictions are right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def outputs(model: nn.Module, data: Samples) -> Tensor:
    """Return what ``model`` makes of all samples, ``[n, outputs]``."""
    parts = torch.split(torch.arange(len(data)), _BATCH)
    return torch.cat([model(data.subset(indices).inputs) for indices in parts])


def accuracy_metrics(
    predict: Predict, modalities: Sequence[str], test: Samples, validation: Samples
) -> dict[str, float]:
    """Return a device's accuracies as metrics, see :class:`~flwr_dmml.plan.Outcome`."""
    owned = tuple(modalities)
    joint, *single = accuracies(predict, test, [owned, *((m,) for m in owned)])
    metrics = {"test.accuracy": joint}
    metrics |= {f"test.accuracy.{m}": acc for m, acc in zip(owned, single, strict=True)}
    if len(validation):
        (metrics["validation.accuracy"],) = accuracies(predict, validation, [owned])
    return metrics
