"""Tell the public samples that are like a node's own from those that are not.

A score says how much a sample looks like what the node was trained on (higher = more so); a
threshold on it is calibrated on the node's own held-out samples against public ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base.libraries import needed


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return ``logits / temperature`` in float32 or better: scores near 1 tie in float16."""
    if not temperature > 0:
        raise ValueError(f"the temperature is above 0, not {temperature}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def msp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the maximum softmax probability ``max_c softmax(logits / T)_c`` of each sample.

    It filters for confident labels as well as for samples of the node's own kind.

    Parameters
    ----------
    logits : Tensor
        ``[n, classes]``.
    temperature : float
        T > 0; higher brings all scores nearer to 1 / classes.

    Returns
    -------
    Tensor
        ``[n]`` in [1 / classes, 1]; confident samples tie at 1.

    Raises
    ------
    ValueError
        The temperature is not above 0.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
    in Neural Networks", ICLR 2017.
    """
    return torch.softmax(_scaled(logits, temperature), dim=1).amax(dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``T logsumexp(logits / T)`` of each sample, the *negative* of what is called energy.

    The sign is turned so that higher is more in-distribution, as for :func:`msp`.

    Parameters
    ----------
    logits : Tensor
        ``[n, classes]``.
    temperature : float
        T > 0; towards 0 the score goes to the largest logit.

    Returns
    -------
    Tensor
        ``[n]``, unbounded, in the unit of the logits.

    Raises
    ------
    ValueError
        The temperature is not above 0.

    References
    ----------
    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    """
    return temperature * torch.logsumexp(_scaled(logits, temperature), dim=1)


SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {"msp": msp, "energy": energy}
"""The scores by the name they have in a run config; called with logits and a temperature."""


@dataclass(frozen=True)
class Calibration:
    """A node's threshold, and how well its score separates.

    Attributes
    ----------
    threshold : float
        A sample counts as in-distribution where ``score >= threshold``; inf lets none in.
    auroc : float
        Area under the ROC in [0, 1]: the chance that an inside sample scores above an outside one,
        a tie counting half. 0.5 separates nothing, below it the order is reversed.
    """

    threshold: float
    auroc: float


def calibrate(inside: Tensor, outside: Tensor) -> Calibration:
    """Choose the threshold of the largest Youden's J, ``TPR - FPR``, on the ROC.

    Equal scores stay on the same side. Of several thresholds with the largest J, the highest is
    taken: it lets the fewest in. Where no threshold has a J above 0 (the outside scores are as high
    as the inside ones, or higher), that is inf, and nothing is let in.

    Parameters
    ----------
    inside : Tensor
        Scores of the node's held-out samples (the positives), ``[p]``.
    outside : Tensor
        Scores of public samples (the negatives), ``[q]``; drawn at random they hold in-distribution
        ones too, which lifts the threshold. IDKD takes q = p; neither result depends on q / p.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        Either side is empty, not one-dimensional or not finite.

    References
    ----------
    Youden, "Index for rating diagnostic tests", Cancer 1950. IDKD (Ravikumar et al., TMLR 2024)
    calibrates on validation samples against as many public ones.
    """
    with needed("sklearn"):
        from sklearn.metrics import roc_auc_score, roc_curve

    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1:
            raise ValueError(f"the {name} scores have shape {list(scores.shape)}, not [n]")
        if not len(scores):
            raise ValueError(f"there are no {name} scores to calibrate on")
        if not torch.isfinite(scores).all():
            raise ValueError(f"the {name} scores are not all finite")
    both = torch.cat([inside.detach().double(), outside.detach().double()]).cpu().numpy()
    is_inside = np.repeat([1, 0], [len(inside), len(outside)])
    fpr, tpr, thresholds = roc_curve(is_inside, both, drop_intermediate=False)
    youden = tpr - fpr  # from the highest threshold, inf, to the lowest
    best = np.flatnonzero(youden >= youden.max() - 1e-12)[0]  # equal ones differ by rounding
    return Calibration(float(thresholds[best]), float(roc_auc_score(is_inside, both)))
