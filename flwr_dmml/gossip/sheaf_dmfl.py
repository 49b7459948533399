"""Sheaf-DMFL: encoders are mixed, heads of unequal shapes are coupled by a learned map per link."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..base.options import Group
from .coupling import CouplingRule


class SheafDmflOptions(Group):
    """Options of the coupling."""

    dim: int = Field(64, ge=1, description="numbers sent to a neighbour, of all heads together")
    step: float = Field(0.5, ge=0, le=1, description="step of the heads towards the neighbours'")
    map_step: float = Field(0.001, ge=0, description="step of the maps; 0 keeps the first ones")


class SheafDmflRule(CouplingRule):
    """Plain gossip of encoders; heads stay with their devices, coupled over every link.

    The heads of device k, all its blocks ``head.…`` together, are a vector phi_k, the longer the
    more modalities it owns. Each end of a link has a map P_kj, and sends P_kj phi_k. The devices
    minimise the sum of their losses and, over the links,
    ``||P_kj phi_k - P_jk phi_j||^2 / 2``, by a step a round from what was sent::

        e_j   = P_kj phi_k - P_jk phi_j                  over the neighbours j that have sent
        phi_k <- phi_k - step mean_j P_kj^T e_j
        P_kj  <- P_kj - map_step e_j phi_k^T

    P_kj never leaves its device, and begins as the first ``dim`` rows of the identity, so at first
    the first ``dim`` numbers of phi_k are pulled towards the neighbours': those of the common head.

    This project's reading: ``dim`` is the same on all links (the released code takes a share of
    the mean length of both ends), the sum over neighbours is a mean, so that a step of at most 1 is
    stable on any graph as long as the maps' norms are at most 1, weights of the coupling are part
    of the steps, all devices step at once, and local iterations train heads and encoders together
    (the code has an epoch of the heads alone before). P = 0 would minimise the coupling, too: the
    metric ``coupling.norm`` tells how large the maps are, ``coupling.apart`` the mean over the
    neighbours of ``||e_j||^2``.

    References
    ----------
    Ghalkha, Tian, Ben Issaid and Bennis, "Sheaf-Based Decentralized Multimodal Learning for
    Next-Generation Wireless Communication Systems", arXiv 2506.22374, 2025; formulas as in its
    first author's code. Its variant with attention before the heads (Sheaf-DMFL-Att) is not here.
    """

    name: ClassVar[str] = "sheaf-dmfl"
    paper: ClassVar[str] = "Ghalkha et al., arXiv 2506.22374, 2025"
    references: ClassVar[tuple[str, ...]] = ("ghalkha2025sheaf",)
    options_type: ClassVar[type[Group]] = SheafDmflOptions
    coupled: ClassVar[str] = "head."
    options: SheafDmflOptions

    @property
    def dim(self) -> int:
        """The option."""
        return self.options.dim

    def first_map(self, length: int) -> Tensor:
        """Return the first rows of the identity; below it, zeros."""
        return torch.eye(self.dim, length)

    def couple(self, phi: Tensor, maps: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Step phi and the maps at once, see the class docstring."""
        apart = maps @ phi - near  # [neighbours, dim]
        pull = (maps.mT @ apart[:, :, None])[:, :, 0].mean(dim=0)
        turn = apart[:, :, None] @ phi[None, None, :]  # [neighbours, dim, length]
        return phi - self.options.step * pull, maps - self.options.map_step * turn
