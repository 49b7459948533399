"""Self-centred clipping: pull in what is far from the own copy."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...base.options import Group
from .weighing import Around, Weighing


class ScclipOptions(Group):
    """The option of self-centred clipping."""

    radius: float = Field(
        0.0, ge=0, description="distance that a copy is clipped to; 0: by theory, see the docs"
    )


class Scclip(Weighing):
    """Self-centred clipping: what is far from the own copy counts as if it were nearer.

    ``own + sum_j w_j min(1, T / |x_j - own|) (x_j - own)``. T is ``radius``, or ``T^2 = sum_honest
    w_j |x_j - own|^2 / sum_liars w_j`` with the farthest copies for liars, as many as are assumed.
    Unless something is clipped, the mean over the devices is kept.

    References
    ----------
    He, Karimireddy and Jaggi, "Byzantine-Robust Decentralized Learning via ClippedGossip",
    arXiv 2202.01545.
    """

    name: ClassVar[str] = "scclip"
    paper: ClassVar[str] = "He, Karimireddy and Jaggi, 2022"
    references: ClassVar[tuple[str, ...]] = ("he2022byzantine",)
    options_type: ClassVar[type[Group]] = ScclipOptions
    options: ScclipOptions

    def most(self, neighbours: int) -> int:
        """Return how many may lie: a fixed radius bounds any number of them."""
        return neighbours if self.options.radius else super().most(neighbours)

    def shares(self, around: Around) -> Tensor:
        """Return the weights, what is clipped away given to the own copy."""
        if self.options.radius:
            return clipped(around.weights, around, torch.tensor([[self.options.radius]]).double())
        far = farthest(around)
        spread = (around.weights * ~far * around.away.square()).sum(dim=1, keepdim=True)
        return clipped(
            around.weights, around, (spread / (around.weights * far).sum(1, True)).sqrt()
        )


def clipped(weights: Tensor, around: Around, radius: Tensor) -> Tensor:
    """Return weights ``[rows, m]`` that pull copies in to a radius ``[rows, 1]`` of the own one.

    ``w_j min(1, T / |x_j - own|)``, and what is left over for the own copy.
    """
    shares = weights * (radius / around.away.clamp(min=1e-300)).clamp(max=1.0)
    shares[:, 0] = 0.0
    shares[:, 0] = 1 - shares.sum(dim=1)
    return shares


def farthest(around: Around) -> Tensor:
    """Return which neighbours are farthest from the own copy, ``[rows, m]`` bool: as many as liars.

    At least one.
    """
    away = around.away.masked_fill(~around.there, -1.0)
    away[:, 0] = -2.0
    ranks = away.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < around.liars[:, None].clamp(min=1)
