"""Encoders of time series and of sequences of features: 1-d convolutions, and a GRU.

A sequence carries its own mask, as its last channel: 1 where there is a step, 0 behind the end.
Nothing behind the end has an influence on the features; of a sequence without any step they are
what the last linear layer makes of zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import DataError
from .stacked import Conv1d, GroupNorm, LayerNorm, Linear, Sigmoid, Stackable

SHORTEST = 8
"""A convolution halves the number of steps only where there are this many."""


def conv1d_encoder(
    shape: tuple[int, ...],
    features: int,
    *,
    widths: Sequence[int] = (16, 32, 64),
    size: int = 5,
) -> nn.Module:
    """Return 1-d convolutions, a mean over the steps and a linear layer, for time series.

    Three convolutions over 5 steps (16, 32 and 64 channels, GroupNorm of 4 channels a group, ReLU),
    each with a stride of 2 while there are 8 steps or more.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, steps)`` of one sample.
    features : int
        Length of the output.
    widths : sequence of int (default: 16, 32, 64)
        Channels of each convolution, multiples of 4.
    size : int (default: 5)
        Steps that a convolution sees, odd.

    Raises
    ------
    DataError
        The samples have another number of dimensions.

    Notes
    -----
    ``80 * channels + 13,136 + 65 * features`` parameters, whatever the number of steps: 18,016 for
    9 channels and 64 features.
    """
    channels, steps = _channels_and_steps(shape)
    layers: list[nn.Module] = []
    for width, stride in zip(widths, _strides(steps, len(widths)), strict=True):
        layers += [
            Conv1d(channels, width, size, stride=stride, padding=size // 2),
            GroupNorm(width // 4, width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, MeanOverSteps(), Linear(channels, features))


class MeanOverSteps(Stackable):
    """Mean over the steps of a series."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., channels, steps]`` to ``[..., channels]``."""
        return x.mean(dim=-1)


class MaskedConvolutions(Stackable):
    """The network of :func:`conv1d_encoder` for sequences, blind to what is behind their end.

    What is behind the end is set to zero before every convolution, as if it were the zeros with
    which a convolution continues its input; the mask is thinned out with the stride. LayerNorm over
    the channels of each step takes the place of GroupNorm, whose statistics go over all steps. The
    mean is over the steps that are there.

    Parameters
    ----------
    shape : tuple of int
        ``(features + 1, steps)`` of one sample; the last channel is the mask.
    features : int
        Length of the output.
    widths : sequence of int (default: 16, 32, 64)
        Channels of each convolution.
    size : int (default: 5)
        Steps that a convolution sees, odd.

    Raises
    ------
    DataError
        The samples have another number of dimensions, or no channel besides the mask.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        features: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        size: int = 5,
    ) -> None:
        super().__init__()
        channels, steps = _channels_and_steps(shape, masked=True)
        self.strides = _strides(steps, len(widths))
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for width, stride in zip(widths, self.strides, strict=True):
            self.convolutions.append(
                Conv1d(channels, width, size, stride=stride, padding=size // 2)
            )
            self.norms.append(LayerNorm(width))
            channels = width
        self.linear = Linear(channels, features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode sequences ``[..., batch, features + 1, steps]``: ``[..., batch, features]``."""
        x, mask = x[..., :-1, :], x[..., -1:, :]
        x = x * mask
        for stride, conv, norm in zip(self.strides, self.convolutions, self.norms, strict=True):
            mask = mask[..., ::stride]  # a step is there if the one it is centred on is
            x = torch.relu(norm(conv(x).mT)).mT * mask
        pooled = x.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)
        encoded: Tensor = self.linear(pooled)
        return encoded


class Gru(Stackable):
    """A gated recurrent unit of one layer; its last state goes through a linear layer.

    Made of linear layers, so that its operations can be counted and its parameters stacked, on a
    CPU and on a GPU. Of a sequence the last state is that after the last step that is there: steps
    that are not leave the state as it is.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, steps)`` of one sample; of a sequence the last channel is the mask.
    features : int
        Length of the output.
    masked : bool (default: False)
        Whether samples are sequences.
    width : int (default: 64)
        Length of the state.

    Raises
    ------
    DataError
        The samples have another number of dimensions, or no channel besides the mask.

    Notes
    -----
    ``192 * channels + 12,672 + 65 * features`` parameters (channels without the mask): 18,560 for 9
    channels and 64 features. As many as :class:`torch.nn.GRU` has, in its order: reset gate, update
    gate, new state.

    References
    ----------
    K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", EMNLP 2014, in the form of torch.
    """

    def __init__(
        self, shape: tuple[int, ...], features: int, *, masked: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        channels, _ = _channels_and_steps(shape, masked)
        self.masked, self.width = masked, width
        self.of_input = Linear(channels, 3 * width)
        self.of_state = Linear(width, 3 * width)
        self.gate, self.activation = Sigmoid(), nn.Tanh()
        self.linear = Linear(width, features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``[..., batch, channels, steps]``: ``[..., batch, features]``."""
        steps = x.mT  # [..., batch, steps, channels]
        there = torch.ones_like(steps[..., :1])
        if self.masked:
            steps, there = steps[..., :-1], steps[..., -1:]
        state = x.new_zeros(*x.shape[:-2], self.width)
        for step, is_there in zip(self.of_input(steps).unbind(-2), there.unbind(-2), strict=True):
            reset, update, new = step.chunk(3, dim=-1)
            own_reset, own_update, own_new = self.of_state(state).chunk(3, dim=-1)
            keep = self.gate(update + own_update)
            new = self.activation(new + self.gate(reset + own_reset) * own_new)
            state = state + (new - state) * (1 - keep) * is_there
        encoded: Tensor = self.linear(state)
        return encoded


def _channels_and_steps(shape: tuple[int, ...], masked: bool = False) -> tuple[int, int]:
    """Return the channels besides the mask, and the steps."""
    if len(shape) != 2 or shape[0] <= masked:
        wanted = "(features + 1, steps), of a sequence" if masked else "(channels, steps)"
        raise DataError(f"samples of shape {shape} are no time series; allowed: {wanted}")
    return shape[0] - masked, shape[1]


def _strides(steps: int, count: int) -> list[int]:
    """Return the stride of each convolution."""
    strides: list[int] = []
    for _ in range(count):
        strides.append(2 if steps >= SHORTEST else 1)
        steps = -(-steps // strides[-1])
    return strides
