"""The base of rules that couple blocks of unequal shapes (:class:`CouplingRule`)."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from .rule import GossipRule


class CouplingRule(GossipRule, ABC):
    """Plain gossip of some blocks; others stay with their devices and are coupled to one another.

    The blocks that stay are one vector phi of a device, whose length may differ from device to
    device. For each neighbour it keeps a map to ``dim`` numbers, and sends it what the map makes of
    phi. What is coupled is neither mixed nor compressed, and an aggregation rule does not see it.
    """

    coupled: ClassVar[str]
    """What the names of the blocks that stay begin with."""

    @classmethod
    def sends_models(cls) -> bool:
        """Return False: what the maps make of the blocks that stay is sent, too."""
        return False

    def beat_problem(self) -> str:
        """Return why it needs rounds in which all wait for all."""
        return "its maps belong to messages of one round"

    @property
    @abstractmethod
    def dim(self) -> int:
        """How many numbers are sent to a neighbour, >= 1: equal on all devices."""

    @abstractmethod
    def first_map(self, length: int) -> Tensor:
        """Return a neighbour's map to begin with, ``[dim, length]``."""

    @abstractmethod
    def couple(self, phi: Tensor, maps: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi and the maps after a round's coupling.

        Parameters
        ----------
        phi : Tensor
            The own blocks, as what was sent was made of them, ``[length]``.
        maps : Tensor
            Of the neighbours that have sent something, ``[neighbours, dim, length]``; at least one.
        near : Tensor
            What they have sent, ``[neighbours, dim]``.
        """
