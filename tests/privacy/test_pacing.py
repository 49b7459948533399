"""A budget of epsilon that is spread over the rounds, as one more limit of the allocation."""

from typing import Any

import pytest
from helpers import FAST, run_peers

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.learning.spending import EPSILON, STEPS
from flwr_dmml.privacy.accountant import Ledger, epsilon_of, steps_within
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.energy.shared_band import SharedBandConstrained

SIX = Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360)
DP: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 3,
    "energy.battery-share": 0.0,
    "privacy.dp": "sample",
    "privacy.sigma": 1.0,
    "privacy.epsilon": SIX * 1.001,
}


def test_the_steps_within_a_budget():
    assert steps_within(SIX * 1.001, 1.0, 16 / 36, 1 / 360, 100) == 6
    assert steps_within(SIX * 0.999, 1.0, 16 / 36, 1 / 360, 100) == 5
    assert steps_within(SIX, 1.0, 16 / 36, 1 / 360, 3) == 3
    assert steps_within(1e-6, 1.0, 16 / 36, 1 / 360, 100) == 0
    assert epsilon_of([(1.0, 16 / 36, 6)], 1 / 360) == pytest.approx(SIX)


def updates(pacing: bool, rounds: int, **more: Any) -> tuple[list[list[int]], list[float]]:
    config = {**DP, "privacy.pacing": pacing, **more}
    settings = parse_settings(config, find_parts()).settings
    kind = SharedBandConstrained if settings.wireless.shared else EnergyConstrained
    energy = kind(settings)
    peers = run_peers(config, num_rounds=rounds, energy=energy)
    taken = [
        [max(node.updates.values(), default=0) for node in record.nodes] for record in peers.records
    ]
    last = peers.records[-1].nodes
    assert all(node.own[EPSILON] <= DP["privacy.epsilon"] for node in last)
    return taken, [node.own[STEPS] for node in last]


def test_six_steps_are_spread_over_the_rounds():
    """Without, two a round are taken in the first three; with it, one in each of six."""
    assert updates(False, 6) == ([[2] * 3] * 3 + [[0] * 3] * 3, [6.0] * 3)
    assert updates(True, 6) == ([[1] * 3] * 6, [6.0] * 3)


def test_what_an_even_share_leaves_is_taken_later():
    """Six steps in four rounds: 1, 1, 2 and 2."""
    taken, steps = updates(True, 4)
    assert taken == [[1] * 3, [1] * 3, [2] * 3, [2] * 3] and steps == [6.0] * 3


def test_a_shared_band_keeps_to_it_as_well():
    """There, the limit is one of the solver's program."""
    band = {"wireless.enabled": True, "wireless.shared-band-hz": 1e7, "energy.battery-j": 50.0}
    taken, steps = updates(True, 3, **band)
    assert max(map(max, taken)) == 2 and 0 < max(steps) <= 6


def test_iterations_of_single_modalities_count_as_well():
    """With all of them split, a device with both sensors has half as many of each."""
    taken, steps = updates(True, 3, stagger=1.0)
    assert max(map(max, taken)) == 2 and max(steps) <= 6


def test_without_a_budget_there_is_nothing_to_spread():
    with pytest.raises(SettingsError, match="pacing needs dp = 'sample', and both sigma"):
        parse_settings({**DP, "privacy.pacing": True, "privacy.sigma": 0.0}, find_parts())
