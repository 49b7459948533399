"""The greedy learner, guided: the encoder that learns faster waits for the other."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options


class GreedyOptions(Options):
    """Threshold at which a faster encoder is frozen, and for how many joint iterations."""

    threshold: float = Field(0.01, ge=0, description="tolerated difference of log10 speeds")
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
    references: ClassVar[tuple[str, ...]] = ("wu2022characterizing",)
    options_type: ClassVar[type[Options]] = GreedyOptions
    unaccounted: ClassVar[str] = ""
    stacks: ClassVar[bool] = True
    options: GreedyOptions

    def running(self) -> dict[str, Tensor]:
        """Return M and the joint iterations still to be frozen, by modality."""
        modalities = self.partition.modalities if len(self.partition.modalities) > 1 else ()
        speeds = {f"speed.{m}": torch.tensor(0.0, dtype=torch.float64) for m in modalities}
        kept = speeds | {f"frozen.{m}": torch.tensor(0) for m in modalities}
        return kept | {name: self.memory[name] for name in kept if name in self.memory}

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> Mapping[str, Tensor]:
        """Let frozen encoders rest; where none is, measure all and choose whom to freeze."""
        if len(modalities) < 2:
            return {}
        left = {m: batch.given[f"frozen.{m}"] for m in modalities}  # [...]
        frozen = {m: n > 0 for m, n in left.items()}
        none_is = ~torch.stack(list(frozen.values())).any(dim=0)
        speeds = {m: batch.given[f"speed.{m}"] for m in modalities}
        for m in modalities:
            speeds[m] += torch.where(none_is, self._ratio(m, none_is.dim()), 0.0)
            left[m] -= frozen[m].long()
        slowest = torch.stack(list(speeds.values())).amin(dim=0)
        if self.server_round >= 2:
            factor = 10**self.options.threshold
            for m, speed in speeds.items():
                faster = none_is & (slowest > 0) & (speed > factor * slowest)
                left[m].masked_fill_(faster, self.options.steps)
        return {f"encoder.{m}": rests for m, rests in frozen.items()}

    def _ratio(self, m: str, lead: int) -> Tensor:
        """Return ``||g_m||^2 / ||w_m||^2``, float64, of ``lead`` dimensions."""
        parameters = list(self.encoders()[m].parameters())
        gradients = [w.grad for w in parameters if w.grad is not None]
        if not gradients:
            return torch.tensor(0.0, dtype=torch.float64)
        g, w = (
            total(x.flatten(lead).square().sum(dim=-1).double() for x in xs)
            for xs in (gradients, parameters)
        )
        return g / (w + 1e-12)
