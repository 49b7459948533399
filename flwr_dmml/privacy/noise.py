"""Random numbers that nobody can draw again: the operating system's, not the run's.

All other draws of a run follow from its seed, which every device knows: a neighbour could repeat
them and subtract the noise. These come from :func:`os.urandom`, are used once and are kept
nowhere, so no state, payload, log or checkpoint holds a secret. They are rounded to floating-point
numbers like any other: the attack of Mironov ("On significance of the least significant bits for
differential privacy", CCS 2012) is not defended against.
"""

import os

import numpy as np
import torch
from torch import Tensor

from ..energy.ledger import Floats


def uniform(count: int) -> Floats:
    """Return ``count`` numbers in (0, 1], ``[count]``, in steps of 2^-53."""
    drawn = np.frombuffer(os.urandom(8 * count), np.uint64)
    return ((drawn >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def gaussian(count: int) -> Tensor:
    """Return ``count`` standard normal numbers, ``[count]`` float32 (Box and Muller, 1958)."""
    half = (count + 1) // 2
    radius, angle = np.sqrt(-2 * np.log(uniform(half))), 2 * np.pi * uniform(half)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(both[:count]).float()


def poisson_rows(samples: int, rate: float) -> Tensor:
    """Return a mini-batch of so many samples: each is in it with probability ``rate``, by itself.

    Positions in ascending order, ``[batch]`` int64; there may be none.
    """
    return torch.from_numpy(np.flatnonzero(uniform(samples) <= rate))
