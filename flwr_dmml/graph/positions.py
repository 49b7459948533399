"""Positions of devices in the plane."""

from math import inf

import numpy as np
from numpy.typing import NDArray

from ..base.seeding import numpy_generator


def uniform_positions(num_nodes: int, side_m: float, seed: int) -> NDArray[np.float64]:
    """Return positions [n, 2] in metres, uniform in the square [0, side_m)^2.

    They depend on the run's ``seed`` only; with more nodes (>= 1) the first ones stay where they
    are. Raises ValueError unless side_m > 0.
    """
    if not 0 < side_m < inf:
        raise ValueError(f"side_m must be a number above 0, not {side_m}")
    return side_m * numpy_generator(seed, "positions").random((num_nodes, 2))
