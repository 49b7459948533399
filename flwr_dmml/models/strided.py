"""Input gradients of strided convolutions, as convolutions without a stride.

Positions of the input with the same remainders, modulo the stride, are reached by the same taps of
the kernel: the gradients of each kind are a convolution of the output's gradients with these taps,
and all kinds are channels of one. With 5x5 kernels and a stride of 2 that takes a third less time
than torch's own on a CPU; with 3x3 ones it takes as much.
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F


def pays(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Return whether a convolution's input gradient is computed faster so."""
    square = len(kernel) == 2 and all(len({*each}) == 1 for each in (kernel, stride, padding))
    return square and stride[0] > 1 and kernel[0] > 2 * stride[0]


def input_gradient(
    g: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    stride: int,
    padding: int,
    rows: Callable[[Tensor], list[Tensor]],
) -> Tensor:
    """Return the gradients of a stack of convolutions by their inputs.

    Parameters
    ----------
    g : Tensor
        Those by the outputs, ``[device, batch, out, *positions]``.
    weight : Tensor
        Square kernels ``[device, out, channels, k, k]``.
    size : tuple of int
        Height and width of the input.
    stride, padding : int
        Of both dimensions.
    rows : callable
        Cuts a stack into devices.

    Returns
    -------
    Tensor
        ``[device, batch, channels, *size]``.
    """
    devices, out, channels, k, _ = weight.shape
    taps, width, begins = _taps(k, stride, padding, weight.device)
    kinds = F.pad(weight.flatten(-2), (0, 1)).index_select(-1, taps)
    kinds = kinds.view(devices, out, channels, stride**2, width, width).permute(0, 2, 3, 1, 4, 5)
    kernels = kinds.reshape(devices, channels * stride**2, out, width, width)
    # a position begins at the tap that is `begins` outputs before it, and there may be none there
    ends = [
        -(-n // stride) + width - 1 - begins - have
        for n, have in zip(size, g.shape[-2:], strict=True)
    ]
    if begins < 0 or ends != [begins, begins]:
        g, begins = F.pad(g, (begins, ends[1], begins, ends[0])), 0
    pairs = zip(rows(g), rows(kernels), strict=True)
    found = torch.stack([F.conv2d(own, kernel, padding=begins) for own, kernel in pairs])
    return F.pixel_shuffle(found, stride)[..., : size[0], : size[1]]


@cache
def _taps(k: int, stride: int, padding: int, device: torch.device) -> tuple[Tensor, int, int]:
    """Return which weights make up the kernels of all kinds of positions.

    Position ``s t + r`` is reached from output i by tap ``s (t - i) + r + padding``.

    Returns
    -------
    taps : Tensor
        Positions in a flat kernel, ``[stride^2 * width^2]``; ``k^2`` where there is none.
    width : int
        Outputs that a position is reached from, at most, in each dimension.
    begins : int
        The first of them, before ``t``.
    """
    reach = [
        {(r + padding - a) // stride: a for a in range(k) if (r + padding - a) % stride == 0}
        for r in range(stride)
    ]
    first = min(min(each) for each in reach)
    width = max(max(each) for each in reach) - first + 1
    kinds, places = range(stride), range(first, first + width)
    taps = [
        reach[r][i] * k + reach[c][j] if i in reach[r] and j in reach[c] else k * k
        for r, c, i, j in product(kinds, kinds, places, places)
    ]
    return torch.tensor(taps, device=device), width, -first
