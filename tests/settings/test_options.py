"""The groups of settings: their keys, what they refuse, and what is made of them."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD, find_methods
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.energy.options import AllocationOptions, EnergyOptions, WirelessOptions
from flwr_dmml.energy.radio import Wireless
from flwr_dmml.settings import (
    GROUPS,
    OwnParts,
    Settings,
    every_setting,
    find_parts,
    parse_settings,
)

PARTS = find_parts()


ON_AIR = {"wireless.enabled": True}


def parse(run_config: dict[str, Any], **side: Any) -> Settings:
    return parse_settings(run_config, PARTS, **side).settings


def problems_of(run_config: dict[str, Any]) -> list[str]:
    """Return the lines of the one error that a run config gives."""
    with pytest.raises(SettingsError) as error:
        parse(run_config)
    head, *lines = str(error.value).splitlines()
    assert head == "the run config cannot work:"
    return [line.strip() for line in lines]


# What works


def test_without_keys_the_groups_have_their_defaults() -> None:
    found = parse({})
    assert found.energy == EnergyOptions()
    assert found.allocation == AllocationOptions()
    assert found.wireless == WirelessOptions()


def test_keys_with_a_prefix_go_to_their_group() -> None:
    """And nowhere else: the methods' options come back apart from the groups."""
    parsed = parse_settings(
        {
            "energy.devices": "phone,jetson-nano",
            "energy.battery-share": 0.5,
            "energy.pacing": False,
            "allocation.rule": "max-min",
            "allocation.max-iterations": 40,
            "allocation.max-ratio": 2,
            "wireless.enabled": True,
            "wireless.path-loss": "cellular",
            "wireless.shadowing-db": 0.0,
        },
        PARTS,
    )
    found = parsed.settings
    assert found.energy == EnergyOptions(
        devices="phone,jetson-nano", battery_share=0.5, pacing=False
    )
    assert found.allocation == AllocationOptions(rule="max-min", max_iterations=40, max_ratio=2.0)
    assert found.wireless == WirelessOptions(enabled=True, path_loss="cellular", shadowing_db=0.0)
    assert parsed.options.keys() == PARTS.methods.keys()


def test_bounds_that_are_allowed() -> None:
    found = parse(
        {
            "energy.battery-j": 1e6,
            "energy.clock-jitter": 0.0,
            "allocation.min-iterations": 3,
            "allocation.max-iterations": 3,
            "allocation.max-ratio": 1,
            "allocation.exponent": 0,
            "allocation.warm-up": 0,
            "wireless.shadowing-db": 40,
            "wireless.min-rate-bps": 0,
        }
    )
    assert found.allocation.min_iterations == found.allocation.max_iterations == 3
    assert found.energy.battery_j == 1e6 and found.wireless.shadowing_db == 40


def test_no_maximum_is_above_every_minimum() -> None:
    """0 stands for 2 x local-iterations, which the fewest iterations are held below."""
    found = parse({"allocation.min-iterations": 50, "allocation.max-iterations": 0})
    assert found.allocation.min_iterations == 50


def test_groups_are_values_that_cannot_change() -> None:
    energy = EnergyOptions()
    with pytest.raises(ValidationError, match="frozen"):
        energy.battery_j = 1.0  # type: ignore[misc]
    one, two = (parse({"energy.battery-j": 5.0}) for _ in range(2))
    assert hash(one) == hash(two) and one == two != parse({})


# What does not


@pytest.mark.parametrize(
    "key, value, words",
    [
        # A group without a setting
        ("energy", 3, "a group of settings; write energy.<setting>"),
        ("allocation", "max-min", "a group of settings; write allocation.<setting>"),
        ("wireless", True, "a group of settings; write wireless.<setting>"),
        # Unknown keys
        ("energy.batery-share", 0.5, "unknown setting; did you mean 'energy.battery-share'?"),
        ("allocation.max-iteration", 5, "did you mean 'allocation.max-iterations'?"),
        ("wireless.bandwith-hz", 1e6, "did you mean 'wireless.bandwidth-hz'?"),
        ("power.watts", 1.0, "no method or rule 'power'; there are agm, balance, beer, ccl,"),
        ("power.watts", 1.0, "and the groups energy, allocation, wireless"),
        # Wrong types
        ("energy.devices", 3, "Input should be a valid string"),
        ("energy.battery-share", "0.5", "Input should be a valid number"),
        ("energy.battery-j", True, "Input should be a valid number"),
        ("energy.pacing", 1, "Input should be a valid boolean"),
        ("energy.pacing", "false", "Input should be a valid boolean"),
        ("allocation.min-iterations", 2.0, "Input should be a valid integer"),
        ("allocation.train-every", "2", "Input should be a valid integer"),
        ("allocation.rule", 1, "'uniform', 'max-min', 'proportional',"),
        ("wireless.enabled", "true", "Input should be a valid boolean"),
        ("wireless.positions", 0, "Input should be a valid string"),
        ("wireless.power-w", "0.1", "Input should be a valid number"),
        # Out of range
        ("energy.clock-jitter", 1.0, "Input should be less than 1"),
        ("energy.battery-share", -0.5, "Input should be greater than or equal to 0"),
        ("energy.battery-share", float("nan"), "Input should be a finite number"),
        ("energy.battery-j", 2e6, "Input should be less than or equal to 1000000"),
        ("energy.harvesting-w", float("inf"), "Input should be a finite number"),
        ("allocation.min-iterations", 0, "Input should be greater than or equal to 1"),
        ("allocation.max-ratio", 0.5, "Input should be greater than or equal to 1"),
        ("allocation.exponent", 5, "Input should be less than or equal to 4"),
        ("allocation.warm-up", -1, "Input should be greater than or equal to 0"),
        ("allocation.train-every", 0, "Input should be greater than or equal to 1"),
        ("wireless.shadowing-db", 41.0, "Input should be less than or equal to 40"),
        ("wireless.bandwidth-hz", 0, "Input should be greater than 0"),
        ("wireless.rician-k", -1.0, "Input should be greater than or equal to 0"),
        # Unknown names
        ("allocation.rule", "fair", "'least-squares', 'random' or 'sync-only'"),
        ("wireless.path-loss", "free-space", "Input should be 'd2d' or 'cellular'"),
        ("wireless.fading", "nakagami", "Input should be 'none', 'rayleigh' or 'rician'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(key: str, value: Any, words: str) -> None:
    (problem,) = problems_of({key: value})
    assert problem.startswith(f"{key} = {value!r}: ")
    assert words in problem


@pytest.mark.parametrize(
    "run_config, start, words",
    [
        (
            {"energy.battery-share": 0.5, "energy.battery-j": 100.0},
            "energy",
            ["battery-share and battery-j exclude each other", "set one to 0"],
        ),
        (
            {"allocation.max-iterations": 3, "allocation.min-iterations": 5},
            "allocation",
            ["max-iterations = 3", "is below min-iterations = 5"],
        ),
        (  # against the default of 2
            {"allocation.max-iterations": 1},
            "allocation",
            ["max-iterations = 1", "is below min-iterations = 2"],
        ),
        (
            {"wireless.enabled": True, "wireless.positions": "/no/such/file"},
            "wireless",
            ["positions must be uniform, grid or a text file's path", "/no/such/file"],
        ),
        (
            {
                "allocation.rule": "sync-only",
                "wireless.enabled": True,
                "wireless.shared-band-hz": 1e6,
            },
            "allocation.rule = 'sync-only'",
            ["not with a shared band", "wireless.shared-band-hz"],
        ),
    ],
    ids=["two-batteries", "bounds", "default-bound", "no-positions", "sync-only-shared-band"],
)
def test_settings_that_do_not_fit_together(
    run_config: dict[str, Any], start: str, words: list[str]
) -> None:
    (problem,) = problems_of(run_config)
    assert problem.startswith(f"{start}: ")
    for word in words:
        assert word in problem


@pytest.mark.parametrize("devices", ["toaster", "phone,toaster", ",", ""])
def test_devices_that_there_are_not_name_the_key_and_the_devices(devices: str) -> None:
    (problem,) = problems_of({"energy.devices": devices})
    assert problem.startswith("energy") and "devices" in problem
    assert all(name in problem for name in PROFILES)


@pytest.mark.parametrize("group", GROUPS)
def test_a_key_unlike_any_other_lists_those_of_its_group(group: str) -> None:
    """The prefix says nothing about what was meant."""
    (problem,) = problems_of({f"{group}.qqq": 1})
    assert "did you mean" not in problem
    assert all(f"{group}.{info.alias}" in problem for info in GROUPS[group].model_fields.values())


@pytest.mark.parametrize("stagger", [2.0, -0.5, "half", True])
def test_a_bad_stagger_is_one_line_of_its_key(stagger: Any) -> None:
    """Whichever of "auto" and a share was meant."""
    (problem,) = problems_of({"stagger": stagger})
    assert problem.startswith(f"stagger = {stagger!r}: ")


def test_a_home_folder_that_there_is_not_is_a_problem_like_others() -> None:
    (problem,) = problems_of(ON_AIR | {"wireless.positions": "~no-such-user/positions.txt"})
    assert "positions" in problem and "~no-such-user" in problem


@pytest.mark.parametrize(
    "text, words",
    [("1 2\n3\n", "line 2: '3' is no position"), ("1 2\n", "ends with 1 positions")],
)
def test_a_positions_file_is_read_before_the_run(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "positions.txt"
    path.write_text(text)
    (problem,) = problems_of(ON_AIR | {"wireless.positions": str(path), "num-nodes": 2})
    assert problem.startswith("wireless: positions") and words in problem
    path.write_text("1 2\n3 4\n")
    assert parse(ON_AIR | {"wireless.positions": str(path), "num-nodes": 2})


def test_only_the_coordinator_looks_for_positions() -> None:
    config = {"wireless.enabled": True, "wireless.positions": "/no/such/file"}
    assert parse(config, side="device").wireless.positions == "/no/such/file"
    with pytest.raises(SettingsError, match="positions"):
        parse(config, side="coordinator")


@pytest.mark.parametrize("off", [{"wireless.enabled": False}, {"wireless.shared-band-hz": 0.0}])
def test_sync_only_is_refused_with_a_shared_band_in_use_only(off: dict[str, Any]) -> None:
    shared = {"wireless.enabled": True, "wireless.shared-band-hz": 1e6}
    assert parse({"allocation.rule": "sync-only", **shared, **off}).allocation.rule == "sync-only"
    assert parse({**shared, "allocation.rule": "max-min"}).wireless.shared


def test_all_problems_of_groups_are_in_one_message() -> None:
    problems = problems_of(
        {
            "energy": 3,
            "energy.battery-j": -1.0,
            "energy.batery-share": 0.5,
            "allocation.max-iterations": 1,
            "wireless.fading": "nakagami",
            "num-nodes": 0,
            "dmml-kd.guidance": -1.0,
        }
    )
    assert sorted(problem.split(":")[0].split(" = ")[0] for problem in problems) == [
        "allocation",
        "dmml-kd.guidance",
        "energy",
        "energy.batery-share",
        "energy.battery-j",
        "num-nodes",
        "wireless.fading",
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_a_method_cannot_have_the_name_of_a_group(group: str) -> None:
    learner = type("Mine", (DPSGD,), {"name": group})
    with pytest.raises(ValueError, match=f"cannot be named '{group}': that is a group"):
        parse_settings({}, find_parts(OwnParts((learner,))))
    assert "mine" in find_methods([type("Mine", (DPSGD,), {"name": "mine"})])


# Every setting, and back


def test_every_setting_of_a_group_has_its_prefix() -> None:
    keys = [key for key, _ in every_setting(PARTS)]
    assert len(keys) == len(set(keys))
    for prefix, group in GROUPS.items():
        own = {key for key in keys if key.startswith(f"{prefix}.")}
        assert own == {f"{prefix}.{info.alias}" for info in group.model_fields.values()}
        assert prefix not in keys


def test_resolved_has_every_setting_once_with_its_default() -> None:
    defaults = {key: info.default for key, info in every_setting(PARTS)}
    assert parse_settings({}, PARTS).resolved() == defaults


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "energy.devices": st.sampled_from(["phone", "phone, jetson-nano", "raspberry-pi-5"]),
    "energy.clock-jitter": st.floats(0, 0.9),
    "energy.battery-share": st.floats(0, 2),
    "energy.harvesting-w": st.integers(0, 5),
    "energy.pacing": st.booleans(),
    "allocation.rule": st.sampled_from(["uniform", "max-min", "random", "sync-only"]),
    "allocation.min-iterations": st.integers(1, 9),
    "allocation.max-iterations": st.just(0) | st.integers(9, 99),
    "allocation.max-ratio": st.floats(1, 100),
    "allocation.exponent": st.integers(0, 4),
    "allocation.latency-s": st.floats(0, 1e3),
    "wireless.enabled": st.booleans(),
    "wireless.positions": st.sampled_from(["uniform", "grid"]),
    "wireless.fading": st.sampled_from(["none", "rayleigh", "rician"]),
    "wireless.power-w": st.floats(0, 1),
    "wireless.min-rate-bps": st.floats(0, 1e6),
    "num-nodes": st.integers(3, 20),
    "stagger": st.floats(0, 1),
    "modality-loss": st.floats(0, 1),
    "image-visible": st.floats(0.1, 1),
    "speed-metric": st.sampled_from(["conditional", "path"]),
    "dmml-kd.guidance": st.floats(0, 3),
    "dmml-kd.label-counts": st.booleans(),
}


@settings(deadline=None, max_examples=50)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_resolved_settings_parse_to_the_same(run_config: dict[str, Any]) -> None:
    """And hold what was given: a run can be repeated from its config.json."""
    first = parse_settings(run_config, PARTS)
    flat = first.resolved()
    assert parse_settings(json.loads(json.dumps(flat)), PARTS) == first
    assert {key: flat[key] for key in run_config} == run_config
    assert flat.keys() == {key for key, _ in every_setting(PARTS)}


# What is made of them


def test_a_battery_or_mains() -> None:
    assert EnergyOptions().on_mains
    assert not EnergyOptions(battery_share=0.5).on_mains
    assert not EnergyOptions(battery_j=1.0).on_mains


def test_a_fleet_is_drawn_in_equal_shares() -> None:
    """Blanks do not count; a jitter slows clocks down to 1 - 0.5 of them."""
    fleet = EnergyOptions(devices=" phone, jetson-nano").fleet(6, seed=0)
    assert sorted(device.name for device in fleet) == ["jetson-nano"] * 3 + ["phone"] * 3
    assert all(device == PROFILES[device.name] for device in fleet)
    slow = EnergyOptions(devices="phone", clock_jitter=0.5).fleet(6, seed=0)
    clocks = [device.frequency_hz / PROFILES["phone"].frequency_hz for device in slow]
    assert all(0.5 < clock < 1 for clock in clocks) and len(set(clocks)) == 6


def test_no_latency_is_no_limit() -> None:
    assert AllocationOptions().latency_limit_s == inf
    assert AllocationOptions(latency_s=1.5).latency_limit_s == 1.5


def test_a_band_is_shared_by_enabled_radios_only() -> None:
    assert WirelessOptions(enabled=True, shared_band_hz=1e6).shared
    assert not WirelessOptions(enabled=True).shared
    assert not WirelessOptions(shared_band_hz=1e6).shared


def test_radios_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared band of 1 MHz is 250 kHz for each of 4; power 0 is the device's own, 0.1 W."""
    fleet = EnergyOptions(devices="phone").fleet(4, seed=0)
    assert WirelessOptions(bandwidth_hz=3e6).make(80.0, fleet) == Wireless(
        side_m=80.0, power_w=(0.1,) * 4, bandwidth_hz=3e6
    )
    shared = WirelessOptions(shared_band_hz=1e6, power_w=0.2, min_rate_bps=5.0, positions="grid")
    assert shared.make(100.0, fleet) == Wireless(
        positions="grid", power_w=(0.2,) * 4, bandwidth_hz=250e3, min_rate_bps=5.0
    )
    monkeypatch.setenv("HOME", "/home/somebody")
    at_home = WirelessOptions(positions="~/positions.txt").make(100.0, fleet)
    assert at_home.positions == "/home/somebody/positions.txt"


def test_the_channel_is_what_the_options_say() -> None:
    options = WirelessOptions(path_loss="cellular", shadowing_db=2.0, fading="rician", rician_k=7.0)
    channel = options.make(100.0, EnergyOptions().fleet(1, seed=0)).channel
    assert (channel.path_loss, channel.shadowing_db) == ("cellular", 2.0)
    assert (channel.fading, channel.rician_k) == ("rician", 7.0)
