"""Noise that cancels: another copy to each neighbour, and the network's mean untouched (Zip-DL)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import gaussian


def cancelling(weights: Sequence[float], length: int, deviation: float) -> Tensor:
    """Return a noise for each of those who mix a vector, whose weighted sum is 0.

    ``Z_v = Y_v - sum_j W_j Y_j / (d W_v)`` with ``Y_v ~ N(0, deviation^2)``, fresh and secret
    (:mod:`~.noise`), so that ``sum_v W_v Z_v = 0``. With equal weights each has the variance
    ``(d - 1) / d deviation^2``; all receivers together can undo all but their common part.

    Parameters
    ----------
    weights : sequence of float
        Those that each receiver gives the vector, its owner among them, d >= 2, all > 0.
    length : int
        Of the vector.
    deviation : float
        Standard deviation of Y, > 0.

    Returns
    -------
    Tensor
        ``[d, length]`` float32.

    References
    ----------
    Biswas et al., "Low-Cost Privacy-Preserving Decentralized Learning" (Zip-DL), 2024.
    """
    w = torch.tensor(weights, dtype=torch.float64)[:, None]  # [d, 1]
    y = deviation * gaussian(len(weights) * length).double().view(len(weights), length)
    noise = y - (w * y).sum(dim=0) / (len(weights) * w)
    return noise.float()
