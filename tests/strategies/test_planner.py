"""Plans of rounds without devices: links that have weights of their own, and flat batteries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.energy.costs import Work
from flwr_dmml.energy.options import WirelessOptions
from flwr_dmml.graph.topology import BaseGraph, Ring, Topology
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import OwnParts, Settings, find_parts, parse_settings
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.member import Member
from flwr_dmml.strategies.planner import RoundPlanner

C = "head.common"
SENT = 10_000
"""Bytes of a payload."""


def planner_of(
    topology: Topology, n: int, *, radio: bool = False, battery_j: Sequence[float] = ()
) -> RoundPlanner:
    wireless = WirelessOptions(enabled=radio, fading="none", shadowing_db=0.0)
    given = np.array(battery_j) if battery_j else None
    energy = EnergyConstrained(Settings(wireless=wireless), battery_j=given)
    planner = RoundPlanner(
        topology, n, energy, communicates=True, local_iterations=1, evaluate_every=1, seed=0
    )
    members = {
        p: Member(p, p, ("audio",), {C: 4}, SENT, {C: SENT}, {}, 8, Work(1.0, {"audio": 1.0}))
        for p in range(n)
    }
    planner.begin(members, [""] * 20, lambda phase, modalities: modalities)
    return planner


def plans(planner: RoundPlanner, server_round: int, before: Sequence[int]) -> dict[int, Plan]:
    """Return the plans of a round, for all, after one that these have published."""
    everybody = range(planner.num_nodes)
    return planner.plans(server_round, everybody, dict.fromkeys(before, SENT), {})[0]


def rows(found: dict[int, Plan]) -> dict[int, tuple[float, ...]]:
    return {p: plan.weights[C] for p, plan in found.items()}


# ---- weights of their own -----------------------------------------------------------------------


@dataclass(frozen=True)
class Light(Topology):
    """A ring whose links weigh 0.2."""

    name: ClassVar[str] = "light"

    def _edges(self, n: int, t: int, seed: int) -> Any:
        return [(i, (i + 1) % n, 0.2) for i in range(n)]


class Flickering(Light):
    """One whose links weigh 0.1 t."""

    time_varying: ClassVar[bool] = True

    def _edges(self, n: int, t: int, seed: int) -> Any:
        return [(i, (i + 1) % n, 0.1 * t) for i in range(n)]


LIGHT = pytest.approx((0.6, 0.2, 0.2))


@pytest.mark.parametrize("radio", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_links_keep_their_weights(radio: bool, resumed: bool) -> None:
    planner = planner_of(Light(), 5, radio=radio)
    plans(planner, 1, [])
    if resumed:
        state, planner = planner.state(), planner_of(Light(), 5, radio=radio)
        planner.load_state(json.loads(json.dumps(state)))
    assert rows(plans(planner, 2, range(5))) == dict.fromkeys(range(5), LIGHT)


def test_weights_change_on_links_that_stay() -> None:
    planner = planner_of(Flickering(), 5)
    for t in range(1, 4):
        found = plans(planner, t, range(5) if t > 1 else [])
    assert rows(found)[0] == pytest.approx((0.6, 0.2, 0.2)), "those of round 2"


def test_couriers_keep_away_from_links_with_weights() -> None:
    parts = find_parts(OwnParts(topologies=(Light,)))
    parsed = parse_settings({"method": "dmml-kd", "topology": "light"}, parts)
    assert parsed.couriers_of("dmml-kd") == "off"
    for how in ("forward", "average"):
        with pytest.raises(SettingsError) as error:
            parse_settings({"method": "dpsgd", "topology": "light", "couriers": how}, parts)
        assert (
            f"topology = 'light' with couriers = '{how}': its links have mixing weights of their "
            "own, and those of couriers have none; allowed: off"
        ) in str(error.value)


# ---- flat batteries -----------------------------------------------------------------------------


def test_a_ring_one_way_closes_over_a_device_whose_battery_is_flat() -> None:
    """0 sends to 2, and 2 to 0; the ring of all three would be a path, 2 to 0, without 1."""
    batteries = [1e3, 0.0, 1e3]
    planner = planner_of(Ring(directed=True), 3, radio=True, battery_j=batteries)
    for t in range(1, 5):
        found, budget = planner.plans(t, range(3), {0: SENT, 2: SENT} if t > 1 else {}, {})
        assert list(found) == [0, 2] and list(budget.flat) == [1]
        assert "its battery holds 0 J, sending takes" in budget.flat[1]
        assert found[0].recipients == (2,) and found[2].recipients == (0,)
        if t > 1:
            assert (found[0].neighbours, found[2].neighbours) == ((2,), (0,))
            assert rows(found) == {0: (0.5, 0.5), 2: (0.5, 0.5)}
        state = json.loads(json.dumps(planner.state()))
        planner = planner_of(Ring(directed=True), 3, radio=True, battery_j=batteries)
        planner.load_state(state)


def test_base_averages_exactly_over_those_whose_batteries_are_not_flat() -> None:
    topology, others = BaseGraph(1), [0, 2, 3, 4, 5]
    planner = planner_of(topology, 6, radio=True, battery_j=[1e3, 0.0, 1e3, 1e3, 1e3, 1e3])
    period = topology.period(5)
    for t in range(1, period + 2):
        plans(planner, t, others if t > 1 else [])
    mixed = np.eye(6)
    for t in range(period + 2, 2 * period + 2):
        found, matrix = plans(planner, t, others), np.eye(6)
        assert list(found) == others, "device 1, too, where a graph of six leaves it alone"
        for p, plan in found.items():
            matrix[p, [p, *plan.neighbours]] = plan.weights.get(C, (1.0,))
        mixed = matrix @ mixed
    assert mixed[np.ix_(others, others)] == pytest.approx(np.full((5, 5), 0.2))
