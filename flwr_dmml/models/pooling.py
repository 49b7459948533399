"""Adaptive average pooling as one product with a constant matrix."""

from functools import cache

import torch
from torch import Tensor

from .stacked import Stackable

_constants: set[int] = set()
"""Where the matrices of this process lie; they are never freed."""


class AveragePool(Stackable):
    """Mean over ``size`` x ``size`` regions: ``[batch, channels, height, width]`` to a square.

    The regions are those of ``nn.AdaptiveAvgPool2d``, which takes a third of a small encoder's
    time on a CPU. Equal to it but for rounding; a map that has that size already is left alone.

    Parameters
    ----------
    size : int
        Height and width of the output, >= 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return the means ``[batch, channels, size, size]``."""
        height, width = x.shape[-2:]
        if (height, width) == (self.size, self.size):
            return x
        if self.size == 1:
            return x.mean(dim=(-2, -1), keepdim=True)
        means = x.flatten(-2) @ _matrix(height, width, self.size, x.device, x.dtype)
        return means.view(*x.shape[:-2], self.size, self.size)

    def extra_repr(self) -> str:
        """Return the size, for those who print the model."""
        return str(self.size)


def is_constant(tensor: Tensor) -> bool:
    """Return whether a tensor is a pool's matrix, or a view of one: pooling is no learned work."""
    return tensor.untyped_storage().data_ptr() in _constants


@cache
def _matrix(height: int, width: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix ``[height * width, size * size]``; a buffer would have to be mixed."""
    weights = torch.kron(regions(height, size), regions(width, size))
    matrix = weights.T.contiguous().to(device, dtype)
    _constants.add(matrix.untyped_storage().data_ptr())
    return matrix


def regions(length: int, parts: int) -> Tensor:
    """Return the weights ``[parts, length]`` of means over equal parts, which may overlap by one.

    Part i goes from ``floor(i length / parts)`` to ``ceil((i + 1) length / parts)``.
    """
    weights = torch.zeros(parts, length)
    for i in range(parts):
        begin, end = i * length // parts, -(-(i + 1) * length // parts)
        weights[i, begin:end] = 1 / (end - begin)
    return weights
