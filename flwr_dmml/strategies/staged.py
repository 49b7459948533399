"""The round plan of methods in stages: who trains what changes from stage to stage."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..allocation import Allocation, RoundProblem
from ..clients.stages import StagedOptions
from ..topology import Topology
from .peer import PeerStrategy


class StagedStrategy(PeerStrategy):
    """Plain gossip in stages; what a stage does not train gets no iterations, and costs nothing.

    Of the iterations that ``allocation.rule`` gives, those remain that the stage trains. A device
    without any rests: it mixes, sends, and is billed for that alone; its battery keeps the rest for
    the rounds to come.

    Parameters
    ----------
    topology : Topology
        Who is whose neighbour.
    options : StagedOptions
        The stages, and who trains in each.
    **common
        As :class:`PeerStrategy`; not with a shared band, in which nobody can rest.
    """

    options: StagedOptions

    def __init__(self, topology: Topology, *, options: StagedOptions, **common: Any) -> None:
        super().__init__(topology, options=options, **common)
        energy = self.planner.energy
        self._allocate_all = energy.allocate
        energy.allocate = self.allocate  # type: ignore[method-assign]

    def phase(self, server_round: int, num_rounds: int) -> str:
        """Return ``uni-modal``, ``fusion`` or ``distil``."""
        return self.options.stage(server_round, num_rounds)

    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        """Return the iterations of a round, of what its stage trains."""
        plan, stage = (
            self._allocate_all(problem, server_round),
            self.phase(server_round, self._num_rounds),
        )
        trains = np.zeros(plan.tau.shape, np.bool_)  # [node, modality]
        for k, member in self.roster.members.items():
            wanted = self.options.trained(stage, member.modalities)
            trains[k] = [m in wanted for m in self.planner.energy.costs.modalities]
        return replace(plan, tau=np.where(trains, plan.tau, 0))
