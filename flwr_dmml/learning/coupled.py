"""A device's blocks that stay with it, coupled to its neighbours' by a gossip rule."""

from collections.abc import Iterable, MutableMapping, Sequence

import torch
from torch import Tensor

from ..base.errors import MethodError
from ..gossip.coupling import CouplingRule
from ..payload.blocks import STATISTICS
from ..payload.flat import Flat
from ..payload.plan import Inbox, Payload
from ..payload.received import received
from .flops import FlopCounter

COUPLING = "coupling."
"""Prefix of the maps in a device's ``memory``, of what is sent, and of the metrics; the first two
end with the neighbour's partition id."""
LINKS = 2
"""Neighbours that the work of a round is counted for."""


class Coupled:
    """The blocks of a device that a rule couples.

    Parameters
    ----------
    rule : CouplingRule
        The rule.
    flat : Flat
        Where the blocks lie.
    me : int
        The device's partition id.

    Raises
    ------
    MethodError
        The model has no such block.
    """

    def __init__(self, rule: CouplingRule, flat: Flat, me: int) -> None:
        self._rule, self._flat, self._me = rule, flat, me
        self.names = tuple(name for name in flat.slices if name.startswith(rule.coupled))
        if not self.names:
            raise MethodError(
                f"gossip = '{rule.name}': the method's model has no blocks '{rule.coupled}…' to "
                "couple; choose another rule"
            )

    @property
    def phi(self) -> Tensor:
        """A copy of them, one behind the other, ``[length]`` on the CPU."""
        return torch.cat([self._flat.vector[self._flat.slices[b]] for b in self.names]).cpu()

    @torch.no_grad()
    def couple(
        self, inbox: Inbox, neighbours: Iterable[int], memory: MutableMapping[str, Tensor]
    ) -> tuple[dict[str, float], list[str]]:
        """Couple with what neighbours have sent, in place; return metrics, and what was wrong."""
        name = f"{STATISTICS}{COUPLING}{self._me}"
        near, wrong = received(inbox, name, self._rule.dim, of=neighbours, called="coupling")
        if not near:
            return {}, wrong
        phi = self.phi
        maps = torch.stack([self._map(j, len(phi), memory) for j in near])
        told = torch.stack([near[j].cpu() for j in near])
        apart = (maps @ phi - told).square().sum(dim=1).mean()
        new, maps = self._rule.couple(phi, maps, told)
        memory.update({f"{COUPLING}{j}": own for j, own in zip(near, maps, strict=True)})
        at = 0
        for block in self.names:
            place = self._flat.slices[block]
            end = at + place.stop - place.start
            self._flat.load(block, new[at:end])
            at = end
        norm = torch.linalg.matrix_norm(maps).mean()
        return {f"{COUPLING}apart": float(apart), f"{COUPLING}norm": float(norm)}, wrong

    @torch.no_grad()
    def payload(self, recipients: Sequence[int], memory: MutableMapping[str, Tensor]) -> Payload:
        """Return what goes to the neighbours: ``stats.coupling.<id>``, ``[dim]`` each."""
        phi = self.phi
        maps = {j: self._map(j, len(phi), memory) for j in recipients}
        return {f"{STATISTICS}{COUPLING}{j}": own @ phi for j, own in maps.items()}

    def _map(self, neighbour: int, length: int, memory: MutableMapping[str, Tensor]) -> Tensor:
        kept = memory.get(f"{COUPLING}{neighbour}")
        return self._rule.first_map(length) if kept is None else kept

    def flops(self) -> float:
        """Return the operations of a round with :data:`LINKS` neighbours."""
        phi = self.phi
        maps = torch.stack([self._rule.first_map(len(phi))] * LINKS)
        with FlopCounter() as counter:
            self._rule.couple(phi, maps, maps @ phi)
        return float(counter.flops)
