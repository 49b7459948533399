"""Devices that share one radio band: its shares and the iterations are decided together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx
import numpy as np

from ...energy.allocation import OBJECTIVES, FleetAllocator, Objective, SharedBand
from ...energy.costs import Work
from ...energy.equipment import Equipment
from ...energy.ledger import Floats
from .energy_constrained import Allocate, EnergyConstrained
from .round_budget import Decision, Sending, among


class SharedBandConstrained(EnergyConstrained):
    """A fleet with ``wireless.shared-band-hz``: a device buys iterations or bandwidth with joules.

    The links of a round are those that work with an equal share of the band. A device whose energy
    does not pay for the fewest iterations and for sending gets no share: it stays out of the round,
    and the others have its hertz.
    """

    def begin(
        self,
        work: Mapping[int, Work],
        num_nodes: int,
        num_rounds: int,
        graph: nx.Graph | None = None,
        phases: Sequence[str] = (),
        equipment: Mapping[int, Equipment] | None = None,
        allocate: Allocate | None = None,
        *,
        merging: int = 0,
        merge_bits: Floats | None = None,
        samples: Mapping[int, int] | None = None,
    ) -> None:
        """Take note of the devices' work.

        Raises
        ------
        ValueError
            ``allocate`` is given: here shares of the band and iterations are decided together.
        """
        given = work, num_nodes, num_rounds, graph, phases, equipment
        super().begin(*given, merging=merging, merge_bits=merge_bits, samples=samples)
        if allocate is not None:
            raise ValueError("a strategy with an allocation of its own cannot share a radio band")
        rule = self.settings.allocation.rule
        if rule == "sync-only":
            raise ValueError("allocation.rule = 'sync-only' cannot be used with a shared band")
        objective: Objective = next((o for o in OBJECTIVES if o == rule), "max-min")
        self._allocator = FleetAllocator(*self.costs.owned.shape, objective=objective)

    def too_poor(self, *given: object) -> dict[int, str]:
        """Return nobody: who stays out is known with the shares of the band, and these by links."""
        return {}

    def _decide(
        self,
        server_round: int,
        graph: nx.Graph,
        present: set[int],
        payload_bits: Floats,
        speeds: Mapping[int, Mapping[str, float]],
    ) -> Decision:
        assert self._wireless is not None
        radio = self._wireless.broadcast(
            among(graph, present),
            payload_bits,
            server_round=server_round,
            seed=self.settings.seed,
        )
        nodes = range(len(payload_bits))
        listens = nx.to_numpy_array(radio.graph, nodelist=nodes, weight=None) > 0  # [node, node]
        heard = listens.any(axis=1)
        band = SharedBand.of(
            self.settings.wireless.shared_band_hz,
            self._wireless.power_w,
            np.where(heard, np.where(listens, radio.gains, np.inf).min(axis=1), 1.0),
            np.where(heard, payload_bits, 0.0),
            noise_w_per_hz=self._wireless.noise_w_per_hz,
        )
        free = np.zeros(len(payload_bits))
        problem = self._problem(
            server_round, Sending(radio.graph, free, free), present, speeds, radio.energy_j
        )
        plan = self._allocator.shared_band(problem, band)
        assert plan.bandwidth_hz is not None
        flat = {
            k: f"its {problem.budget_j[k]:.3g} J do not pay for sending and the fewest iterations"
            for k in sorted(present)
            if plan.parked[k]
        }
        if flat:  # the others do not send to them, and share their part of the band
            rest = self._decide(server_round, graph, present - set(flat), payload_bits, speeds)
            return replace(rest, flat=flat | rest.flat)
        sends = np.isin(nodes, sorted(present))
        seconds = np.where(sends, band.seconds(plan.bandwidth_hz), 0.0)
        sending = Sending(radio.graph, band.power_w * seconds, seconds)
        return Decision(sending, flat, plan.tau, self._limit_j(problem, server_round), plan.notes)
