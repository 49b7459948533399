"""ModDrop: joint iterations do without a modality now and then."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from ..learning.learner import Learner
from ..learning.options import Options


class ModalityDropoutOptions(Options):
    """The option of modality dropout."""

    p: float = Field(0.3, ge=0, le=1, description="chance that a joint iteration drops a modality")


class ModalityDropout(Learner):
    """Plain gossip that drops modalities from joint iterations.

    In every joint iteration each modality is dropped with probability p, on its own. One that is
    picked at random stays where all would go.

    This project's reading: the draw is for a whole mini-batch, in the paper for each sample, and
    what is dropped is left out of the mean and the sum in the model's prediction, where the paper
    feeds zeros. Such an iteration is paid for as a joint one. With p = 0 this is ``dpsgd``.

    References
    ----------
    Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition", IEEE TPAMI 2016.
    """

    name: ClassVar[str] = "modality-dropout"
    paper: ClassVar[str] = "Neverova et al., IEEE TPAMI 2016"
    references: ClassVar[tuple[str, ...]] = ("neverova2016moddrop",)
    options_type: ClassVar[type[Options]] = ModalityDropoutOptions
    options: ModalityDropoutOptions

    def steps(self, updates: Mapping[str, int]) -> list[tuple[str, ...]]:
        """Return which modalities each iteration trains, with those dropped left out."""
        rng = self.rng("dropout")
        return [self._kept(step, rng) for step in super().steps(updates)]

    def _kept(self, step: tuple[str, ...], rng: torch.Generator) -> tuple[str, ...]:
        if len(step) < 2:
            return step
        drawn = torch.rand(len(step), generator=rng).tolist()
        kept = tuple(m for m, u in zip(step, drawn, strict=True) if u >= self.options.p)
        return kept or (step[int(torch.randint(len(step), (), generator=rng))],)
