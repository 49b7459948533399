"""How often predictions are right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..data import Samples

Predict = Callable[[Mapping[str, Tensor], Sequence[tuple[str, ...]]], list[Tensor]]
"""(inputs by modality, subsets of the modalities) -> classes ``[batch]`` from each subset."""

BATCH = 500


@torch.no_grad()
def accuracies(predict: Predict, data: Samples, subsets: Sequence[tuple[str, ...]]) -> list[float]:
    """Return the accuracy in [0, 1] on ``data`` from each subset of the modalities alone."""
    return [_share(right) for right in hits(predict, data, subsets)]


@torch.no_grad()
def hits(predict: Predict, data: Samples, subsets: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """Return which samples are predicted right from each subset of the modalities, ``[n]`` bool."""
    right: list[list[Tensor]] = []
    for indices in torch.split(torch.arange(len(data)), BATCH):
        part = data.subset(indices)
        right.append([found == part.labels for found in predict(part.inputs, subsets)])
    return [torch.cat(batches) for batches in zip(*right, strict=True)]


@torch.no_grad()
def outputs(model: nn.Module, data: Samples) -> Tensor:
    """Return what ``model`` makes of all samples, ``[n, outputs]``."""
    parts = torch.split(torch.arange(len(data)), BATCH)
    return torch.cat([model(data.subset(indices).inputs) for indices in parts])


def accuracy_metrics(
    predict: Predict,
    modalities: Sequence[str],
    test: Samples,
    validation: Samples,
    test_present: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Return a device's accuracies as metrics, see :class:`~flwr_dmml.plan.Outcome`.

    Parameters
    ----------
    predict : callable
        Predicts from subsets of the modalities; each subset is asked for once.
    modalities : sequence of str
        The device's own.
    test, validation : Samples
        With the input of every modality; ``validation`` may be empty.
    test_present : mapping of str to Tensor, optional
        Modality to ``[n]`` bool: what each test sample has in ``test.missing``, all modalities or
        all but one.
    """
    owned = tuple(modalities)
    others = {m: tuple(o for o in owned if o != m) for m in owned} if len(owned) > 1 else {}
    subsets = list(dict.fromkeys([owned, *((m,) for m in owned), *others.values()]))
    right = dict(zip(subsets, hits(predict, test, subsets), strict=True))
    metrics = {"test.accuracy": _share(right[owned])}
    metrics |= {f"test.accuracy.{m}": _share(right[m,]) for m in owned}
    metrics |= {f"test.without.{m}": _share(right[rest]) for m, rest in others.items()}
    if test_present is not None:
        found = right[owned]
        for m, rest in others.items():
            found = torch.where(test_present[m].to(found.device), found, right[rest])
        metrics["test.missing"] = _share(found)
    if len(validation):
        (metrics["validation.accuracy"],) = accuracies(predict, validation, [owned])
    return metrics


@torch.no_grad()
def confusion(
    predict: Predict, data: Samples, modalities: tuple[str, ...], num_classes: int
) -> list[int]:
    """Return how often each class (rows) is taken for each (columns), row by row."""
    table = torch.zeros(num_classes**2, dtype=torch.int64)
    for indices in torch.split(torch.arange(len(data)), BATCH):
        part = data.subset(indices)
        (found,) = predict(part.inputs, [modalities])
        cells = part.labels * num_classes + found
        table += torch.bincount(cells.cpu(), minlength=num_classes**2)
    counts: list[int] = table.tolist()
    return counts


def _share(right: Tensor) -> float:
    """Return the share of what is right, in [0, 1]."""
    return int(right.sum()) / len(right)
