"""Detection of diverged training: NaN or infinity in a device's state."""

from collections.abc import Mapping
from math import isfinite

from torch import Tensor


class NonFiniteModelError(RuntimeError):
    """Training left NaN or infinity in a block: the device publishes nothing this round."""


def check_finite(server_round: int, state: Mapping[str, Tensor]) -> None:
    """Refuse a state with NaN or infinity in it.

    Raises
    ------
    NonFiniteModelError
        Names the round and what holds it.
    """
    for name, vector in state.items():
        if not vector.is_floating_point() or not vector.numel():
            continue
        if not all(map(isfinite, vector.aminmax())):  # NaN is the largest and the smallest
            raise NonFiniteModelError(
                f"round {server_round}: training left NaN or infinity in '{name}'; "
                "a lower learning-rate or clip-norm may help"
            )
