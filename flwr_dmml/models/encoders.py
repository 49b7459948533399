"""Encoders: one modality in, one feature vector out. No BatchNorm: everything here is mixed."""

from collections.abc import Callable
from math import prod

from torch import nn

from ..data import Modality
from .resnet import resnet20


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


def small_conv_encoder(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return three convolutions and one linear layer, for images and log-mel spectrograms.

    A 5x5 and two 3x3 convolutions, each with a stride of 2 (8, 16 and 32 channels, GroupNorm of 4
    channels a group, ReLU), flattened into the linear layer: unlike :func:`conv_encoder` it keeps
    where in the image something is, at an eighth of the resolution.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of one sample.
    features : int
        Length of the output.

    Notes
    -----
    ``6,128 + 513 * features`` parameters for 28x28x1: 38,960 with 64 features, and 11,258 with 10,
    the whole classifier in which this project first tried out IDKD. For 32x32x3
    ``6,528 + 513 * features``.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for size, out in ((5, 8), (3, 16), (3, 32)):
        layers += [
            nn.Conv2d(channels, out, kernel_size=size, stride=2, padding=size // 2),
            nn.GroupNorm(out // 4, out),
            nn.ReLU(),
        ]
        channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, features))


def vector_encoder(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return a two-layer perceptron for feature vectors of any shape (flattened)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, features),
    )


def hidden_layer(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return one hidden layer (linear, ReLU) on flattened inputs: with the head a small MLP."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), features), nn.ReLU())


ENCODERS = {"image": conv_encoder, "audio": conv_encoder, "vector": vector_encoder}
"""Encoder factory of each kind of modality."""

IMAGE_ENCODERS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "conv": conv_encoder,
    "conv3": small_conv_encoder,
    "resnet20": resnet20,
    "mlp": hidden_layer,
}
"""Encoder factories for images, by name."""


def make_encoder(modality: Modality, features: int, *, image: str = "conv") -> nn.Module:
    """Return a fresh encoder for ``modality`` with ``features`` outputs.

    Maps ``[batch, *modality.shape]`` to ``[batch, features]``. ``image`` names the one for images,
    of :data:`IMAGE_ENCODERS`.
    """
    factory = IMAGE_ENCODERS[image] if modality.kind == "image" else ENCODERS[modality.kind]
    return factory(modality.shape, features)
