"""Evaluation metrics: accuracy, confusion matrix, recall of each class, and macro-F1."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan

import torch
from torch import Tensor

from ..data import Partition, Samples
from .batch import every_part

Predict = Callable[[Mapping[str, Tensor], Sequence[tuple[str, ...]]], list[Tensor]]
"""(inputs by modality, subsets of these) -> classes ``[batch]`` from each subset."""

NOTHING = -1
"""In the place of a class, where a sample has no modality to predict it from."""


@torch.no_grad()
def predictions(
    predict: Predict, data: Samples, subsets: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Tensor]:
    """Return the classes found from each subset of the modalities, ``[n]`` int64.

    Each sample is predicted from those of a subset that it has: :data:`NOTHING` if it has none.
    """
    found = {subset: torch.full_like(data.labels, NOTHING) for subset in subsets}
    for part in every_part(data):
        rows = part.labels
        there = {subset: tuple(m for m in subset if m in part.inputs) for subset in subsets}
        asked = [*dict.fromkeys(filter(None, there.values()))]
        answers = dict(zip(asked, predict(part.inputs, asked), strict=True))
        for subset, kept in there.items():
            if kept:
                found[subset][rows] = answers[kept]
    return found


def accuracy_metrics(
    predict: Predict, partition: Partition, test: Samples, validation: Samples
) -> dict[str, float]:
    """Return what a device measures, see :class:`~flwr_dmml.payload.plan.Outcome`.

    Accuracies are shares of the samples that have something to be predicted from; one without such
    samples is left out. ``test.macro_f1`` and ``test.uar`` are of all own modalities.

    Parameters
    ----------
    predict : callable
        Predicts from subsets of the modalities; each subset is asked for once.
    partition : Partition
        The device's own.
    test, validation : Samples
        Those of the partition, on the device that computes; ``validation`` may be empty.
    """
    owned = partition.modalities
    others = {m: tuple(o for o in owned if o != m) for m in owned} if len(owned) > 1 else {}
    subsets = list(dict.fromkeys([owned, *((m,) for m in owned), *others.values()]))
    found = predictions(predict, test, subsets)
    table = confusion(found[owned], test.labels, partition.num_classes)
    metrics = {"test.accuracy": accuracy(found[owned], test.labels)}
    metrics |= {f"test.accuracy.{m}": accuracy(found[m,], test.labels) for m in owned}
    metrics |= {f"test.without.{m}": accuracy(found[o], test.labels) for m, o in others.items()}
    metrics |= {"test.macro_f1": macro_f1(table), "test.uar": float(recall(table).nanmean())}
    if partition.test_present is not None:
        left = found[owned]
        for m, rest in others.items():
            has = partition.test_present[m]
            taken = ~has if test.present is None else ~has & test.present[m].to(has.device)
            left = torch.where(taken.to(left.device), found[rest], left)
        metrics["test.missing"] = accuracy(left, test.labels)
    held_out = predictions(predict, validation, [owned])[owned]
    metrics["validation.accuracy"] = accuracy(held_out, validation.labels)
    return {name: value for name, value in metrics.items() if not isnan(value)}


def accuracy(found: Tensor, labels: Tensor) -> float:
    """Return the share of right predictions in [0, 1], without :data:`NOTHING`; NaN of none."""
    predicted = int((found != NOTHING).sum())
    return int((found == labels).sum()) / predicted if predicted else nan


def confusion(found: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each class (rows) is taken for each, ``[classes, classes]`` int64.

    Parameters
    ----------
    found, labels : Tensor
        ``[n]`` int64; samples with :data:`NOTHING` found are left out.
    num_classes : int
        Number of classes.
    """
    predicted = found != NOTHING
    cells = (labels * num_classes + found)[predicted].cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def recall(table: Tensor) -> Tensor:
    """Return the share of each class's samples that are found, ``[classes]`` in [0, 1].

    Of a :func:`confusion`; NaN for a class without samples. The mean of the others is the
    unweighted average recall (UAR), also known as balanced accuracy.
    """
    table = table.double()
    return table.diagonal() / table.sum(dim=1)


def macro_f1(table: Tensor) -> float:
    """Return the mean of the classes' F1 in [0, 1], from a :func:`confusion`; NaN of no samples.

    A class that appears neither in the truth nor in the predictions is left out; one in the
    predictions only has F1 = 0 and counts.
    """
    table = table.double()
    both = table.sum(dim=0) + table.sum(dim=1)
    return float((2 * table.diagonal() / both).nanmean())
