"""Pull the common features of a sample's modalities together (ShaSpec's alignment)."""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor


def similarity_loss(common: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference of common features, averaged over modality pairs.

    Parameters
    ----------
    common : sequence of Tensor
        One tensor ``[..., batch, common_dim]`` a modality, at least two, rows of the same samples.

    Returns
    -------
    Tensor
        ``[...]``, >= 0; 0 when every modality gives the same common features.

    Raises
    ------
    ValueError
        With fewer than two modalities, where the loss has no meaning.

    References
    ----------
    Wang et al., "Multi-Modal Learning with Missing Modality via Shared-Specific Feature
    Modelling" (ShaSpec), CVPR 2023: L1 alignment of shared features. Its use for DMML-KD is this
    project's reconstruction.
    """
    if len(common) < 2:
        raise ValueError("similarity_loss compares modalities: it needs at least two")
    pairs = [(a - b).abs().flatten(-2).mean(dim=-1) for a, b in combinations(common, 2)]
    return reduce(torch.add, pairs) / len(pairs)
