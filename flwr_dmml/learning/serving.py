"""What a device predicts by: the mixed model, its own, their mean, or the best of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

from ..payload.flat import Flat

ServeChoice = Literal["mixed", "own", "ensemble", "auto"]
SHARES: dict[ServeChoice, float] = {"mixed": 0.0, "ensemble": 0.5, "own": 1.0}
"""What of a model that is served is the device's own."""
ENOUGH = 20
"""Fewer validation samples choose nothing: the mixed model is served."""
SERVED = "serve.own"
"""The share of the own model in what is served: a metric."""


class Serving:
    """The model that a device is evaluated with, in place of the mixed one.

    Parameters
    ----------
    how : {"mixed", "own", "ensemble", "auto"}
        The setting ``serve``.
    flat : Flat
        The device's parameters.
    """

    def __init__(self, how: ServeChoice, flat: Flat) -> None:
        self._how, self._flat = how, flat
        self._own: Tensor | None = None  # as it was trained last, before mixing
        self._served: Tensor | None = None

    def note(self) -> None:
        """Remember the own model before it is mixed, if it may be what is served."""
        if self._how != "mixed":
            self._own = self._flat.vector.clone()

    def forget(self) -> None:
        """Serve the mixed model again."""
        self._served = None

    def choose(self, loss: Callable[[], float], samples: int) -> dict[str, float]:
        """Choose what is served from now on; return its metric, if there is anything to choose.

        Parameters
        ----------
        loss : callable
            That of the own validation samples, by what is then served.
        samples : int
            How many these are.
        """
        if self._own is None:
            return {}
        mixed, own, self._own = self._flat.vector.clone(), self._own, None
        share = SHARES["mixed"]
        if self._how != "auto":
            share = SHARES[self._how]
        elif samples >= ENOUGH:
            losses: dict[float, float] = {}
            for tried in SHARES.values():
                self._served = between(mixed, own, tried)
                with self.served():
                    losses[tried] = loss()
            share = min(losses, key=lambda tried: losses[tried])  # of equals the first
        self._served = between(mixed, own, share)
        return {SERVED: share}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Have the parameters that are served in this context, and the mixed ones afterwards."""
        if self._served is None:
            yield
            return
        mixed = self._flat.vector.clone()
        self._flat.vector.copy_(self._served)
        try:
            yield
        finally:
            self._flat.vector.copy_(mixed)


def between(mixed: Tensor, own: Tensor, share: float) -> Tensor:
    """Return ``(1 - share) mixed + share own``, ``[length]``; either of them to the bit.

    The own model is one round of local steps away from the last mixed one, so weights can be
    averaged in place of predictions, as between a model and what fine-tuning makes of it (Wortsman
    et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022).
    """
    if share in (0.0, 1.0):
        return own if share else mixed
    return mixed + share * (own - mixed)
