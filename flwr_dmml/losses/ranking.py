"""Confidence falls as the loss of a sample grows (QMF's rank loss)."""

from torch import Tensor
from torch.nn import functional as F


def rank_loss(confidence: Tensor, losses: Tensor) -> Tensor:
    """Return ``mean_i max(0, sign(l_i - l_j) (c_i - c_j) + |l_i - l_j|)``, j the sample after i.

    Parameters
    ----------
    confidence : Tensor
        c of each sample, ``[..., batch]``.
    losses : Tensor
        Of the same samples; l is what they are scaled to 0 .. 1 over the batch, without gradient.

    Returns
    -------
    Tensor
        ``[...]``, >= 0.

    References
    ----------
    Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal Data", ICML 2023, where losses
    are accumulated over epochs; this form is this project's reading.
    """
    losses = losses.detach()
    low, high = losses.amin(dim=-1, keepdim=True), losses.amax(dim=-1, keepdim=True)
    losses = (losses - low) / (high - low).clamp_min(1e-12)
    apart = losses - losses.roll(-1, dims=-1)
    ahead = confidence - confidence.roll(-1, dims=-1)
    return F.relu(apart.sign() * ahead + apart.abs()).mean(dim=-1)
