"""A model as a device has evaluated it."""

from dataclasses import dataclass

from torch import Tensor

from ..models.late_fusion import LateFusion

BEST = "best-validation"
"""Name of the highest validation accuracy so far, in a learner's memory."""


@dataclass(frozen=True)
class Evaluated:
    """Copies of what predicts, and how well it did.

    Attributes
    ----------
    server_round : int
        The round after which it was evaluated: that of its line in ``metrics.jsonl``.
    weights : dict of str to Tensor
        By the parameters' names in the network, on the CPU.
    metrics : dict of str to float
        Of its evaluation.
    fusion : LateFusion or None
        How it combined modalities; None where the network does.
    """

    server_round: int
    weights: dict[str, Tensor]
    metrics: dict[str, float]
    fusion: LateFusion | None = None
