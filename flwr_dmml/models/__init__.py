"""Encoders, the decomposed classifier and the generator."""

from .architecture import Architecture, architecture_of
from .base import ModalityModel
from .decomposed import DecomposedClassifier, Features, Fusion
from .encoders import ENCODERS, IMAGE_ENCODERS, EncoderChoice, make_encoder
from .experts import ExpertsClassifier, weigh
from .generator import Generator, GeneratorTraining, draw_labels, train_generators
from .modality_networks import FusionHead, ModalityNetworks
from .sliced import SlicedClassifier
from .slots import SlotClassifier
from .two_projector import Projections, TwoProjectorClassifier

__all__ = [
    "ENCODERS",
    "IMAGE_ENCODERS",
    "Architecture",
    "DecomposedClassifier",
    "EncoderChoice",
    "ExpertsClassifier",
    "Features",
    "Fusion",
    "FusionHead",
    "Generator",
    "GeneratorTraining",
    "ModalityModel",
    "ModalityNetworks",
    "Projections",
    "SlicedClassifier",
    "SlotClassifier",
    "TwoProjectorClassifier",
    "architecture_of",
    "draw_labels",
    "make_encoder",
    "train_generators",
    "weigh",
]
