"""Losses of the methods, one a file, each a pure function on tensors."""

from .diversity import diversity_loss
from .ensemble import ensemble_loss, label_weights, sampling_distribution
from .latent_distillation import latent_distillation_loss
from .orthogonality import orthogonality_loss
from .similarity import similarity_loss

__all__ = [
    "diversity_loss",
    "ensemble_loss",
    "label_weights",
    "latent_distillation_loss",
    "orthogonality_loss",
    "sampling_distribution",
    "similarity_loss",
]
