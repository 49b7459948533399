"""Quantisation to float16 or int8, top-k selection, and encoding of the selected places."""

from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024
"""So many int8 numbers have a scale in common."""
Precision = Literal["float32", "float16", "int8"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
}
"""Types in which numbers are sent, by the setting ``exchange.precision``."""


class CompressionError(ValueError):
    """A block that somebody else has compressed cannot be read; the message says why."""


def quantise(x: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """Return numbers in another type, and the scales of int8.

    float16 is the nearest; what is beyond its range becomes its largest. int8 is symmetric: with
    ``s = max |x| / 127`` of each :data:`CHUNK`, x becomes ``round(x / s)``, at most s / 2 away.

    Parameters
    ----------
    x : Tensor
        ``[length]`` float32, finite.
    precision : {"float32", "float16", "int8"}
        What to make of them.

    Returns
    -------
    tuple of Tensor and (Tensor or None)
        ``[length]``, and ``[ceil(length / CHUNK)]`` float32 for int8.
    """
    if precision == "float32":
        return x, None
    if precision == "float16":
        most = torch.finfo(torch.float16).max
        return x.clamp(-most, most).to(torch.float16), None
    scale = F.pad(x.abs(), (0, -len(x) % CHUNK)).view(-1, CHUNK).amax(dim=1) / 127
    spread = _spread(scale, len(x))
    units = torch.where(spread > 0, x / spread, 0.0)
    return units.round().clamp(-127, 127).to(torch.int8), scale


def dequantise(values: Tensor, scale: Tensor | None) -> Tensor:
    """Return numbers that :func:`quantise` gave as float32."""
    x = values.float()
    return x if scale is None else x * _spread(scale, len(x))


def _spread(scale: Tensor, length: int) -> Tensor:
    """Return the scale of every number ``[length]``."""
    return scale.repeat_interleave(CHUNK)[:length]


def largest(x: Tensor, count: int) -> Tensor:
    """Return the places of the ``count`` largest of ``x`` ``[length]``; of equals the first."""
    threshold = torch.topk(x, count).values[-1]
    above = x > threshold
    equal = (x == threshold).nonzero().flatten()
    above[equal[: count - int(above.sum())]] = True
    return above.nonzero().flatten()


def write_places(places: Tensor, length: int) -> Tensor:
    """Return places in a block ``[length]``, sorted: a mask uint8, or indices int32 if shorter."""
    if 4 * len(places) < ceil(length / 8):
        return places.to(torch.int32)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[places] = True
    return torch.from_numpy(np.packbits(mask.numpy()))


def read_places(written: Tensor, length: int) -> Tensor:
    """Return places ``[k]`` int64 that somebody else wrote.

    Raises
    ------
    CompressionError
        They are no places in a block of this length, each once, in order.
    """
    if written.ndim != 1 or written.dtype not in (torch.uint8, torch.int32):
        raise CompressionError(
            f"has places of type {written.dtype} and shape {tuple(written.shape)}; allowed: uint8 "
            "or int32, of one dimension"
        )
    if written.dtype == torch.uint8:
        if len(written) != ceil(length / 8):
            raise CompressionError(f"has a mask of {len(written)} bytes for {length} numbers")
        bits = np.unpackbits(written.numpy())
        if bits[length:].any():
            raise CompressionError(f"has a place beyond its {length} numbers")
        return torch.from_numpy(bits.nonzero()[0])
    places = written.long()
    if not bool((places[1:] > places[:-1]).all()):
        raise CompressionError("has places that are not in order, each once")
    if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < length):
        raise CompressionError(f"has a place outside of its {length} numbers")
    return places
