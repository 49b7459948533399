"""The base of aggregation rules (:class:`AggregationRule`)."""

from abc import ABC, abstractmethod
from math import ceil
from typing import ClassVar, Self

from torch import Tensor

from ...base.options import Group

ASSUMED = 0.2
"""Share of a device's neighbours that it takes for liars, unless the run config says otherwise."""


class AggregationRule(ABC):
    """A pure function of what a device has and what its neighbours sent of the same vector.

    Parameters
    ----------
    options : Group
        An instance of ``options_type``.
    assume_liars : float (default: 0.2)
        Bound on the liars among a device's neighbours: a share of them below 1, rounded up, or a
        number of them from 1 on; 0 trusts everybody.
    """

    name: ClassVar[str] = ""
    """Name of the rule in the run config."""
    paper: ClassVar[str] = "this project"
    """Source of the rule."""
    references: ClassVar[tuple[str, ...]] = ()
    """Keys of its papers in ``flwr_dmml/references.bib``."""
    options_type: ClassVar[type[Group]] = Group
    linear: ClassVar[bool] = False
    """Whether it is the weighted mean, which keeps the mean over the devices."""
    robust: ClassVar[bool] = False
    """Whether it is meant for neighbours that lie. What a method makes of neighbours' statistics is
    then robust, too."""

    def __init__(self, options: Group, assume_liars: float = ASSUMED) -> None:
        self.options, self.assume_liars = options, assume_liars

    def __str__(self) -> str:
        """Return the name in a run config."""
        return self.name

    @property
    def remembers(self) -> int:
        """How much of a device's past it looks at: see :meth:`.Mixer.note_mixed`."""
        return 0

    @property
    def alone(self) -> bool:
        """Whether it also finds liars where too few neighbours are honest to outvote them."""
        return False

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

    def at(self, progress: float) -> Self:
        """Return the rule for a time of the run, from 0 at its begin to 1 at its end."""
        return self

    def most(self, neighbours: int) -> int:
        """Return how many of so many neighbours may lie at most, whatever is assumed."""
        return max(0, (neighbours - 1) // 2)

    def liars(self, neighbours: int) -> int:
        """Return how many of so many neighbours the rule takes for liars.

        That is how many it can bear: 0 of a rule that is not :attr:`robust`, and where there are
        too few neighbours.
        """
        bound = self.assume_liars
        assumed = ceil(bound * neighbours - 1e-9) if bound < 1 else int(bound)
        return min(assumed, self.most(neighbours)) if self.robust else 0
