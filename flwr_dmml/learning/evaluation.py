"""Evaluation metrics: accuracy, confusion matrix, recall of each class, and macro-F1."""

from collections.abc import Sequence
from math import isnan, nan

import torch
from torch import Tensor

from ..data import Partition, Samples
from ..models.late_fusion import Scores
from .batch import every_part
from .calibration import Noted, errors_of
from .label_shares import LabelShares

EVALUATION = ("test.", "validation.")
"""Prefixes of metrics that were measured on the model that the round before has left."""
NOTHING = -1
"""In the place of a class, where a sample has no modality to predict it from."""
SHIFTED = ()
"""In the place of a subset, what is predicted with a shift of the logits."""


@torch.no_grad()
def predictions(
    scores: Scores,
    data: Samples,
    subsets: Sequence[tuple[str, ...]],
    shift: Tensor | None = None,
    noted: Noted | None = None,
) -> dict[tuple[str, ...], Tensor]:
    """Return the classes found from each subset of the modalities, ``[n]`` int64.

    Each sample is predicted from those of a subset that it has: :data:`NOTHING` if it has none.
    With a ``shift`` ``[classes]`` of the logits there is what comes of it, too, from the first
    subset: :data:`SHIFTED`. ``noted`` gets the logits from the first subset.
    """
    asked_for = [*subsets, *([SHIFTED] if shift is not None else [])]
    found = {subset: torch.full_like(data.labels, NOTHING) for subset in asked_for}
    for part in every_part(data):
        rows = part.labels
        there = {subset: tuple(m for m in subset if m in part.inputs) for subset in subsets}
        asked = [*dict.fromkeys(filter(None, there.values()))]
        answers = dict(zip(asked, scores(part.inputs, asked), strict=True))
        for subset, kept in there.items():
            if kept:
                found[subset][rows] = answers[kept].argmax(dim=1)
        if noted is not None and (kept := there[subsets[0]]):
            noted.append((answers[kept].cpu(), data.labels[rows].cpu()))
        if shift is not None and (kept := there[subsets[0]]):
            found[SHIFTED][rows] = (answers[kept] + shift.to(rows.device)).argmax(dim=1)
    return found


def accuracy_metrics(
    scores: Scores,
    partition: Partition,
    test: Samples,
    validation: Samples,
    label_shares: LabelShares,
) -> dict[str, float]:
    """Return what a device measures, see :class:`~flwr_dmml.payload.plan.Outcome`.

    Accuracies are shares of the samples that have something to be predicted from; one without such
    samples is left out. ``test.macro_f1`` and ``test.uar`` are of all own modalities, and so are
    the calibration errors (:func:`~.calibration.errors_of`).

    Parameters
    ----------
    scores : callable
        Logits from subsets of the modalities; each subset is asked for once.
    partition : Partition
        The device's own.
    test, validation : Samples
        Those of the partition, on the device that computes; ``validation`` may be empty.
    label_shares : LabelShares
        The device's own: ``test.accuracy_own_shares`` is that of a test set with these shares,
        where the device predicts by them, and ``validation.accuracy`` is of samples that have them.
    """
    owned = partition.modalities
    others = {m: tuple(o for o in owned if o != m) for m in owned} if len(owned) > 1 else {}
    subsets = list(dict.fromkeys([owned, *((m,) for m in owned), *others.values()]))
    classes, shift = partition.num_classes, label_shares.shift()
    of_test: Noted = []
    of_own: Noted = []
    found = predictions(scores, test, subsets, shift, of_test)
    table = confusion(found[owned], test.labels, classes)
    own = confusion(found[SHIFTED], test.labels, classes) if SHIFTED in found else table
    metrics = {"test.accuracy": accuracy(found[owned], test.labels)}
    metrics |= {f"test.accuracy.{m}": accuracy(found[m,], test.labels) for m in owned}
    metrics |= {f"test.without.{m}": accuracy(found[o], test.labels) for m, o in others.items()}
    metrics |= {"test.macro_f1": macro_f1(table), "test.uar": float(recall(table).nanmean())}
    metrics["test.accuracy_own_shares"] = weighted_recall(own, label_shares.own)
    if partition.test_present is not None:
        left = found[owned]
        for m, rest in others.items():
            has = partition.test_present[m]
            taken = ~has if test.present is None else ~has & test.present[m].to(has.device)
            left = torch.where(taken.to(left.device), found[rest], left)
        metrics["test.missing"] = accuracy(left, test.labels)
    own_samples = predictions(scores, validation, [owned], shift, of_own)
    held_out = own_samples.get(SHIFTED, own_samples[owned])
    metrics["validation.accuracy"] = accuracy(held_out, validation.labels)
    metrics |= errors_of(of_test, of_own, shift)
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


def weighted_recall(table: Tensor, shares: Tensor) -> float:
    """Return the accuracy on samples whose classes have these shares ``[classes]``.

    Of a :func:`confusion`, whose rows may have others. NaN if none of its classes has a share.
    """
    found = recall(table)
    weights = torch.where(found.isnan(), 0.0, shares.double())
    return float((found.nan_to_num() * weights).sum() / weights.sum())


def macro_f1(table: Tensor) -> float:
    """Return the mean of the classes' F1 in [0, 1], from a :func:`confusion`; NaN of no samples.

    A class that appears neither in the truth nor in the predictions is left out; one in the
    predictions only has F1 = 0 and counts.
    """
    table = table.double()
    both = table.sum(dim=0) + table.sum(dim=1)
    return float((2 * table.diagonal() / both).nanmean())
