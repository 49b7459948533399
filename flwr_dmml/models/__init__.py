"""Encoders, the decomposed classifier and the generator."""

from .architecture import Architecture, architecture_of
from .base import ModalityModel
from .decomposed import DecomposedClassifier, Features, Fusion
from .encoders import ENCODERS, IMAGE_ENCODERS, EncoderChoice, make_encoder
from .generator import Generator, GeneratorTraining, draw_labels, train_generators
from .modality_networks import FusionHead, ModalityNetworks
from .two_projector import Projections, TwoProjectorClassifier

__all__ = [
    "ENCODERS",
    "IMAGE_ENCODERS",
    "Architecture",
    "DecomposedClassifier",
    "EncoderChoice",
    "Features",
    "Fusion",
    "FusionHead",
    "Generator",
    "GeneratorTraining",
    "ModalityModel",
    "ModalityNetworks",
    "Projections",
    "TwoProjectorClassifier",
    "architecture_of",
    "draw_labels",
    "make_encoder",
    "train_generators",
]
