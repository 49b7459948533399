"""Energy in real runs on the in-process engine: batteries that run out, and what is written down.

On the 2 x 2 grid of four devices that send to all, the worst link is the diagonal of 71 m: with
both modalities that takes 0.0148 J a round, and two iterations take 0.0195 J.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import FAST, run_peers
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.clients import DPSGD, Learner, make_client_app
from flwr_dmml.energy.options import AllocationOptions, EnergyOptions, WirelessOptions
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.batch import Batch
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import Settings
from flwr_dmml.strategies import PeerStrategy, make_server_app
from flwr_dmml.strategies.app import report
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.energy.shared_band import SharedBandConstrained
from flwr_dmml.tracking import RoundRecord, devices_table, render

FOUR: dict[str, Any] = {
    **FAST, "method": "dpsgd", "modality-pattern": "audio+image", "num-nodes": 4,
    "topology": "complete",
}  # fmt: skip
THREE: dict[str, Any] = {**FAST, "method": "dpsgd", "num-nodes": 3}  # audio, image, audio+image
STILL: dict[str, Any] = {
    "enabled": True, "positions": "grid", "fading": "none", "shadowing_db": 0.0,
}  # fmt: skip


def make_energy(
    rule: str = "uniform",
    *,
    energy: dict[str, Any] | None = None,
    wireless: dict[str, Any] | None = None,
    most: int = 2,
    battery_j: list[float] | None = None,
    **allocation: Any,
) -> EnergyConstrained:
    settings = Settings(
        local_iterations=most,
        energy=EnergyOptions(**(energy or {})),
        wireless=WirelessOptions(**(wireless or {})),
        allocation=AllocationOptions(rule=rule, **allocation),
    )
    kind = SharedBandConstrained if settings.wireless.shared else EnergyConstrained
    return kind(settings, battery_j=None if battery_j is None else np.array(battery_j))


def app_config(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    """Return the run config of a whole app; underscores stand for ``-``, two for a dot."""
    own = {k.replace("__", ".").replace("_", "-"): v for k, v in settings.items()}
    return {"run-dir": str(tmp_path), "run-name": "x", **own}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Batteries that run out


class Witness(DPSGD):
    """Keeps the weights, the published heads and the mixed ones by (round, device)."""

    name = "witness"
    weights: ClassVar[dict[tuple[int, int], dict[int, float]]] = {}
    published: ClassVar[dict[tuple[int, int], Tensor]] = {}
    mixed: ClassVar[dict[tuple[int, int], Tensor]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        me, mixing = self.partition.partition_id, plan.server_round - 1
        row = plan.weights.get("head.common", (1.0,))
        self.weights[mixing, me] = dict(zip((me, *plan.neighbours), row, strict=True))
        outcome = super().run_round(plan, inbox)
        if outcome.payload:
            self.published[plan.server_round, me] = outcome.payload["head.common"].double()
        return outcome

    def evaluate(self) -> dict[str, float]:
        key = (self.server_round - 1, self.partition.partition_id)
        self.mixed[key] = flatten(self.blocks()["head.common"]).double()
        return super().evaluate()


@pytest.fixture(scope="module")
def dying() -> PeerStrategy:
    """Four rounds, no pacing. Device 0 has 0.04 J: it trains and sends once, 0.0057 J are left.

    Device 1 has 0.06 J: it trains and sends in round 1, sends in round 2, and 0.0109 J are left.
    """
    for seen in (Witness.weights, Witness.published, Witness.mixed):
        seen.clear()
    energy = make_energy(
        energy={"battery_j": 1.0, "pacing": False},
        wireless=STILL,
        battery_j=[0.04, 0.06, 5.0, 5.0],
    )
    config = {**FOUR, "method": "witness"}
    return run_peers(config, Witness, num_rounds=4, evaluate_every=1, energy=energy)


GOING_ON = [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}, {2, 3}]
"""Who takes part in rounds 1 to 4."""


def test_flat_devices_are_named_with_the_reason_from_the_round_they_die_in(
    dying: PeerStrategy,
) -> None:
    assert [sorted(r.failed) for r in dying.records] == [[], [0], [0, 1], [0, 1]]
    assert [{n.partition for n in r.nodes if n.updates} for r in dying.records] == GOING_ON
    for record in dying.records[1:]:
        for partition, reason in record.failed.items():
            left_j = record.battery_j[partition]
            assert reason.startswith(f"its battery holds {left_j:.3g} J, sending takes 0.0148 J")


def test_a_device_trains_for_the_last_time_before_it_only_sends(dying: PeerStrategy) -> None:
    first, second = dying.records[:2]
    both = {"audio": 2, "image": 2}
    assert [n.updates for n in first.nodes] == [both] * 4
    assert [n.updates for n in second.nodes] == [{}, {"audio": 0, "image": 0}, both, both]
    assert second.by_partition[1].train_loss is None and second.by_partition[1].radio_j > 0
    assert second.by_partition[1].compute_j == 0


def test_the_others_go_on_mixing_and_keep_their_mean(dying: PeerStrategy) -> None:
    """What round t published is mixed by those that go on to t + 1; after round 4 by all of them.

    Their weights are doubly stochastic: rows and columns sum to 1, and the dead have no part.
    """
    for mixing, alive in zip(range(1, 5), [*GOING_ON[1:], GOING_ON[-1]], strict=True):
        matrix = np.zeros((4, 4))
        for k in alive:
            row = Witness.weights[mixing, k]
            assert set(row) == alive  # a complete graph
            matrix[k, list(row)] = list(row.values())
        inside = matrix[np.ix_(sorted(alive), sorted(alive))]
        np.testing.assert_allclose(inside.sum(axis=0), 1, atol=1e-12)
        np.testing.assert_allclose(inside.sum(axis=1), 1, atol=1e-12)
        assert (inside > 0).all()
        before = torch.stack([Witness.published[mixing, k] for k in alive])
        after = torch.stack([Witness.mixed[mixing, k] for k in alive])
        assert torch.allclose(before.mean(dim=0), after.mean(dim=0), atol=1e-6)
        assert not torch.allclose(before, after, atol=1e-6), "mixing must do something"
        nodes = dying.records[mixing - 1].by_partition
        assert all((nodes[k].disagreement or 0) > 0 for k in alive)


def test_a_neighbour_that_dies_makes_sending_cheaper(dying: PeerStrategy) -> None:
    """Device 3 loses its diagonal neighbour 0 in round 2, device 2 its neighbour 1 in round 3."""
    for node, dies_in in ((3, 2), (2, 3)):
        radio_j = [r.by_partition[node].radio_j for r in dying.records]
        assert radio_j[dies_in - 1] < 0.95 * radio_j[0]
        assert radio_j[dies_in - 2] == pytest.approx(radio_j[0], rel=0.01)


def test_the_log_names_who_leaves_once(caplog: pytest.LogCaptureFixture) -> None:
    energy = make_energy(energy={"battery_j": 1.0}, wireless=STILL, battery_j=[0.02, 5.0, 5.0, 5.0])
    run_peers(FOUR, num_rounds=3, energy=energy)
    said = [r.getMessage() for r in caplog.records if "leaves" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("Round 2: node 0 leaves: its battery holds")


def table_rows(text: str) -> dict[str, list[str]]:
    lines = [line[1:-1].split("│") for line in text.splitlines() if line.startswith("│")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_the_final_tables_have_a_dash_for_the_dead(
    dying: PeerStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of four devices are in the figures; the others are listed, without one."""
    results = {"witness": dying.records[-1]}
    report(Settings(method="witness"), results, {})
    assert "2 of 4 devices" in caplog.text
    listed = table_rows(render(devices_table(results)))
    assert set(listed) == {"0", "1", "2", "3"}
    assert listed["0"] == listed["1"] == ["audio+image", "-"]
    assert listed["2"][1] != "-" and listed["3"][1] != "-"


def test_a_run_in_which_all_die_ends_normally(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """0.02 J pay for sending once. Rounds 2 and 3 have nobody, and the tables only dashes."""
    config = app_config(tmp_path, num_server_rounds=3, energy__battery_j=0.02) | {
        f"wireless.{k.replace('_', '-')}": v for k, v in STILL.items()
    }
    run_app(FlowerApp({**FOUR, **config}, make_server_app(), make_client_app()), 4)
    lines = read_metrics(tmp_path / "x" / "dpsgd")
    assert [sum(bool(n["updates"]) for n in line["nodes"]) for line in lines] == [4, 0, 0]
    assert [sorted(line["failed"]) for line in lines] == [[], *[["0", "1", "2", "3"]] * 2]
    assert lines[-1]["accuracy"] is None and lines[-1]["total_j"] == lines[0]["total_j"] > 0
    final = table_rows("\n".join(r.getMessage() for r in caplog.records))
    assert final["all devices, mean"] == final["worst device"] == ["-"]


def test_a_comparison_in_which_all_die_ends_normally(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = app_config(
        tmp_path, num_server_rounds=2, energy__battery_j=0.02, compare_with="local"
    ) | {f"wireless.{k.replace('_', '-')}": v for k, v in STILL.items()}
    run_app(FlowerApp({**FOUR, **config}, make_server_app(), make_client_app()), 4)
    assert "dpsgd against local: no device finished with both" in caplog.text
    final = table_rows("\n".join(r.getMessage() for r in caplog.records))
    assert final["all devices, mean"] == ["-", "-", "-"]


def test_a_harvesting_device_takes_part_again(caplog: pytest.LogCaptureFixture) -> None:
    """Device 0 starts full with 0.016 J; 50 mW refill it for the 0.15 s that a round takes.

    After round 1 it holds 0.016 - 0.0148 + 0.05 x 0.15 = 0.009 J, less than sending takes; after
    round 2, which it sits out, twice as much or what it can hold; in round 3 it sends and is mixed.
    """
    energy = make_energy(
        energy={"battery_j": 1.0, "harvesting_w": 0.05},
        wireless=STILL,
        battery_j=[0.016, 5.0, 5.0, 5.0],
    )
    peers = run_peers(FOUR, num_rounds=3, energy=energy)
    out = [sorted(r.failed) for r in peers.records]
    assert out == [[], [0], []]
    assert peers.records[2].by_partition[0].disagreement is not None
    assert any("Round 3: node 0 can send again" in r.getMessage() for r in caplog.records)


# What is written down


class Counting(DPSGD):
    """Counts the iterations that train each modality, by (device, round)."""

    name = "counting"
    ran: ClassVar[dict[tuple[int, int], Counter[str]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        self.ran[self.partition.partition_id, plan.server_round] = Counter()
        return super().run_round(plan, inbox)

    def local_loss(self, batch: Batch) -> Tensor:
        key = self.partition.partition_id, self.server_round
        if key in self.ran:  # not at the handshake, where the work is measured
            self.ran[key].update(batch.inputs.keys())
        return super().local_loss(batch)


ALLOCATED = [
    ("max-min", {"battery_share": 0.6}),
    ("random", {"battery_share": 0.4, "pacing": False}),
    ("sync-only", {"battery_j": 1.0}),
]


def run_counting(rule: str, energy: dict[str, Any], **wireless: Any) -> PeerStrategy:
    Counting.ran.clear()
    constrained = make_energy(
        rule, energy=energy, wireless={"enabled": True, **wireless}, most=6, warm_up=1
    )
    config = {**THREE, "local-iterations": 6, "method": "counting"}
    return run_peers(config, Counting, num_rounds=4, energy=constrained)


def check_energy_of_records(peers: PeerStrategy) -> None:
    """The run's joules are the sum of its bills, and what each battery has lost."""
    initial_j = peers.planner.energy.battery_j
    total_j, spent_j = 0.0, np.zeros(len(initial_j))
    for record in peers.records:
        for node in record.nodes:
            total_j += node.compute_j + node.radio_j
            spent_j[node.partition] += node.compute_j + node.radio_j
        assert record.total_j == pytest.approx(total_j, rel=0, abs=1e-9)
        for partition, left_j in record.battery_j.items():
            assert left_j + spent_j[partition] == pytest.approx(
                initial_j[partition], rel=0, abs=1e-9
            )
        assert set(record.battery_j) == set(range(len(initial_j)))
        assert (spent_j <= initial_j + 1e-9).all()
    assert total_j > 0


@pytest.mark.parametrize(("rule", "energy"), ALLOCATED)
def test_updates_are_what_ran_and_joules_are_what_was_spent(
    rule: str, energy: dict[str, float]
) -> None:
    peers = run_counting(rule, energy)
    check_energy_of_records(peers)
    for record in peers.records:
        for node in record.nodes:
            ran = Counting.ran.get((node.partition, record.round), {})  # none where it is flat
            assert dict(ran) == {m: count for m, count in node.updates.items() if count}
    trained = [n.updates for r in peers.records for n in r.nodes]
    assert any(any(updates.values()) for updates in trained)
    if rule != "sync-only":
        assert any(len(set(updates.values())) > 1 for updates in trained), "not all uniform"


def test_in_a_shared_band_updates_are_what_ran_and_joules_are_what_was_spent() -> None:
    peers = run_counting("max-min", {"battery_share": 0.7}, shared_band_hz=2e6)
    check_energy_of_records(peers)
    ran = {key: sum(count.values()) for key, count in Counting.ran.items() if key[1] <= 4}
    recorded = {
        (n.partition, r.round): sum(n.updates.values()) for r in peers.records for n in r.nodes
    }
    assert ran == recorded and sum(ran.values()) > 0


def test_the_same_seed_gives_the_same_records() -> None:
    first, second = (run_counting("max-min", {"battery_share": 0.5}) for _ in range(2))
    lines = [[json.dumps(r.to_json()) for r in peers.records] for peers in (first, second)]
    assert lines[0] == lines[1]
    assert first.records[0].radio_j > 0 and first.records[0].compute_j > 0


def test_bits_and_seconds_add_up_over_the_rounds() -> None:
    """Every payload once, whoever listens, of 4 bytes a number.

    With 2 speeds, and 128 bytes before the numbers of an array.
    """
    peers = run_peers(THREE, num_rounds=3, energy=make_energy(wireless=STILL))
    bits, seconds = 0.0, 0.0
    for record in peers.records:
        for member in peers.roster.members.values():
            arrays = len(member.blocks) + 1  # the speeds are one
            bits += 8 * 4 * sum(member.blocks.values())
            bits += 8 * (4 * 2 + 128 * arrays)
        seconds += max(n.simulated_s for n in record.nodes)
        assert record.total_bits == bits
        assert record.total_simulated_s == pytest.approx(seconds)
    assert peers.records[0].simulated_s > 0


# Two methods, and one of one's own


class Twice(Learner):
    """Runs its model twice in an iteration: twice the operations of D-PSGD, and nothing else."""

    name = "twice"

    def local_loss(self, batch: Batch) -> Tensor:
        losses = [F.cross_entropy(self.model(batch.inputs), batch.labels) for _ in range(2)]
        return torch.stack(losses).mean()


def test_a_method_of_ones_own_is_billed_for_what_its_loss_does() -> None:
    once = run_peers(THREE, num_rounds=1, energy=make_energy())
    twice = run_peers({**THREE, "method": "twice"}, Twice, num_rounds=1, energy=make_energy())
    for a, b in zip(once.records[0].nodes, twice.records[0].nodes, strict=True):
        assert a.updates == b.updates and set(a.updates.values()) == {2}
        assert b.compute_j == pytest.approx(2 * a.compute_j, rel=1e-9)
        assert b.simulated_s == pytest.approx(2 * a.simulated_s, rel=1e-9)


def test_a_method_of_ones_own_is_allocated_iterations_without_more_code() -> None:
    """Half a battery and max-min: from round 2 the device with both sensors goes by its speeds."""
    energy = make_energy(
        "max-min", energy={"battery_share": 0.5}, wireless={"enabled": True}, most=8, warm_up=1
    )
    config = {**THREE, "method": "twice", "local-iterations": 8}
    peers = run_peers(config, Twice, num_rounds=4, energy=energy)
    check_energy_of_records(peers)
    assert peers.records[-1].accuracy is not None
    both = [r.by_partition[2].updates for r in peers.records]
    assert both[0]["audio"] == both[0]["image"] > 0
    assert any(u["audio"] != u["image"] for u in both[1:])


def test_methods_that_are_compared_get_the_same_batteries(tmp_path: Path) -> None:
    """Half a battery by the prices of D-PSGD; the other method's iterations cost twice as much."""
    config = app_config(
        tmp_path, method="twice", compare_with="dpsgd", num_server_rounds=3, local_iterations=8,
        energy__battery_share=0.5, wireless__enabled=True,
    )  # fmt: skip
    app = FlowerApp({**THREE, **config}, make_server_app(Twice), make_client_app(Twice))
    run_app(app, 3)
    runs = [read_metrics(tmp_path / "x" / name) for name in ("dpsgd", "twice")]
    batteries_j = []
    for lines in runs:
        nodes = lines[0]["nodes"]
        assert [n["partition"] for n in nodes] == [0, 1, 2]
        left_j = [lines[0]["battery_j"][str(k)] for k in range(3)]
        assert all(joules > 0 for joules in left_j)
        spent_j = [n["compute_j"] + n["radio_j"] for n in nodes]
        batteries_j.append([left + spent for left, spent in zip(left_j, spent_j, strict=True)])
    assert batteries_j[0] == pytest.approx(batteries_j[1], rel=1e-9)
    iterations = [
        sum(sum(n["updates"].values()) for line in lines for n in line["nodes"]) for lines in runs
    ]
    assert iterations[1] < 0.7 * iterations[0]


# JSON


def plain(record: RoundRecord) -> dict[str, Any]:
    """Return the record as its line is read again; NaN and infinity are no JSON."""
    line: dict[str, Any] = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert line == record.to_json()
    return line


def test_on_mains_a_line_is_plain_json() -> None:
    peers = run_peers(THREE, num_rounds=2, energy=make_energy(wireless={"enabled": True}))
    for line in map(plain, peers.records):
        assert line["battery_quantiles_j"] is None
        assert line["battery_j"] == {}
        assert line["total_j"] > 0 and line["updates_by_modality"] == {"audio": 2, "image": 2}


def test_a_line_is_plain_json_when_nobody_trains() -> None:
    """sync-only trains in rounds 1 and 3 of 3."""
    energy = make_energy("sync-only")
    peers = run_peers(THREE, num_rounds=3, energy=energy, evaluate_every=1)
    lines = [plain(record) for record in peers.records]
    assert [line["compute_j"] > 0 for line in lines] == [True, False, True]
    assert lines[1]["train_loss"] is lines[1]["balance"] is lines[1]["network_balance"] is None
    assert lines[1]["updates_by_modality"] == {"audio": 0, "image": 0}
    # they exchange all the same: three that are all linked agree after one round without training
    assert lines[0]["consensus_distance"] > 0.1
    assert lines[1]["consensus_distance"] == pytest.approx(0, abs=1e-5)
    assert lines[1]["failed"] == {} and lines[1]["bytes_sent_per_node"] > 0


def test_a_line_is_plain_json_when_a_device_is_parked_or_all_are() -> None:
    """1e-6 J pay for no iteration; without a radio sending is free, so nobody is flat."""
    for batteries_j in ([1.0, 1.0, 1e-6], [1e-6] * 3, [0.0] * 3):
        energy = make_energy(energy={"battery_j": 1.0}, battery_j=batteries_j)
        peers = run_peers(THREE, num_rounds=2, energy=energy)
        for line in map(plain, peers.records):
            assert line["failed"] == {} and len(line["nodes"]) == 3
            assert line["nodes"][2]["updates"] == {"audio": 0, "image": 0}
            assert line["nodes"][2]["compute_j"] == 0 and line["nodes"][2]["balance"] is None
        assert peers.records[-1].accuracy is not None
