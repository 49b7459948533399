"""A conditional generator of common features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import diversity_loss, ensemble_loss
from .adam import adam_step
from .base import seeded_blocks
from .stacked import LayerNorm, Linear, StandIns, linear


class Generator(nn.Module):
    """``G(y, eps)``: a label and noise in, a common feature out.

    One hidden layer. FedGen has BatchNorm there; LayerNorm takes its place, because running
    statistics cannot be gossiped.

    Parameters
    ----------
    num_classes : int
        Number of labels.
    common_dim : int
        Length of the generated feature.
    noise_dim, hidden_dim : int
        Length of the noise and width of the hidden layer.
    seed : int
        Seed of the initial parameters.

    References
    ----------
    Zhu, Hong and Zhou (FedGen), ICML 2021; DMML-KD (Yin et al., IEEE TMC 2024) names a generator of
    the "global conditional distribution of the modality-common features".
    """

    def __init__(
        self,
        num_classes: int,
        common_dim: int,
        *,
        noise_dim: int = 32,
        hidden_dim: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise_dim = noise_dim
        with seeded_blocks(seed) as fresh:
            fresh("generator")
            self.layers = nn.Sequential(
                Linear(noise_dim + num_classes, hidden_dim),
                LayerNorm(hidden_dim),
                nn.ReLU(),
                Linear(hidden_dim, common_dim),
            )

    def noise(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw ``eps ~ U(0, 1)``: ``[size, noise_dim]`` (FedGen's code draws uniform noise)."""
        return torch.rand(size, self.noise_dim, generator=generator)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Generate features for ``labels`` ``[..., batch]``: ``[..., batch, common_dim]``."""
        condition = F.one_hot(labels, self.num_classes).to(noise.dtype)
        features: Tensor = self.layers(torch.cat([noise, condition], dim=-1))
        return features


@dataclass(frozen=True)
class GeneratorTraining:
    """Training of a generator: steps, batch size, Adam's settings, weight of the diversity loss."""

    steps: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    diversity_weight: float = 1.0


def train_generators(
    generators: Sequence[Generator],
    heads: tuple[Tensor, Tensor],
    label_weights: Tensor,
    label_distributions: Sequence[Tensor],
    how: GeneratorTraining,
    rngs: Sequence[torch.Generator],
) -> None:
    """Train devices' generators so that ensembles of heads recognise what they make.

    ``L_G = E_{y, eps} sum_j omega_j(y) CE(head_j(G(y, eps)), y) + eta L_div(eps, G)``

    Parameters
    ----------
    generators : sequence of Generator
        Alike; trained in place.
    heads : tuple of Tensor
        Weights ``[device, heads, classes, common_dim]`` and biases ``[device, heads, classes]``.
    label_weights : Tensor
        ``omega`` ``[device, heads, classes]``, see :func:`~flwr_dmml.losses.label_weights`.
    label_distributions : sequence of Tensor
        Which labels a device draws ``[classes]``, on the CPU.
    how : GeneratorTraining
        Steps and weights.
    rngs : sequence of torch.Generator
        Draw labels and noise, a device's each.

    References
    ----------
    FedGen (Zhu et al., ICML 2021), whose server does this; here every node does, with its
    neighbours' heads (this project).
    """
    if not how.steps:
        return
    first, size = generators[0], how.steps * how.batch_size
    device, (devices, count, classes) = label_weights.device, heads[1].shape
    pairs = zip(label_distributions, rngs, strict=True)
    drawn = [(draw_labels(near, size, rng), first.noise(size, rng)) for near, rng in pairs]
    every_label = torch.stack([labels for labels, _ in drawn]).to(device)
    every_noise = torch.stack([noise for _, noise in drawn]).to(device)
    weight, bias = heads[0].flatten(1, 2), heads[1].flatten(1)
    own = [list(g.parameters()) for g in generators]
    stacks = [
        torch.stack([p.detach() for p in ps]).requires_grad_() for ps in zip(*own, strict=True)
    ]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in stacks]
    with StandIns([first]) as stand_ins:
        stand_ins.put(dict(zip(map(id, own[0]), stacks, strict=True)))
        for step in range(how.steps):
            now = slice(step * how.batch_size, (step + 1) * how.batch_size)
            labels, noise = every_label[:, now], every_noise[:, now]
            generated = first(labels, noise)  # [device, batch, common_dim]
            logits = linear(generated, weight, bias).view(devices, -1, count, classes)
            loss = ensemble_loss(logits, labels, label_weights)
            loss = loss + how.diversity_weight * diversity_loss(noise, generated)
            gradients = torch.autograd.grad(loss.sum(), stacks)
            for p, g, (m, v) in zip(stacks, gradients, moments, strict=True):
                decay = how.weight_decay
                adam_step(p, g, m, v, step + 1, lr=how.learning_rate, weight_decay=decay)
    with torch.no_grad():
        for k, parameters in enumerate(own):
            for p, trained in zip(parameters, stacks, strict=True):
                p.copy_(trained[k])


def draw_labels(distribution: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Draw labels ``[size]`` from a distribution over classes ``[classes]``."""
    return torch.multinomial(distribution, size, replacement=True, generator=rng)
