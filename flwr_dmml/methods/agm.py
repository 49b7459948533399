"""AGM: a modality learns less while it leads by more than it does on average."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.options import Options
from .alone import Watched

MEAN, COUNT = "agm.", "agm-count."
"""In a device's ``memory``, by modality: the mean score so far, and of how many iterations."""
MOST = 10.0


class AgmOptions(Options):
    """The option of the gradient modulation."""

    alpha: float = Field(0.5, ge=0, description="how hard gradients are modulated")


class Agm(Watched):
    """Plain gossip with adaptive gradient modulation.

    In a joint iteration, with s_m the mean logarithm of the probability that modality m alone gives
    to the true classes of the mini-batch, and S_m its mean over the joint iterations before that
    had m::

        rho_m = exp(M / (M - 1) (s_m - mean_n s_n))     tau_m likewise of S_m
        g_m  <- exp(alpha min(tau_m - rho_m, 10)) g_m

    for the gradient g_m of encoder m; where one of the M has no S_m yet, nothing is scaled. So a
    modality learns less while it is further ahead than usual, and more while it is not; with two,
    rho_m is ``exp(s_m - s_other)``.

    This project's reading: m alone is the model's prediction from m; the paper attributes the fused
    logits to modalities by Shapley values over zeroed inputs, which takes 2^M forward passes. The
    exponent for more than two modalities is ours, so that two give the paper's. Rows that lack
    modalities count as in ``ogm-ge``. Means go on from round to round on the device. Iterations of
    one modality, and so devices with one sensor, are those of ``dpsgd``; with alpha = 0 all are.

    References
    ----------
    Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV
    2023; formulas as in its released code.
    """

    name: ClassVar[str] = "agm"
    paper: ClassVar[str] = "Li et al., ICCV 2023"
    references: ClassVar[tuple[str, ...]] = ("li2023boosting",)
    options_type: ClassVar[type[Options]] = AgmOptions
    unaccounted: ClassVar[str] = "ratios of scores on own samples, which scale gradients"
    stacks: ClassVar[bool] = True
    options: AgmOptions

    def running(self) -> dict[str, Tensor]:
        """Return the mean scores so far, and of how many joint iterations each is."""
        owned = self.partition.modalities
        names = [kind + m for m in owned for kind in (MEAN, COUNT)] if len(owned) > 1 else []
        return {name: self.memory.get(name, torch.tensor(0.0)) for name in names}

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Scale the encoders' gradients, and bring the means up to date."""
        scores = {m: true.clamp_min(1e-8).log().mean(-1) for m, true in self.watched().items()}
        if not scores:
            return
        means, counts = ({m: batch.given[kind + m] for m in scores} for kind in (MEAN, COUNT))
        now, usual = ratios(scores), ratios(means)
        known = torch.stack([*counts.values()]).amin(dim=0) > 0
        for m, s in scores.items():
            lead = torch.where(known, (usual[m] - now[m]).clamp_max(MOST), 0.0)
            k = torch.exp(self.options.alpha * lead)
            for w in self.encoders()[m].parameters():
                if w.grad is not None and self.options.alpha:
                    w.grad = w.grad * k.view([*k.shape, *[1] * (w.dim() - k.dim())])
            counts[m] += 1
            means[m] += (s - means[m]) / counts[m]


def ratios(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``rho_m`` ``[...]`` of each of two or more modalities, from its score ``s_m``."""
    number = len(scores)
    mean = torch.stack([*scores.values()]).mean(dim=0)
    return {m: torch.exp(number / (number - 1) * (s - mean)) for m, s in scores.items()}
