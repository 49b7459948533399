"""Encoders: one modality in, one feature vector out. No BatchNorm: everything here is mixed."""

from math import prod

from torch import nn

from ..data import Modality


def conv_encoder(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return a small convolutional encoder for images and log-mel spectrograms.

    Two 5x5 convolutions (8 and 16 channels, GroupNorm of 4 channels a group), a 4x4 average pool
    and two linear layers. A stride of 2 is taken only while the shorter side stays at 4 or more, so
    that 8x8 digits and 28x28 images both fit.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of one sample.
    features : int
        Length of the output.
    """
    channels, side = shape[0], min(shape[1:])
    layers: list[nn.Module] = []
    for width in (8, 16):
        stride = 2 if side >= 8 else 1
        side = (side + 1) // 2 if stride == 2 else side
        layers += [
            nn.Conv2d(channels, width, kernel_size=5, stride=stride, padding=2),
            nn.GroupNorm(width // 4, width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(4),  # [batch, 16, 4, 4]
        nn.Flatten(),
        nn.Linear(channels * 16, 64),
        nn.ReLU(),
        nn.Linear(64, features),
    )


def vector_encoder(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return a two-layer perceptron for feature vectors of any shape (flattened)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, features),
    )


ENCODERS = {"image": conv_encoder, "audio": conv_encoder, "vector": vector_encoder}
"""Encoder factory of each kind of modality."""


def make_encoder(modality: Modality, features: int) -> nn.Module:
    """Return a fresh encoder for ``modality`` with ``features`` outputs.

    Maps ``[batch, *modality.shape]`` to ``[batch, features]``.
    """
    return ENCODERS[modality.kind](modality.shape, features)
