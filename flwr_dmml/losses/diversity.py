"""Keep a generator from giving the same feature for every noise vector (FedGen)."""

import torch
from torch import Tensor


def diversity_loss(noise: Tensor, generated: Tensor) -> Tensor:
    """Return ``exp(-mean_ij ||eps_i - eps_j||^2 / dim * mean|z_i - z_j|)``.

    Far-apart noise must give far-apart features: the loss falls from 1 towards 0 as they do.

    Parameters
    ----------
    noise : Tensor
        Noise fed to the generator ``[..., batch, noise_dim]``.
    generated : Tensor
        What it made of it ``[..., batch, common_dim]``.

    Returns
    -------
    Tensor
        ``[...]`` in (0, 1]; 1 when all generated features are equal.

    References
    ----------
    Zhu, Hong and Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning"
    (FedGen), ICML 2021; the form of the authors' code.
    """
    noise_apart = (noise.unsqueeze(-2) - noise.unsqueeze(-3)).square().mean(dim=-1)
    features_apart = (generated.unsqueeze(-2) - generated.unsqueeze(-3)).abs().mean(dim=-1)
    return torch.exp(-(noise_apart * features_apart).flatten(-2).mean(dim=-1))
