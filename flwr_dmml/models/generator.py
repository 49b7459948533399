"""A conditional generator of common features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..seeding import derive_seed


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
            torch.manual_seed(derive_seed(seed, "init", "generator"))
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
