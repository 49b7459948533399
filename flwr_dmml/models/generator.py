"""A conditional generator of common features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.seeding import derive_seed
from ..losses import diversity_loss, ensemble_loss
from .adam import adam_step


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
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "init", "generator"))
            self.layers = nn.Sequential(
                nn.Linear(noise_dim + num_classes, hidden_dim),
                nn.LayerNorm(hidden_dim),
                nn.ReLU(),
                nn.Linear(hidden_dim, common_dim),
            )

    def noise(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw ``eps ~ U(0, 1)``: ``[size, noise_dim]`` (FedGen's code draws uniform noise)."""
        return torch.rand(size, self.noise_dim, generator=generator)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Generate features for ``labels`` ``[batch]``: ``[batch, common_dim]``."""
        condition = F.one_hot(labels, self.num_classes).to(noise.dtype)
        features: Tensor = self.layers(torch.cat([noise, condition], dim=1))
        return features


@dataclass(frozen=True)
class GeneratorTraining:
    """Training of a generator: steps, batch size, Adam's settings, weight of the diversity loss."""

    steps: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    diversity_weight: float = 1.0


def train_generator(
    generator: Generator,
    heads: Callable[[Tensor], Tensor],
    label_weights: Tensor,
    label_distribution: Tensor,
    how: GeneratorTraining,
    rng: torch.Generator,
) -> None:
    """Train a generator so that an ensemble of heads recognises what it makes.

    ``L_G = E_{y, eps} sum_j omega_j(y) CE(head_j(G(y, eps)), y) + eta L_div(eps, G)``

    Parameters
    ----------
    generator : Generator
        Trained in place.
    heads : callable
        Features ``[batch, common_dim]`` -> every head's logits ``[heads, batch, classes]``.
    label_weights : Tensor
        ``omega`` ``[heads, classes]``, see :func:`~flwr_dmml.losses.label_weights`.
    label_distribution : Tensor
        Which labels to draw ``[classes]``, on the CPU.
    how : GeneratorTraining
        Steps and weights.
    rng : torch.Generator
        Draws labels and noise.

    References
    ----------
    FedGen (Zhu et al., ICML 2021), whose server does this; here every node does, with its
    neighbours' heads (this project).
    """
    device, parameters = label_weights.device, list(generator.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(1, how.steps + 1):
        labels = draw_labels(label_distribution, how.batch_size, rng).to(device)
        noise = generator.noise(how.batch_size, rng).to(device)
        generated = generator(labels, noise)
        loss = ensemble_loss(heads(generated), labels, label_weights)
        loss = loss + how.diversity_weight * diversity_loss(noise, generated)
        gradients = torch.autograd.grad(loss, parameters)
        for p, g, (first, second) in zip(parameters, gradients, moments, strict=True):
            decay = how.weight_decay
            adam_step(p, g, first, second, step, lr=how.learning_rate, weight_decay=decay)


def draw_labels(distribution: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Draw labels ``[size]`` from a distribution over classes ``[classes]``."""
    return torch.multinomial(distribution, size, replacement=True, generator=rng)
