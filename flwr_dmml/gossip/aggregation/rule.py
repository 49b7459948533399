"""The base of aggregation rules (:class:`AggregationRule`)."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ...base.options import Group


class AggregationRule(ABC):
    """A pure function of what a device has and what its neighbours sent of the same vector.

    Parameters
    ----------
    options : Group
        An instance of ``options_type``.
    """

    name: ClassVar[str] = ""
    """Name of the rule in the run config."""
    paper: ClassVar[str] = "this project"
    """Source of the rule."""
    options_type: ClassVar[type[Group]] = Group
    linear: ClassVar[bool] = False
    """Whether it is the weighted mean, which keeps the mean over the devices."""

    def __init__(self, options: Group) -> None:
        self.options = options

    @abstractmethod
    def __call__(self, own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
        """Return the aggregate ``[rows, length]``.

        Parameters
        ----------
        own : Tensor
            ``[rows, length]``.
        near : Tensor
            ``[rows, neighbours, length]``, finite; 0 where nothing has arrived.
        weights : Tensor
            ``[rows, 1 + neighbours]``, the own first; rows sum to 1, 0 where nothing has arrived.
        """
