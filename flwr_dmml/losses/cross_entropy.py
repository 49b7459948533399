"""Cross-entropy of classes or of soft labels, for one device or a stack of them."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over a batch.

    Parameters
    ----------
    logits : Tensor
        ``[..., batch, classes]``.
    labels : Tensor
        Classes ``[..., batch]`` int64, or probabilities ``[..., batch, classes]``.

    Returns
    -------
    Tensor
        ``[...]``, >= 0.
    """
    return cross_entropies(logits, labels).mean(dim=-1)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every sample, ``[..., batch]``; see :func:`cross_entropy`."""
    soft = labels.is_floating_point()
    flat = labels.flatten(0, -2) if soft else labels.flatten()
    each = F.cross_entropy(logits.flatten(0, -2), flat, reduction="none")
    return each.view(logits.shape[:-1])
