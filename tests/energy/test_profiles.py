"""Devices: kappa agrees with the watts it comes from, and fleets have the shares asked for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.energy.devices import (
    PROFILES,
    DeviceProfile,
    ProfileError,
    draw_fleet,
    iteration_costs,
    kappa_from_power,
)

STATED_W = {
    "raspberry-pi-3": 2.3,  # 3.7 - 1.4
    "raspberry-pi-4": 3.4,  # 5.0 - 1.6
    "raspberry-pi-5": 6.9,  # 9.7 - 2.8
    "jetson-nano": 3.5,
    "jetson-orin-nano": 5.0,
    "phone": 5.312,
}


def test_kappa_by_hand() -> None:
    """3.4 W at 1.8 GHz: 3.4 / (1.8e9)^3 = 3.4 / 5.832e27 = 5.83e-28; 0.1 W at 1 GHz: 1e-28."""
    assert kappa_from_power(3.4, 1.8e9) == pytest.approx(5.83e-28, rel=1e-3)
    assert kappa_from_power(0.1, 1e9) == pytest.approx(1e-28, rel=1e-12)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_draw_the_stated_watts(name: str) -> None:
    profile = PROFILES[name]
    assert profile.name == name
    assert profile.kappa * profile.frequency_hz**3 == pytest.approx(STATED_W[name], rel=1e-12)
    assert profile.dynamic_power_w == pytest.approx(STATED_W[name], rel=1e-12)
    assert 1e-28 <= profile.kappa <= 2e-27  # what mobile-edge papers use
    assert "assumption" in profile.source  # nobody measured all of it
    assert STATED_W.keys() == PROFILES.keys()


def test_costs_of_a_fleet_by_hand() -> None:
    """4e8 FLOPs at 4 a cycle are 1e8 cycles: 0.32 J and 3.2 s at batch 32.

    The second node runs at 2 GHz: 4 times the energy, half the time. No FLOPs, no cost.
    """
    device = DeviceProfile("d", 1e9, 1e-28, tx_power_w=0.1, battery_j=1e3, source="this test")
    costs = iteration_costs([device, replace(device, frequency_hz=2e9)], [4e8, 0.0], 32)
    np.testing.assert_allclose(costs.energy_j, [[0.32, 0], [1.28, 0]], rtol=1e-12)
    np.testing.assert_allclose(costs.time_s, [[3.2, 0], [1.6, 0]], rtol=1e-12)
    each = iteration_costs([device, device], [[4e8, 0.0], [0.0, 8e8]], 32)  # [node, modality]
    np.testing.assert_allclose(each.energy_j, [[0.32, 0], [0, 0.64]], rtol=1e-12)


@given(
    num_nodes=st.integers(1, 60),
    weights=st.lists(st.integers(0, 9), min_size=len(PROFILES), max_size=len(PROFILES)).filter(any),
    seed=st.integers(0, 2**31),
)
def test_fleets_have_the_asked_shares(num_nodes: int, weights: list[int], seed: int) -> None:
    shares = dict(zip(PROFILES, weights, strict=True))
    fleet = draw_fleet(num_nodes, shares, seed)
    counts = Counter(device.name for device in fleet)
    assert len(fleet) == num_nodes
    for name, weight in shares.items():
        assert abs(counts[name] - num_nodes * weight / sum(weights)) < 1
        assert weight > 0 or name not in counts
    assert all(device == PROFILES[device.name] for device in fleet)


def test_fleets_by_hand() -> None:
    """7 nodes in shares 2:1:1 are 3.5, 1.75, 1.75: 3 + 1 + 1, and the two left over go to .75."""
    names = ["phone", "jetson-nano", "raspberry-pi-4"]
    fleet = draw_fleet(7, dict(zip(names, [0.5, 0.25, 0.25], strict=True)), seed=0)
    assert Counter(d.name for d in fleet) == dict(zip(names, [3, 2, 2], strict=True))
    assert Counter(d.name for d in draw_fleet(4, names, 0))["phone"] == 2  # ties: earlier names
    assert {d.name for d in draw_fleet(3, "phone", 0)} == {"phone"}
    twice = draw_fleet(6, ["phone", "phone", "jetson-nano"], 0)
    assert Counter(d.name for d in twice) == {"phone": 4, "jetson-nano": 2}


def test_fleets_are_seeded() -> None:
    names = list(PROFILES)
    fleet = draw_fleet(20, names, seed=3, frequency_jitter=0.2)
    assert fleet == draw_fleet(20, names, seed=3, frequency_jitter=0.2)
    assert fleet != draw_fleet(20, names, seed=4, frequency_jitter=0.2)
    assert [d.name for d in fleet] == [d.name for d in draw_fleet(20, names, seed=3)]
    orders = {tuple(d.name for d in draw_fleet(20, names, seed)) for seed in range(5)}
    assert len(orders) == 5


def test_jitter_slows_the_clock_and_keeps_the_chip() -> None:
    fleet = draw_fleet(50, "phone", 0, frequency_jitter=0.3)
    clocks = np.array([d.frequency_hz for d in fleet]) / PROFILES["phone"].frequency_hz
    assert np.all((clocks > 0.7) & (clocks <= 1)) and len(set(clocks)) == 50
    assert {d.kappa for d in fleet} == {PROFILES["phone"].kappa}
    powers_w = [d.dynamic_power_w for d in fleet]
    np.testing.assert_allclose(powers_w, PROFILES["phone"].dynamic_power_w * clocks**3)


def test_a_users_own_device() -> None:
    mine = DeviceProfile("mine", 1e9, 1e-28, tx_power_w=0.1, battery_j=10, source="me")
    assert draw_fleet(2, "mine", 0, catalogue={**PROFILES, "mine": mine}) == [mine, mine]


def test_impossible_fleets_and_devices_are_refused() -> None:
    with pytest.raises(ProfileError, match="unknown device 'toaster'; allowed: jetson-nano"):
        draw_fleet(3, ["toaster"], 0)
    with pytest.raises(ProfileError, match="at least 1 node"):
        draw_fleet(0, ["phone"], 0)
    with pytest.raises(ProfileError, match="at least one device"):
        draw_fleet(3, [], 0)
    with pytest.raises(ProfileError, match="at least one device"):
        draw_fleet(3, {"phone": 0.0}, 0)
    with pytest.raises(ProfileError, match="0 or more"):
        draw_fleet(3, {"phone": -1.0, "jetson-nano": 2.0}, 0)
    with pytest.raises(ProfileError, match="frequency_jitter"):
        draw_fleet(3, "phone", 0, frequency_jitter=1.0)
    for field in ("frequency_hz", "kappa", "tx_power_w", "battery_j", "flops_per_cycle"):
        with pytest.raises(ProfileError, match=field):
            replace(PROFILES["phone"], **{field: 0.0})  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="idle_power_w"):
        replace(PROFILES["phone"], idle_power_w=-1.0)
