"""IDKD: distil on those public samples only that look like a device's own data."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..learning.options import Options
from ..learning.settings import DeviceSettings
from .detector import SCORES, calibrate
from .kd import Kd, KdOptions
from .teaching import logits_of


class IdkdOptions(KdOptions):
    """Schedule of the exchanges of soft labels, and the detector of in-distribution samples."""

    score: Literal["msp", "energy"] = Field(
        "msp", description="detector: maximum softmax probability, or energy"
    )

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse a run whose devices hold no samples back to calibrate the detector on."""
        problems = super().problems(settings)
        if settings.validation_fraction == 0:
            problems.append(
                "validation-fraction = 0: a device calibrates its detector on samples that it "
                "holds out; set it above 0 (0.1 of 500 works, fewer than 50 samples are noisy)"
            )
        return problems


class Idkd(Kd):
    """In-distribution knowledge distillation, on quasi-global Nesterov momentum.

    As :class:`~.kd.Kd`, but a device labels the in-distribution part of the public set only::

        D_ID = {u : s(u) >= t}        s = max_c softmax(f(u))_c (MSP), or the energy score

    with t of the largest Youden's J on the ROC of its own held-out samples (positive) against as
    many random public ones (negative), calibrated anew in every labelling round. A sample's label
    is the mean over those who sent one; one that nobody sent is not trained on.

    The paper's text is followed where its released code departs from it: calibrated thresholds
    instead of a fixed one, the mean of the labels instead of one sender's, and never an all-zero
    label. The temperature is 1 throughout. A device labels with the model that it has just mixed,
    and the labels arrive a round later (this project's choice).

    References
    ----------
    Ravikumar et al., "Homogenizing Non-IID Datasets via In-Distribution Knowledge Distillation for
    Decentralized Learning", TMLR 2024, algorithm 1.
    """

    name: ClassVar[str] = "idkd"
    paper: ClassVar[str] = "Ravikumar et al., TMLR 2024"
    references: ClassVar[tuple[str, ...]] = ("ravikumar2024homogenizing",)
    options_type: ClassVar[type[Options]] = IdkdOptions
    unaccounted: ClassVar[str] = (
        "a threshold found on own samples, and mini-batches with public ones"
    )
    options: IdkdOptions

    def choose(self, logits: Tensor) -> Tensor:
        """Return the positions of the public samples that look like this device's own.

        There are none if no sample that it holds out has a modality of the public set.
        """
        score = SCORES[self.options.score]
        held_out = self.validation_data.restrict(self.public.inputs).with_any()
        if not len(held_out):
            return torch.arange(0)
        own = logits_of(self.model, held_out)
        positive, public = score(own, 1.0).cpu(), score(logits, 1.0).cpu()
        drawn = torch.randperm(len(public), generator=self.rng("calibration"))[: len(positive)]
        threshold = calibrate(positive, public[drawn]).threshold
        inside = self.public_set.inside
        if not bool(inside.all()):
            self.measured["labels.auroc"] = calibrate(public[inside], public[~inside]).auroc
        return torch.nonzero(public.double() >= threshold).squeeze(1)
