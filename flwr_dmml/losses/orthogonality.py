"""Keep the common and the specific part of a feature apart (MISA's difference loss)."""

import torch
from torch import Tensor


def orthogonality_loss(common: Tensor, specific: Tensor) -> Tensor:
    """Return how much two sets of features vary together over a batch.

    Both are centred over the batch, each row is scaled to unit length, then ``mean((C^T S)^2)``
    over all pairs of features. Unlike in MISA's code the norm carries gradient: with a detached
    norm the loss falls by shrinking the features, and in this project's models they collapsed to a
    constant within 20 iterations.

    Parameters
    ----------
    common : Tensor
        Modality-common features ``[..., batch, common_dim]``.
    specific : Tensor
        Modality-specific features of the same samples ``[..., batch, specific_dim]``.

    Returns
    -------
    Tensor
        ``[...]``, >= 0; 0 when no common feature varies together with a specific one.

    References
    ----------
    Hazarika et al., "MISA: Modality-Invariant and -Specific Representations", ACM MM 2020 (the
    difference loss). Its use for DMML-KD, and the gradient through the norm, are this project's.
    """

    def unit_rows(features: Tensor) -> Tensor:
        centred: Tensor = features - features.mean(dim=-2, keepdim=True)
        length: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        return centred / (length + 1e-6)

    correlation = unit_rows(common).mT @ unit_rows(specific)  # [..., common_dim, specific_dim]
    return correlation.square().flatten(-2).mean(dim=-1)
