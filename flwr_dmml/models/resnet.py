"""ResNet-20 for small images, with norms that look at one sample only: EvoNorm-S0 or GroupNorm."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..data import DataError

SMALLEST_SIDE = 8  # two halvings leave 2x2 pixels to normalise over

Norm = Literal["evonorm", "groupnorm"]

_GROUP = 4  # channels that are normalised together


class EvoNormS0(nn.Module):
    """A norm and an activation in one: ``x * sigmoid(v x) / std_group(x) * weight + bias``.

    The standard deviation is that of a group of channels over all pixels of one sample: nothing
    depends on the batch, and there are no running statistics. Unlike GroupNorm it subtracts no
    mean.

    Parameters
    ----------
    channels : int
        Channels of the input ``[batch, channels, height, width]`` and of the output.
    groups : int
        Number of groups, a divisor of ``channels``.
    eps : float
        Added to the variance.

    Raises
    ------
    ValueError
        If the channels cannot be divided into so many groups.

    References
    ----------
    H. Liu, A. Brock, K. Simonyan and Q. V. Le, "Evolving Normalization-Activation Layers", NeurIPS
    2020; ``v`` and ``weight`` start at 1, ``bias`` at 0. Four channels a group, as everywhere in
    this package, is this project's choice: the paper has 32 groups, more than ResNet-20 has
    channels in its first stage.
    """

    def __init__(self, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups = {groups}: it must divide the {channels} channels")
        self.groups, self.eps = groups, eps
        self.v = nn.Parameter(torch.ones(channels, 1, 1))
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, channels, height, width]``, normalised and activated."""
        grouped = x.reshape(len(x), self.groups, -1)  # all that is divided by the same number
        variance = grouped.var(dim=2, correction=0)  # [batch, groups]
        scale = torch.rsqrt(variance + self.eps).repeat_interleave(x.shape[1] // self.groups, dim=1)
        activated = x * torch.sigmoid(self.v * x)
        return activated * scale[:, :, None, None] * self.weight + self.bias


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ``[batch, channels, h, w]`` to ``[., width, .]``."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(channels, width, 3, stride),
            _ACTIVATIONS[norm](width),
            _conv(width, width, 3),
            _group_norm(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(_conv(channels, width, 1, stride), _group_norm(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def resnet20(shape: tuple[int, ...], features: int, *, norm: Norm = "evonorm") -> nn.Module:
    """Return a ResNet-20 encoder for images and log-mel spectrograms.

    A 3x3 convolution to 16 channels; three stages of three basic blocks with 16, 32 and 64
    channels, of which the second and third stage start with a stride of 2 and a 1x1 convolution in
    the shortcut; the mean over all pixels; a linear layer. The norm after the first convolution,
    and the first one in each block, is ``norm``; those without an activation, before each sum, are
    always GroupNorm. Groups are of 4 channels.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of one sample, height and width of at least 8.
    features : int
        Length of the output.
    norm : {"evonorm", "groupnorm"}
        EvoNorm-S0, or GroupNorm followed by ReLU.

    Raises
    ------
    DataError
        If the samples are smaller or no images, or the norm is unknown.

    Notes
    -----
    With EvoNorm: ``272,176 + 65 * features`` parameters for 32x32x3 (276,336 with 64 features,
    272,826 with 10), whatever the size of the image; 144 of them for each input channel. With
    GroupNorm there are 352 fewer. A forward pass of one 32x32x3 image takes 40.8 million
    multiply-adds.

    References
    ----------
    Network: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    Start: K. He et al., "Delving Deep into Rectifiers", ICCV 2015.
    EvoNorm-S0 as first norm of a block: code of QG-DSGDm (Lin et al., ICML 2021) and IDKD, which
    have BatchNorm with the statistics of the batch where this project has GroupNorm, so that no
    sample depends on the others.
    """
    if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
        raise DataError(
            f"resnet20: cannot read samples of shape {shape}; allowed: (channels, height, width) "
            f"with height and width of at least {SMALLEST_SIDE}"
        )
    if norm not in _ACTIVATIONS:
        raise DataError(f"resnet20: norm = '{norm}'; allowed: {', '.join(_ACTIVATIONS)}")
    channels = 16
    layers = [_conv(shape[0], channels, 3), _ACTIVATIONS[norm](channels)]
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and width != 16 else 1
            layers.append(_BasicBlock(channels, width, stride, norm))
            channels = width
    pool = nn.AdaptiveAvgPool2d(1)  # [batch, 64, 1, 1]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, features))


def _conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Module:
    """Return a convolution with He's start, and without a bias: the norm after it has one.

    A norm hides the scale of the weights before it, but the smaller they are, the larger is a step
    of SGD beside them. Torch's own start has weights 2.4 times smaller and learned CIFAR-10 more
    slowly in trials.
    """
    conv = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // _GROUP, channels)


_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "evonorm": lambda channels: EvoNormS0(channels, channels // _GROUP),
    "groupnorm": lambda channels: nn.Sequential(_group_norm(channels), nn.ReLU()),
}
