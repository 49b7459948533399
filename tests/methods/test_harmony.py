"""Harmony: its stages, the modality bias, which links are kept, the encoders' rate, whole runs."""

from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_staged import Records, copied, numbers, run, same, steady, step, watching
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Harmony, HarmonyOptions
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.harmony import BIAS, HEAD, bias_distance
from flwr_dmml.payload.blocks import STATISTICS, check_mixable, flatten, load_flat
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.transport.messages import pack, unpack

BOTH: dict[str, Any] = {
    **FAST, "method": "harmony", "modality-pattern": "audio+image", "num-nodes": 3,
}  # fmt: skip
KEY = STATISTICS + BIAS


# The plan


@pytest.mark.parametrize(
    ("share", "rounds", "first"), [(0.67, 30, 20), (0.67, 3, 2), (0.5, 2, 1), (0.1, 12, 1)]
)
def test_stages_by_hand(share: float, rounds: int, first: int) -> None:
    """0.67 * 30 = 20.1, 0.67 * 3 = 2.01 and 0.1 * 12 = 1.2 rounds of the first stage."""
    options = HarmonyOptions(uni_modal=share)
    stages = [options.phase(t, rounds) for t in range(1, rounds + 1)]
    assert stages == ["uni-modal"] * first + ["fusion"] * (rounds - first)
    assert options.trained("fusion", ("a",)) == () == HarmonyOptions().trained("fusion", ("b",))
    assert options.trained("fusion", ("a", "b")) == ("a", "b")
    assert options.trained("uni-modal", ("a",)) == ("a",)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"modality-pattern": "audio,image"}, "no device has two modalities"),
        ({"num-server-rounds": 1}, "no round is left for the stage 'fusion'"),
        ({"harmony.uni-modal": 0.01}, "no round is left for the stage 'uni-modal'"),
    ],
)
def test_runs_that_are_refused(setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings({"method": "harmony", **setting}, find_parts())
    assert expected in str(error.value)


# Blocks


def test_only_the_head_is_shared_of_the_fusion() -> None:
    device, alone = (
        make_learner(BOTH),
        make_learner({**BOTH, "modality-pattern": "audio+image,image"}, 1),
    )
    networks = {"encoder.audio", "head.audio", "encoder.image", "head.image"}
    assert set(device.blocks()) == networks | {HEAD}
    assert set(device.private_blocks()) == {"fusion.encoder.audio", "fusion.encoder.image"}
    assert set(alone.blocks()) == {"encoder.image", "head.image"} and not alone.private_blocks()
    check_mixable(device.blocks() | device.private_blocks())
    first, second = (step(device, t, p).payload for t, p in ((1, "uni-modal"), (2, "fusion")))
    assert {n for n in first if n in device.blocks() and len(first[n])} == networks
    assert {n for n in second if n in device.blocks() and len(second[n])} == {HEAD}
    assert KEY not in first and second[KEY].shape == (2,)
    assert KEY not in step(alone, 2, "fusion", updates={"image": 0}).payload


def test_the_fusion_leaves_the_uni_modal_networks_alone() -> None:
    device = make_learner(BOTH)
    step(device, 1, "uni-modal")
    before = device.state()
    step(device, 2, "fusion")
    after = device.state()
    for m in ("audio", "image"):
        for name in (f"encoder.{m}", f"head.{m}"):
            assert torch.equal(before[name], after[name])
        assert not torch.equal(after[f"fusion.encoder.{m}"], after[f"encoder.{m}"])
    assert not torch.equal(before[HEAD], after[HEAD])


def test_encoders_that_are_fused_step_at_a_tenth_of_the_rate() -> None:
    """One step each from the same place, without momentum and clipping; the head's are equal."""
    plain = {**BOTH, "momentum": 0.0, "clip-norm": 0.0, "local-iterations": 1}
    moved, heads = {}, {}
    for rate in (0.1, 1.0, 0.0):
        device = make_learner({**plain, "harmony.encoder-rate": rate})
        device.run_round(Plan(1, 1, phase="fusion"), {})
        state = device.state()
        moved[rate] = {
            m: state[f"fusion.encoder.{m}"] - state[f"encoder.{m}"] for m in ("audio", "image")
        }
        heads[rate] = state[HEAD]
    for m in ("audio", "image"):
        assert float(moved[1.0][m].abs().max()) > 1e-4 and not moved[0.0][m].any()
        assert torch.allclose(moved[0.1][m], 0.1 * moved[1.0][m], atol=1e-7)
    assert torch.equal(heads[0.1], heads[1.0])


# The bias


def test_the_bias_by_hand() -> None:
    """Audio from (1, 0, ...) to (1, 1, 0, ...): 1 - 1/sqrt(2). The image's is where it began."""
    device = steady(Harmony, HarmonyOptions(), {"audio": (0.0, 0.0), "image": (0.0, 0.0)})
    assert device.bias().tolist() == pytest.approx([0, 0], abs=1e-7)  # type: ignore[attr-defined]
    start = torch.zeros_like(flatten(device.model.encoders["audio"]))
    start[0] = 1
    now = start.clone()
    now[1] = 1
    load_flat(device.model.encoders["audio"], start)
    load_flat(device.model.fusion_encoders["audio"], now)
    assert device.bias().tolist() == pytest.approx([1 - 1 / sqrt(2), 0])  # type: ignore[attr-defined]
    one = steady(Harmony, HarmonyOptions(), {"image": (0.0, 0.0)})
    assert one.bias().tolist() == [0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2], [2, 2], sqrt(1 / 8)),  # (1/2, 0)
        ([1, 4], [2, 1], sqrt(13 / 32)),  # (1/2, 3/4): (1/4 + 9/16) / 2
        ([0, 1], [0, 3], 2 / 3),  # a modality that neither has does not count
        ([0, 1], [1, 0], 1),
        ([1e-5, 2e-5], [1e-5, 2e-5], 0),
        ([0, 0], [0, 0], 0),
    ],
)
def test_distances_by_hand(a: list[float], b: list[float], expected: float) -> None:
    one, two = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert bias_distance(one, two) == bias_distance(two, one) == pytest.approx(expected, rel=1e-6)
    assert bias_distance(7 * one, 7 * two) == pytest.approx(expected, rel=1e-6)


# Who mixes

BIASES = ([0.1, 0.2], [0.1, 0.25], [0.4, 0.01])
"""0-1 are sqrt(0.2^2 / 2) = 0.141 apart, 0-2 sqrt((0.75^2 + 0.95^2) / 2) = 0.856, 1-2 0.861."""


def fleet(**options: Any) -> list[Harmony]:
    """Return three devices after a fusion round, heads all 0, all 3 and all 9, biases as above."""
    devices: list[Any] = [
        make_learner({**BOTH, **{f"harmony.{k}": v for k, v in options.items()}}, k)
        for k in range(3)
    ]
    for device, value, bias in zip(devices, (0.0, 3.0, 9.0), BIASES, strict=True):
        step(device, 1, "fusion", updates={"audio": 0, "image": 0})
        load_flat(device.blocks()[HEAD], torch.full_like(flatten(device.blocks()[HEAD]), value))
        device.bias = lambda bias=bias: torch.tensor(bias)
    return devices


def mixed(devices: list[Harmony], sent: dict[int, dict[str, Tensor]] | None = None) -> list[float]:
    """Mix all three with each other, thirds each; return where the heads are."""
    payloads = {
        k: {HEAD: flatten(device.blocks()[HEAD]), KEY: device.bias()}
        for k, device in enumerate(devices)
    } | (sent or {})
    thirds = (1 / 3, 1 / 3, 1 / 3)
    for k, device in enumerate(devices):
        others = tuple(j for j in range(3) if j != k)
        plan = Plan(2, 0, neighbours=others, weights={HEAD: thirds, "head.audio": thirds})
        inbox = {j: unpack(pack(payloads[j])) for j in others}
        device.rejected = device.run_round(plan, inbox).rejected
    return [float(flatten(device.blocks()[HEAD])[0]) for device in devices]


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        (0.2, [1, 2, 9]),  # 0-1 is kept: 2/3 * 0 + 1/3 * 3 and 2/3 * 3 + 1/3 * 0
        (1.0, [4, 4, 4]),  # all are
        (0.1, [0, 3, 9]),  # none is
        (0.86, [4, 2, 6]),  # 0-2 as well: (0 + 3 + 9) / 3, 2/3 * 3 and 2/3 * 9
    ],
)
def test_links_that_are_cut_leave_the_mean(radius: float, expected: list[float]) -> None:
    found = mixed(devices := fleet(radius=radius))
    assert sum(found) == pytest.approx(12, abs=1e-5)
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(device.rejected == [] for device in devices)


GOOD = torch.tensor(BIASES[1])


@pytest.mark.parametrize(
    ("bias", "problem"),
    [
        (None, "is missing"),
        (torch.zeros(3), "has shape (3,) instead of (2,)"),
        (torch.tensor([0.1, float("nan")]), "holds NaN or infinite values"),
        (torch.tensor([0.1, float("inf")]), "holds NaN or infinite values"),
        (GOOD.double(), "has type torch.float64"),
        (-GOOD, "holds values outside of 0 to 2"),
        (torch.tensor([0.1, 2.5]), "holds values outside of 0 to 2"),
    ],
)
def test_a_bad_bias_cuts_the_link_and_is_named(bias: Tensor | None, problem: str) -> None:
    """Device 1 sends rubbish: the others do without its head, which is near device 0's."""
    devices = fleet(radius=0.2)
    head = {HEAD: torch.full_like(flatten(devices[1].blocks()[HEAD]), 3.0)}
    found = mixed(devices, {1: head | ({} if bias is None else {KEY: bias})})
    assert found[0] == 0 and found[2] == 9
    assert all(len(devices[k].rejected) == 1 for k in (0, 2))
    assert devices[0].rejected[0].startswith(f"1: {BIAS} {problem}")


def test_a_bad_head_of_a_near_device_is_named_too() -> None:
    devices = fleet(radius=0.2)
    found = mixed(devices, {1: {HEAD: torch.zeros(2), KEY: GOOD}})
    assert found[0] == 0 and "block fusion.head has shape (2,)" in devices[0].rejected[0]


# The state and the bill


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_state_that_went_through_flower_goes_on_bit_for_bit(done: int) -> None:
    phases = ["uni-modal", "fusion", "fusion", "fusion", ""]
    device = make_learner(BOTH)
    for t in range(1, done + 1):
        step(device, t, phases[t - 1])
    other = copied(device, BOTH)
    for t in range(done + 1, 6):
        one, two = (step(d, t, phases[t - 1], evaluate=True) for d in (device, other))
        assert one.metrics == two.metrics and same(one.payload, two.payload)
        assert same(device.state(), other.state())


def test_it_costs_what_the_networks_cost() -> None:
    """As ModalityMirror, but for what that asks its teacher."""
    ours = measure_work(make_learner(BOTH))
    mirror = measure_work(make_learner({**BOTH, "method": "modality-mirror"}))
    assert ours.joint == mirror.joint and ours.solo == mirror.solo
    assert ours.per_round == 0 and not any(ours.in_phase.values())


# Runs: four of twelve devices do both; stages of 4 and 2 rounds


@pytest.fixture(scope="module")
def watched() -> type[Any]:
    return watching(Harmony)


@pytest.fixture(scope="module")
def records(watched: type[Any], tmp_path_factory: pytest.TempPathFactory) -> Records:
    return run(tmp_path_factory.mktemp("harmony"), watched, num_nodes=12)


FUSING = (2, 5, 8, 11)


def test_devices_with_one_sensor_rest_in_the_second_stage(records: Records) -> None:
    for record in records:
        for node in record["nodes"]:
            rests = record["round"] > 4 and node["partition"] not in FUSING
            assert (node["compute_j"] == 0) == rests
            assert set(node["updates"].values()) == {0 if rests else 2}
    assert all(map(isfinite, numbers(records))) and not any(r["failed"] for r in records)


def test_some_links_are_cut_by_default_and_the_mean_survives(
    records: Records, watched: type[Any]
) -> None:
    """What is sent in round 5 and mixed in round 6, on a complete graph of four owners."""
    sent = {k: watched.sent_by[5, k] for k in FUSING}
    pairs = [(j, k) for j in FUSING for k in FUSING if j < k]
    near = [p for p in pairs if bias_distance(*(sent[k][KEY] for k in p)) <= 0.25]
    assert 0 < len(near) < len(pairs)
    for k in FUSING:
        friends = [j for j in FUSING if (min(j, k), max(j, k)) in near]
        expected = sent[k][HEAD].double()
        for j in friends:
            expected = expected + (sent[j][HEAD].double() - sent[k][HEAD].double()) / 4
        assert torch.allclose(watched.mixed[6, k][HEAD], expected.float(), atol=1e-6)
    before = torch.stack([sent[k][HEAD] for k in FUSING]).double().mean(dim=0)
    after = torch.stack([watched.mixed[6, k][HEAD] for k in FUSING]).double().mean(dim=0)
    assert torch.allclose(before, after, atol=1e-7)


def test_the_same_seed_gives_the_same_lines(records: Records, tmp_path: Path) -> None:
    again = run(tmp_path / "a", watching(Harmony), num_nodes=12)
    other = run(tmp_path / "b", watching(Harmony), num_nodes=12, seed=1)
    assert again == records != other
