"""Encoders, the decomposed classifier and the generator."""

from .decomposed import DecomposedClassifier, Features
from .encoders import ENCODERS, make_encoder
from .generator import Generator

__all__ = ["ENCODERS", "DecomposedClassifier", "Features", "Generator", "make_encoder"]
