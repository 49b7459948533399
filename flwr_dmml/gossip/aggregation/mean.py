"""The weighted mean: plain aggregation, for neighbours that are all honest."""

from typing import ClassVar

from torch import Tensor

from .rule import AggregationRule


class Mean(AggregationRule):
    """The weighted mean of the own copy and the neighbours'.

    ``x_k <- w_kk x_k + sum_j w_kj x_j``, in float32, in the order of the neighbours. With doubly
    stochastic weights it keeps the mean over the devices.

    References
    ----------
    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017:
    the gossip step of D-PSGD.
    """

    name: ClassVar[str] = "mean"
    paper: ClassVar[str] = "Lian et al., NeurIPS 2017"
    references: ClassVar[tuple[str, ...]] = ("lian2017can",)
    linear: ClassVar[bool] = True

    def __call__(self, own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean ``[rows, length]``."""
        return weighted_mean(own, near, weights)


def weighted_mean(own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
    """Return ``w_0 own + sum_j w_j near_j``, see :class:`AggregationRule` for the shapes."""
    total = weights[:, :1] * own
    for j in range(near.shape[1]):
        total.addcmul_(weights[:, j + 1 : j + 2], near[:, j])
    return total
