"""Encoders: one modality in, one feature vector out. No BatchNorm: everything here is mixed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import nn

from ..data import DataError, Modality
from .pooling import AveragePool
from .resnet import resnet20
from .resnet18 import load_weights, resnet18
from .series import Gru, MaskedConvolutions, conv1d_encoder
from .stacked import Conv2d, GroupNorm, LayerNorm, Linear
from .tiny import tiny_image, tiny_sequence, tiny_series


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
            Conv2d(channels, width, kernel_size=5, stride=stride, padding=2),
            GroupNorm(width // 4, width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(
        *layers,
        AveragePool(4),  # [..., 16, 4, 4]
        nn.Flatten(-3),
        Linear(channels * 16, 64),
        nn.ReLU(),
        Linear(64, features),
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
            Conv2d(channels, out, kernel_size=size, stride=2, padding=size // 2),
            GroupNorm(out // 4, out),
            nn.ReLU(),
        ]
        channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(-3), Linear(channels * height * width, features))


def vector_encoder(shape: tuple[int, ...], features: int, *, hidden: int = 64) -> nn.Module:
    """Return a two-layer perceptron for feature vectors of any shape (flattened).

    ``hidden * (values + 3) + (hidden + 1) * features`` parameters. With 16 hidden units, the
    encoder ``tiny``: 1,552 for 26 values and 64 features.
    """
    return nn.Sequential(
        nn.Flatten(-len(shape)),
        Linear(prod(shape), hidden),
        LayerNorm(hidden),
        nn.ReLU(),
        Linear(hidden, features),
    )


def hidden_layer(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return one hidden layer (linear, ReLU) on flattened inputs: with the head a small MLP."""
    return nn.Sequential(nn.Flatten(-len(shape)), Linear(prod(shape), features), nn.ReLU())


Factory = Callable[[tuple[int, ...], int], nn.Module]
"""Makes an encoder from the shape of one sample and the length of the output."""

IMAGE_ENCODERS: dict[str, Factory] = {
    "conv": conv_encoder,
    "conv3": small_conv_encoder,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mlp": hidden_layer,
    "tiny": tiny_image,
}
"""Encoder factories for images, by name."""

ENCODERS: dict[str, dict[str, Factory]] = {
    "image": IMAGE_ENCODERS,
    "audio": {"conv": conv_encoder, "resnet18": resnet18, "tiny": tiny_image},
    "series": {"conv1d": conv1d_encoder, "gru": Gru, "tiny": tiny_series},
    "sequence": {
        "conv1d": MaskedConvolutions,
        "gru": partial(Gru, masked=True),
        "tiny": tiny_sequence,
    },
    "vector": {"mlp": vector_encoder, "tiny": partial(vector_encoder, hidden=16)},
}
"""Encoder factories of each kind of modality, by name."""


@dataclass(frozen=True)
class EncoderChoice:
    """Choice of an encoder for each kind of modality.

    Parameters
    ----------
    image, audio, series, vector : str
        Names in :data:`ENCODERS`; ``series`` is also that of sequences.
    weights : str
        File that a ``resnet18`` starts from, see :func:`~.resnet18.load_weights`; empty: afresh.

    Raises
    ------
    DataError
        There is no encoder of that name.
    """

    image: str = "conv"
    audio: str = "conv"
    series: str = "conv1d"
    vector: str = "mlp"
    weights: str = ""

    def __post_init__(self) -> None:
        for kind, encoders in ENCODERS.items():
            if (name := self.of(kind)) not in encoders:
                raise DataError(
                    f"no encoder '{name}' of kind {kind}; allowed: {', '.join(encoders)}"
                )

    def of(self, kind: str) -> str:
        """Return the name of the encoder of a kind of modality."""
        name: str = getattr(self, "series" if kind == "sequence" else kind)
        return name


DEFAULT_CHOICE = EncoderChoice()


def make_encoder(
    modality: Modality, features: int, choice: EncoderChoice = DEFAULT_CHOICE
) -> nn.Module:
    """Return a fresh encoder for ``modality`` with ``features`` outputs.

    Maps ``[batch, *modality.shape]`` to ``[batch, features]``.

    Raises
    ------
    DataError
        The encoder cannot read samples of this shape, or start from the weights.
    """
    name = choice.of(modality.kind)
    encoder = ENCODERS[modality.kind][name](modality.shape, features)
    if name == "resnet18" and choice.weights:
        load_weights(encoder, choice.weights)
    return encoder
