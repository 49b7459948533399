"""Losses of the methods, one a file, each a pure function on tensors."""

from .alignment import alignment_loss, unit
from .cross_entropy import cross_entropies, cross_entropy
from .distillation import distillation_loss
from .diversity import diversity_loss
from .ensemble import ensemble_loss, label_weights, sampling_distribution
from .infiltration import class_temperatures, infiltration_loss
from .latent_distillation import latent_distillation_loss
from .orthogonality import orthogonality_loss
from .ranking import rank_loss
from .similarity import similarity_loss

__all__ = [
    "alignment_loss",
    "class_temperatures",
    "cross_entropies",
    "cross_entropy",
    "distillation_loss",
    "diversity_loss",
    "ensemble_loss",
    "infiltration_loss",
    "label_weights",
    "latent_distillation_loss",
    "orthogonality_loss",
    "rank_loss",
    "sampling_distribution",
    "similarity_loss",
    "unit",
]
