"""OGM-GE: the encoder that is ahead gets smaller gradients, and noise to generalise."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..learning.batch import Batch
from ..learning.options import Options
from ..payload.plan import Inbox, Plan
from .alone import Against, Watched, leads


class OgmGeOptions(Options):
    """Options of the gradient modulation."""

    alpha: float = Field(0.1, ge=0, description="how hard the modality that is ahead is held back")
    noise: bool = Field(True, description="noise on its convolutions' gradients (GE)")
    until: float = Field(0.5, ge=0, le=1, description="share of the rounds with modulation")
    against: Literal["mean", "weakest"] = Field(
        "mean", description="with more than two modalities: ahead of the others' mean or minimum"
    )


class OgmGe(Watched):
    """Plain gossip with on-the-fly gradient modulation and generalisation enhancement.

    In a joint iteration of the first ``until`` of the rounds, with logits_m of modality m alone::

        s_m   = sum_i softmax(logits_m(x_i))[y_i]          rho_m = s_m / s_other
        k_m   = 1 - tanh(alpha rho_m)  where rho_m > 1,  else 1
        g_m  <- k_m g_m + N(0, std(g_m)^2)  where k_m < 1

    for the gradients g_m of encoder m; the noise is added to the weights of convolutions only, each
    with the standard deviation that its own gradient has before it is scaled. Later rounds are
    those of ``dpsgd``, and are billed as the first ones.

    This project's reading: ``logits_m`` is the model's prediction from m alone, with the whole bias
    (the paper halves it); all of an encoder is scaled, as in the paper's text, where its code
    scales convolutions only; an encoder with k_m = 1 gets no noise, in the code it does. With more
    than two modalities, or rows that lack some, s_m is the mean over the rows of two or more
    modalities that have m, and s_other the mean of the others' s; the method's later form (Wei et
    al., IEEE TPAMI 2024) has the least of them, ``against = "weakest"``. The default alpha is this
    project's: that form's code has 0.8, BalanceBenchmark 0.3. A device with one sensor is one of
    ``dpsgd``; with alpha = 0 all are.

    References
    ----------
    Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
    """

    name: ClassVar[str] = "ogm-ge"
    paper: ClassVar[str] = "Peng et al., CVPR 2022"
    references: ClassVar[tuple[str, ...]] = ("peng2022balanced",)
    options_type: ClassVar[type[Options]] = OgmGeOptions
    unaccounted: ClassVar[str] = "ratios of scores on own samples, which scale gradients"
    stacks: ClassVar[bool] = True
    options: OgmGeOptions

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Start the noise of this round."""
        super().before_training(plan, inbox)
        self._rng = self.rng("noise")
        self._modulates = self.progress(plan) < self.options.until
        encoders = self.encoders().items()
        self._lengths = {m: [w.numel() for w in convolutions(x)] for m, x in encoders}

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw the noise of a joint iteration, ``noise.<m>`` for all convolutions of an encoder."""
        if not (self._modulates and self.options.noise) or len(batch.inputs) < 2:
            return {}
        lengths = {m: sum(self._lengths[m]) for m in batch.inputs}
        noise = torch.randn(sum(lengths.values()), generator=self._rng).to(self.device)
        parts = torch.split(noise, list(lengths.values()))
        return {f"noise.{m}": own for m, own in zip(lengths, parts, strict=True)}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the task's loss, and note the scores in rounds with modulation."""
        if self._modulates:
            return super().local_loss(batch)
        return self.task_loss(self.model.encode(batch.inputs), batch.labels)

    @torch.no_grad()
    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Scale the gradients of the encoders that are ahead."""
        scores = {m: true.mean(dim=-1) for m, true in self.watched().items()}
        for m, k in coefficients(scores, self.options.alpha, self.options.against).items():
            if bool((k < 1).any()):
                self._hold_back(m, k, batch)

    def _hold_back(self, m: str, k: Tensor, batch: Batch) -> None:
        """Scale the gradients of an encoder by ``k`` ``[...]``; add noise where that is below 1."""
        encoder, noise = self.encoders()[m], dict[int, Tensor]()
        if self.options.noise:
            parts = torch.split(batch.given[f"noise.{m}"], self._lengths[m], dim=-1)
            noise = {id(w): x for w, x in zip(convolutions(encoder), parts, strict=True)}
        for w in encoder.parameters():
            if w.grad is None:
                continue
            of_all = [*k.shape, *[1] * (w.dim() - k.dim())]
            scaled = w.grad * k.view(of_all)
            if (drawn := noise.get(id(w))) is not None:
                deviation = w.grad.flatten(k.dim()).std(dim=-1, correction=0) * (k < 1)
                scaled += deviation.view(of_all) * drawn.reshape(w.shape)
            w.grad = scaled


def convolutions(encoder: nn.Module) -> list[Tensor]:
    """Return the weights of an encoder's convolutions; in a stack the devices are first."""
    return [layer.weight for layer in encoder.modules() if isinstance(layer, _ConvNd)]


def coefficients(
    scores: Mapping[str, Tensor], alpha: float, against: Against = "mean"
) -> dict[str, Tensor]:
    """Return ``k_m`` ``[...]`` of each modality from its score in (0, 1]; of one alone, nothing."""
    return {
        m: torch.where(rho > 1, 1 - torch.tanh(alpha * rho), 1.0).float()
        for m, rho in leads(scores, against).items()
    }
