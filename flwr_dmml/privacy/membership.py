"""How well scores tell training samples from others: AUC, and true positives at a low rate."""

from dataclasses import dataclass
from math import floor, sqrt
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from ..base.libraries import needed
from ..energy.ledger import Floats

FALSE_POSITIVES = 0.01
"""The rate at which true positives are counted."""
ENOUGH = 300
"""With fewer samples that were not trained on, a rate of :data:`FALSE_POSITIVES` is a guess."""
LEVEL = 0.95
"""Confidence of the intervals."""


@dataclass(frozen=True)
class Share:
    """A share in [0, 1], with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Success:
    """How well an attack tells members from others.

    Attributes
    ----------
    members, others : int
        Samples that the model was trained on, and samples that it was not.
    auc : Share
        Probability that a member scores higher than another sample, ties counted half; 0.5 is a
        guess. The interval is that of DeLong et al. (Biometrics, 1988).
    true_positives : Share
        Share of the members that are found with at most :data:`FALSE_POSITIVES` false positives; a
        guess finds as many. The interval is exact (Clopper and Pearson, 1934) for the threshold
        that was found.
    """

    members: int
    others: int
    auc: Share
    true_positives: Share


def success(members: Floats, others: Floats) -> Success:
    """Return how well scores tell members from others: they are to be higher for members.

    Parameters
    ----------
    members, others : array
        Scores ``[samples]``, at least one each, finite.
    """
    m, n = len(members), len(others)
    above = _below(others, members)  # of each member, the share of the others below it
    below = 1 - _below(members, others)  # of each of the others, the share of the members above it
    auc = float(np.mean(above))
    spread = sqrt(_variance(above) / m + _variance(below) / n)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * spread
    threshold = np.sort(others)[::-1][floor(FALSE_POSITIVES * n)]
    found = int((members > threshold).sum())
    return Success(
        m,
        n,
        Share(auc, max(0.0, auc - reach), min(1.0, auc + reach)),
        Share(found / m, *exact_interval(found, m)),
    )


def _below(values: Floats, each: Floats) -> Floats:
    """Return which share of the values is below each number; equal ones count half."""
    ordered = np.sort(values)
    first, last = (np.searchsorted(ordered, each, side) for side in ("left", "right"))
    found: Floats = (first + last) / (2 * len(values))
    return found


def _variance(values: Floats) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.25


def exact_interval(found: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share ``found / of`` (Clopper and Pearson, 1934)."""
    with needed("scipy"):
        from scipy.stats import beta
    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, found, of - found + 1)) if found else 0.0
    high = float(beta.ppf(1 - tail, found + 1, of - found)) if found < of else 1.0
    return low, high


def confidence(scores: Tensor, labels: Tensor) -> Floats:
    """Return ``log p_y - log(1 - p_y)`` of the true classes (Carlini et al., 2022), ``[samples]``.

    It grows with ``log p_y``, so that a threshold on it is one on the loss.

    Parameters
    ----------
    scores : Tensor
        Logits, or logarithms of probabilities up to a constant, ``[samples, classes]``.
    labels : Tensor
        True classes, ``[samples]`` int64.
    """
    z, y = scores.detach().double().cpu(), labels.cpu()[:, None]
    own = z.gather(1, y)[:, 0]
    others = z.scatter(1, y, -torch.inf).logsumexp(dim=1)
    found: Floats = np.nan_to_num((own - others).numpy(), nan=0.0, posinf=1e9, neginf=-1e9)
    return found
