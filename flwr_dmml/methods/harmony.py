"""Harmony: uni-modal networks, then fusion heads shared by devices of like modality bias."""

from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..learning.options import Options
from ..payload.blocks import STATISTICS, flatten
from ..payload.plan import Inbox, Plan
from ..payload.received import received
from .staged import Staged
from .stages import FUSION, StagedOptions

BIAS, HEAD = "bias", "fusion.head"


class HarmonyOptions(StagedOptions):
    """The stages, the encoders' rate in the second, and who shares a fusion head."""

    uni_modal: float = Field(
        0.67, gt=0, lt=1, description="share of the rounds that train a network of each modality"
    )
    encoder_rate: float = Field(
        0.1, ge=0, description="learning rate of the fused encoders, as a multiple of the run's"
    )
    radius: float = Field(
        0.25, ge=0, le=1, description="mix fusion heads whose biases differ by up to this; 1: all"
    )


class Harmony(Staged):
    """Modality-wise learning, then federated fusion of devices with several modalities.

    The first stage is that of :class:`~.staged.Staged`, and in the second its devices with several
    modalities fuse them, the encoders at a tenth of the learning rate. Of that only the fusion head
    is mixed; the encoders are a device's own, and the uni-modal networks stay as they are. Devices
    with one modality rest.

    The paper's server divides the *modality bias* of device i, ::

        b_i[m] = 1 - cos(f'_m now, f_m)        (f_m: where the encoder f'_m began)

    by its largest value over all devices, finds clusters of devices by k-means, and averages heads
    within each. Here nobody sees all devices, so a pairwise rule takes the place of k-means (this
    project's): biases travel to the neighbours, and a link is kept where :func:`bias_distance` is
    at most ``radius``. Both ends see the same two biases and find the same. What a link that is cut
    weighed, each end gives to its own head: the weights stay symmetric and doubly stochastic, and
    the mean of the heads survives. Who may mix is thus not a partition of the devices: a chain of
    near ones may link two that are far apart.

    The paper's division of a device's time between its modalities is left to ``allocation.rule``.

    References
    ----------
    Ouyang et al., "Harmony: Heterogeneous Multi-Modal Federated Learning through Disentangled Model
    Training", MobiSys 2023; the bias as in its released code.
    """

    name: ClassVar[str] = "harmony"
    paper: ClassVar[str] = "Ouyang et al., MobiSys 2023"
    references: ClassVar[tuple[str, ...]] = ("ouyang2023harmony",)
    options_type: ClassVar[type[Options]] = HarmonyOptions
    unaccounted: ClassVar[str] = ""
    own_weights: ClassVar[bool] = True
    options: HarmonyOptions

    def blocks(self) -> dict[str, nn.Module]:
        """Return the uni-modal networks and the fusion head."""
        head = {HEAD: self.model.fusion_head} if self.model.fuses else {}
        return self.model.blocks() | head

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return the encoders that are fused."""
        encoders = self.model.fusion_encoders.items() if self.model.fuses else ()
        return {f"fusion.encoder.{m}": encoder for m, encoder in encoders}

    def in_stage(self, stage: str) -> Collection[str]:
        """Return the fusion head in the fusion stage, the uni-modal networks before."""
        return (HEAD,) if stage == FUSION else self.model.blocks()

    def learning_rates(self) -> dict[str, float]:
        """Return the rate of the encoders that are fused, over the run's."""
        return dict.fromkeys(self.private_blocks(), self.options.encoder_rate)

    def bias(self) -> Tensor:
        """Return the bias ``[modality]`` float32 in [0, 2], in the order of the data set.

        0 for a modality that this device does not have.
        """
        bias = torch.zeros(len(self.modalities))
        for m, encoder in self.model.fusion_encoders.items() if self.model.fuses else ():
            now, start = flatten(encoder).double(), flatten(self.model.encoders[m]).double()
            cosine = torch.cosine_similarity(now, start, dim=0)
            bias[self.modalities.index(m)] = (1 - cosine).clamp(0, 2)
        return bias

    def statistics(self) -> dict[str, Tensor]:
        """Return the bias of a device that fuses, in the fusion stage."""
        return {BIAS: self.bias()} if self.stage == FUSION and self.model.fuses else {}

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        """Mix the heads of near devices only, and everything else as it is."""
        if self.published != FUSION or HEAD not in plan.weights:
            return super().mix(plan, inbox)
        own, *others = plan.weights[HEAD]
        bias = self.bias()  # as it was published: only heads have been mixed since
        owners = [n for n, weight in zip(plan.neighbours, others, strict=True) if weight]
        theirs, rejected = received(
            inbox, STATISTICS + BIAS, len(bias), of=owners, called=BIAS, lowest=0, highest=2
        )
        near = {n for n, b in theirs.items() if bias_distance(bias, b) <= self.options.radius}
        pairs = list(zip(plan.neighbours, others, strict=True))
        kept = [weight if n in near else 0.0 for n, weight in pairs]
        own += sum(others) - sum(kept)
        weights = {**plan.weights, HEAD: (own, *kept)}
        apart, wrong = super().mix(replace(plan, weights=weights), inbox)
        return apart, rejected + wrong


def bias_distance(a: Tensor, b: Tensor) -> float:
    """Return how far apart two biases are, in [0, 1].

    ``sqrt(mean_m ((a[m] - b[m]) / max(a[m], b[m]))^2)``, the mean over modalities where either is
    not 0; 0 if there is none. The division by the larger of two is what is left of that by the
    largest of all. Symmetric, and the same for both in multiples of each other.

    Parameters
    ----------
    a, b : Tensor
        ``[modality]``, >= 0.
    """
    a, b = a.double(), b.double()
    larger = torch.maximum(a, b)
    apart = ((a - b) / larger)[larger > 0]
    return float(apart.square().mean().sqrt()) if len(apart) else 0.0
