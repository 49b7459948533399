"""Tell which sample of a batch a feature belongs to, from another modality's features (InfoNCE)."""

import torch
from torch import Tensor

from .cross_entropy import cross_entropy


def unit(features: Tensor) -> Tensor:
    """Return features ``[..., length]`` scaled to unit length; those that are 0 stay 0."""
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / (length + 1e-6)


def alignment_loss(features: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Return ``-log exp(cos(z_i, o_i)/T) / sum_j exp(cos(z_i, o_j)/T)``, averaged over a batch.

    Parameters
    ----------
    features, others : Tensor
        ``z`` and ``o`` of the same samples, ``[..., batch, length]``.
    temperature : float
        T > 0.

    Returns
    -------
    Tensor
        ``[...]``, >= 0.

    References
    ----------
    van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
    2018.
    """
    similarities = unit(features) @ unit(others).mT / temperature  # [..., batch, batch]
    own = torch.arange(features.shape[-2], device=features.device)
    return cross_entropy(similarities, own.expand(similarities.shape[:-1]))
