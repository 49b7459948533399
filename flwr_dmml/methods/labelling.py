"""Soft labels of a public set: those received from neighbours, and metrics of the labelling."""

import torch
from torch import Tensor

from ..data import PublicSet
from ..payload.plan import Inbox
from .soft_labels import LABELS, SoftLabelError, SoftLabels, unpack


def received(inbox: Inbox, num_public: int, num_classes: int) -> tuple[list[SoftLabels], list[str]]:
    """Return the neighbours' labels, and what was wrong with those that are left out.

    Parameters
    ----------
    inbox : Inbox
        Payloads with or without soft labels (entries that begin with ``LABELS``); not trusted.
    num_public, num_classes : int
        Samples of the public set, and classes of the task.
    """
    good, wrong = list[SoftLabels](), list[str]()
    for neighbour, payload in inbox.items():
        entries = {k.removeprefix(LABELS): v for k, v in payload.items() if k.startswith(LABELS)}
        try:
            if entries:
                good.append(unpack(entries, num_public, num_classes))
        except SoftLabelError as error:
            wrong.append(f"{neighbour}: soft labels: {error}")
    return good, wrong


def sent(chosen: Tensor, public: PublicSet) -> dict[str, float]:
    """Return what share of the public set a device labels.

    Parameters
    ----------
    chosen : Tensor
        Positions of the samples that it labels, ``[k]`` int64.
    public : PublicSet
        With out-of-distribution samples in it, the shares let in of both kinds come as well.

    Returns
    -------
    dict of str to float
        ``labels.sent``, ``labels.kept`` (of the in-distribution samples) and ``labels.admitted``
        (of the others), in [0, 1].
    """
    inside = public.inside
    metrics = {"labels.sent": len(chosen) / len(public)}
    if not bool(inside.all()):
        metrics["labels.kept"] = float(inside[chosen].sum() / inside.sum())
        metrics["labels.admitted"] = float((~inside)[chosen].sum() / (~inside).sum())
    return metrics


def taught(labels: SoftLabels, public: PublicSet, own: Tensor) -> dict[str, float]:
    """Return how many averaged labels there are, how many are right, and the change in label skew.

    Parameters
    ----------
    labels : SoftLabels
        What a device will train on.
    public : PublicSet
        The public set.
    own : Tensor
        The device's own labels, ``[n]`` int64.

    Returns
    -------
    dict of str to float
        ``labels.used``, the share of the public set; ``labels.skew`` and ``labels.skew-before``,
        the total variation in [0, 1] between the label distribution and evenness, with the public
        samples and without; ``labels.right``, the share of right labels among in-distribution
        samples, where their classes are known.
    """
    index, classes = labels.index.long(), labels.labels.shape[1]
    counts = torch.bincount(own, minlength=classes).double()
    metrics = {
        "labels.used": len(index) / len(public),
        "labels.skew-before": _skew(counts),
        "labels.skew": _skew(counts + labels.labels.double().sum(dim=0)),
    }
    if public.truth is not None:
        truth = public.truth[index]
        right = labels.labels.float().argmax(dim=1) == truth
        if bool((truth >= 0).any()):
            metrics["labels.right"] = float(right[truth >= 0].double().mean())
    return metrics


def _skew(counts: Tensor) -> float:
    """Return the total variation between ``counts`` ``[classes]``, as shares, and evenness."""
    return float((counts / counts.sum() - 1 / len(counts)).abs().sum() / 2)
