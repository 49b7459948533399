"""Encoders of a few thousand parameters, for devices of the size of a microcontroller."""

from torch import nn

from .pooling import AveragePool
from .series import MaskedConvolutions, conv1d_encoder
from .stacked import Conv2d, GroupNorm, Linear

WIDTHS = (8, 16)


def tiny_image(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return two strided 3x3 convolutions and a linear layer, for images and spectrograms.

    8 and 16 channels with a stride of 2 (GroupNorm of 4 channels a group, ReLU), a 2x2 average
    pool and the linear layer.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of one sample.
    features : int
        Length of the output.

    Notes
    -----
    ``72 * channels + 1,224 + 65 * features`` parameters: 5,456 for 28x28x1 and 64 features (21 KiB
    on the wire), 5,600 for three channels.
    """
    channels, layers = shape[0], list[nn.Module]()
    for width in WIDTHS:
        layers += [
            Conv2d(channels, width, kernel_size=3, stride=2, padding=1),
            GroupNorm(width // 4, width),
            nn.ReLU(),
        ]
        channels = width
    pool = AveragePool(2)  # [batch, 16, 2, 2]
    return nn.Sequential(*layers, pool, nn.Flatten(-3), Linear(4 * channels, features))


def tiny_series(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return two 1-d convolutions over 3 steps, a mean and a linear layer, for time series.

    As :func:`~flwr_dmml.models.series.conv1d_encoder`, with 8 and 16 channels.

    Notes
    -----
    ``24 * channels + 456 + 17 * features`` parameters: 1,760 for ``[9, 128]`` and 64 features.
    """
    return conv1d_encoder(shape, features, widths=WIDTHS, size=3)


def tiny_sequence(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return the network of :func:`tiny_series` for sequences.

    Notes
    -----
    ``24 * channels + 456 + 17 * features`` parameters (channels without the mask): 1,760 for
    ``[10, 128]`` and 64 features.
    """
    return MaskedConvolutions(shape, features, widths=WIDTHS, size=3)
