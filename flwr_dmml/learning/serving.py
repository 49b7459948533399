"""What a device predicts by: the mixed model, its own, their mean, or the best of them."""

from typing import Literal

from torch import Tensor

ServeChoice = Literal["mixed", "own", "ensemble", "auto"]
SHARES: dict[ServeChoice, float] = {"mixed": 0.0, "ensemble": 0.5, "own": 1.0}
"""What of a model that is served is the device's own."""
ENOUGH = 20
"""Fewer validation samples choose nothing: the mixed model is served."""
SERVED = "serve.own"
"""The share of the own model in what is served: a metric."""


def between(mixed: Tensor, own: Tensor, share: float) -> Tensor:
    """Return ``(1 - share) mixed + share own``, ``[length]``; either of them to the bit.

    The own model is one round of local steps away from the last mixed one, so weights can be
    averaged in place of predictions, as between a model and what fine-tuning makes of it (Wortsman
    et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022).
    """
    if share in (0.0, 1.0):
        return own if share else mixed
    return mixed + share * (own - mixed)
