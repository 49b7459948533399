"""The greedy learner, guided: the encoder that learns faster waits for the other."""

from math import log10
from typing import ClassVar

import torch
from pydantic import Field

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.options import Options


class GreedyOptions(Options):
    """Threshold at which a faster encoder is frozen, and for how many joint iterations."""

    threshold: float = Field(0.01, ge=0, description="difference of log10 speeds that is let be")
    steps: int = Field(5, ge=0, description="joint iterations that a faster encoder is frozen")


class Greedy(Learner):
    """Plain gossip with re-balancing of the modalities' learning speeds.

    Each joint iteration in which nothing is frozen adds to the speed of the encoder w_m with the
    gradient g_m::

        M_m += ||g_m||^2 / ||w_m||^2          d_m = log10(M_m / min_n M_n)

    From round 2 on the encoders with ``d_m > threshold`` are then frozen for the next ``steps``
    joint iterations: their gradients are dropped. M goes over the whole run.

    This project's reading. In the paper a branch's own speed stands against that of the layers that
    connect it to the other one; here modalities meet in the common head only, which belongs to both
    and cancels in d. Its re-balancing steps cut a connection, ours freeze what is faster. Only
    joint iterations count, and of more than two modalities all but the slowest may be frozen. With
    steps = 0 this is ``dpsgd``.

    References
    ----------
    Wu et al., "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
    Neural Networks", ICML 2022.
    """

    name: ClassVar[str] = "greedy"
    paper: ClassVar[str] = "Wu et al., ICML 2022"
    options_type: ClassVar[type[Options]] = GreedyOptions
    options: GreedyOptions

    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Drop the gradients of frozen encoders, or measure all speeds and choose whom to freeze.

        The memory holds M and the joint iterations still to be frozen, by modality.
        """
        if len(modalities) < 2:
            return
        frozen = {m: int(self.memory.get(f"frozen.{m}", 0)) for m in modalities}
        if any(frozen.values()):
            for m, left in frozen.items():
                if left:
                    self.encoders()[m].zero_grad(set_to_none=True)
                    self.memory[f"frozen.{m}"] = torch.tensor(left - 1)
            return
        speeds = {m: self._measure(m) for m in modalities}
        slowest = min(speeds.values())
        if self.server_round < 2 or slowest <= 0:
            return
        for m, speed in speeds.items():
            if log10(speed / slowest) > self.options.threshold:
                self.memory[f"frozen.{m}"] = torch.tensor(self.options.steps)

    def _measure(self, m: str) -> float:
        """Add this iteration to the speed of modality m and return it."""
        parameters = [w.detach() for w in self.encoders()[m].parameters()]
        gradients = [w.grad for w in self.encoders()[m].parameters() if w.grad is not None]
        g, w = (sum(float((x**2).sum()) for x in xs) for xs in (gradients, parameters))
        total = float(self.memory.get(f"speed.{m}", 0.0)) + g / (w + 1e-12)
        self.memory[f"speed.{m}"] = torch.tensor(total, dtype=torch.float64)
        return total
