"""Late fusion: one prediction from what each modality predicts alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

LateRule = Literal["uniform", "entropy", "certainty", "energy", "static"]
LOWEST, HIGHEST = 0.1, 10.0
"""Range of temperatures."""
Temperature = Annotated[float, Field(ge=LOWEST, le=HIGHEST)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Scores = Callable[[Mapping[str, Tensor], Sequence[tuple[str, ...]]], list[Tensor]]
"""(inputs by modality, subsets of these) -> logits ``[batch, classes]`` from each subset."""


@dataclass(frozen=True)
class LateFusion:
    """A rule by which the logits of single modalities make one prediction.

    ``log p = sum_m w_m log softmax(o_m / T_m)`` up to a constant, with weights that sum to 1 over
    the modalities m that a sample has. They are in proportion to

    * uniform: 1;
    * entropy: ``exp(-H(p_m))``, with ``p_m = softmax(o_m / T_m)``;
    * certainty: ``exp(max_c p_m(c))``;
    * energy: ``max(0, logsumexp(o_m / T_m))``; where all are 0, or logits are logarithms of
      probabilities, modalities count alike;
    * static: the modality's :func:`static_weight`, the same for all samples.

    Parameters
    ----------
    rule : {"uniform", "entropy", "certainty", "energy", "static"}
        What weighs a modality.
    temperatures : dict of str to float
        T by modality, 0.1 to 10.
    weights : dict of str to float
        Of "static", by modality, at least 0.

    References
    ----------
    Temperatures: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Entropy as in
    MLA (Zhang et al., CVPR 2024), certainty as in DI-MML (Fan et al., ACM MM 2024), energy as in
    QMF (Zhang et al., ICML 2023). The clamp at 0, and which of them are calibrated, are this
    project's.
    """

    rule: LateRule
    temperatures: dict[str, Temperature]
    weights: dict[str, Weight] = field(default_factory=dict)

    @property
    def uncalibrated(self) -> "LateFusion":
        """The same rule with all temperatures 1."""
        return replace(self, temperatures=dict.fromkeys(self.temperatures, 1.0))

    def __call__(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return ``log p`` up to a constant of each sample, ``[batch, classes]``.

        Parameters
        ----------
        logits : mapping of str to Tensor
            Of each modality that the samples have, ``[batch, classes]``.
        """
        scaled = torch.stack([x / self.temperatures[m] for m, x in logits.items()])
        logs = scaled.log_softmax(dim=-1)  # [modality, batch, classes]
        weights = self._weights(scaled, logs, [*logits])
        whole = weights.sum(dim=0)
        shares = torch.where(whole > 0, weights / whole, 1 / len(logits))
        return (shares[..., None] * logs).sum(dim=0)

    def _weights(self, scaled: Tensor, logs: Tensor, modalities: Sequence[str]) -> Tensor:
        """Return weights ``[modality, batch]``, at least 0."""
        if self.rule in ("entropy", "certainty"):
            return sureness(logs, self.rule).exp()
        if self.rule == "energy":
            return energy(scaled)
        every = torch.ones_like(logs[..., 0])
        if self.rule == "static":
            own = [self.weights.get(m, 0.0) for m in modalities]
            return every * torch.tensor(own, dtype=logs.dtype, device=logs.device)[:, None]
        return every

    def scores(self, scores: Scores) -> Scores:
        """Return what predicts by this rule from what gives logits of single modalities."""

        def fused(inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]) -> list[Tensor]:
            single = alone(scores, inputs, dict.fromkeys(m for own in subsets for m in own))
            return [self({m: single[m] for m in own}) for own in subsets]

        return fused


def alone(
    scores: Scores, inputs: Mapping[str, Tensor], modalities: Iterable[str]
) -> dict[str, Tensor]:
    """Return the logits ``[batch, classes]`` of each of the modalities alone."""
    names = [*modalities]
    return dict(zip(names, scores(inputs, [(m,) for m in names]), strict=True))


def sureness(logs: Tensor, how: LateRule) -> Tensor:
    """Return how sure predictions with ``log p`` ``[..., classes]`` are, ``[...]``.

    "entropy": ``-H(p)``; "certainty": ``max_c p(c)``.
    """
    if how == "entropy":
        return (logs.exp() * logs).sum(dim=-1)
    return logs.amax(dim=-1).exp()


def energy(logits: Tensor) -> Tensor:
    """Return ``max(0, log sum_c exp(o_c))`` ``[...]`` of logits ``[..., classes]``."""
    return logits.logsumexp(dim=-1).clamp_min(0.0)


def static_weight(accuracy: float, classes: int) -> float:
    """Return the weight of a modality that finds a share of the samples.

    ``log(a / (1 - a)) + log(classes - 1)``, at least 0: that of a member of a vote (Zhu et al.,
    "Multi-class AdaBoost", 2009). No better than chance counts nothing.

    Parameters
    ----------
    accuracy : float
        In (0, 1).
    classes : int
        At least 2; with one there is nothing to weigh.
    """
    if classes < 2:
        return 0.0
    return max(0.0, log(accuracy / (1 - accuracy)) + log(classes - 1))
