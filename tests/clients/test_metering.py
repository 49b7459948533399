"""Measured joules in whole runs: real devices of the in-process engine, real files for a meter.

The learner of these tests draws, in every round, so many times the joules that the model gives to
what it has trained, by adding them to the counter of a powercap zone as the kernel would.
"""

import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pytest
from flwr.common.config import parse_config_args
from helpers import FAST, make_learner, run_peers
from helpers_direct import Shelf
from helpers_direct import plan as plan_alone
from helpers_fleet import TWO
from helpers_meters import ina3221, zone

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD, make_client_app, metering
from flwr_dmml.clients.direct import run_directly
from flwr_dmml.energy.costs import FleetCosts, Work
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.energy.equipment import Equipment
from flwr_dmml.energy.ledger import Ledger
from flwr_dmml.energy.options import EnergyOptions
from flwr_dmml.engine import FlowerApp, InProcessGrid, run_app, server_identity
from flwr_dmml.fleet import FleetError, read_fleet
from flwr_dmml.fleet.quoting import node_config
from flwr_dmml.fleet.scripts import device_config
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.report.reading import read_run
from flwr_dmml.report.summary import headline
from flwr_dmml.settings import Settings
from flwr_dmml.strategies import PeerStrategy, RunStoppedError, make_server_app
from flwr_dmml.strategies.app import report
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.energy.measured import MeasuredPrices, read_meter
from flwr_dmml.strategies.logbook import Logbook
from flwr_dmml.strategies.member import Member
from flwr_dmml.strategies.replies import Account

THREE: dict[str, Any] = {
    **FAST, "method": "drawing", "modality-pattern": "audio+image", "num-nodes": 3,
    "local-iterations": 20, "energy.meter": "auto",
}  # fmt: skip
ROUNDS = 5
CLOSING_J = 1e-4  # what every device draws in the closing work


class Drawing(DPSGD):
    """D-PSGD that draws power: ``ratio`` joules for each that is modelled, by device."""

    name = "drawing"
    counter: ClassVar[Path]  # of a powercap zone
    ratio: ClassVar[dict[int, float]] = {}
    breaks: ClassVar[tuple[int, int]] = (0, 0)  # round in which device 0's counter goes, and comes

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        me, gone = self.partition.partition_id, self.counter.with_name("gone")
        if (plan.server_round, me) == (self.breaks[0], 0):
            self.counter.rename(gone)
        if (plan.server_round, me) == (self.breaks[1], 0):
            gone.rename(self.counter)
        if self.counter.exists():
            costs = FleetCosts.of([PROFILES["raspberry-pi-4"]], {0: measure_work(self)})
            tau = np.array([[plan.by_modality.get(m, 0) for m in costs.modalities]])
            joules = costs.bill(tau, self.settings.stagger_share)[0][0] * self.ratio.get(me, 1.0)
            joules += CLOSING_J * (plan.iterations == 0)
            now_uj = int(self.counter.read_text())
            self.counter.write_text(f"{now_uj + round(joules * 1e6)}\n")
        return outcome


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the devices a sysfs with one powercap zone, and let no one draw more than modelled."""
    root = tmp_path / "sys"
    Drawing.counter = zone(root, "intel-rapl:0", "package-0", 1_000_000) / "energy_uj"
    monkeypatch.setattr(Drawing, "ratio", {})
    monkeypatch.setattr(Drawing, "breaks", (0, 0))
    monkeypatch.setattr(metering, "SYSFS", root)
    return root


def draw(
    config: dict[str, Any] | None = None, *, num_rounds: int = ROUNDS, **energy: Any
) -> PeerStrategy:
    """Run three devices without a radio, by default with half of what 20 iterations take."""
    options = EnergyOptions(**({"battery_share": 0.5} | energy))
    constrained = EnergyConstrained(Settings(local_iterations=20, energy=options))
    given = {**THREE, **(config or {})}
    return run_peers(given, Drawing, num_rounds=num_rounds, energy=constrained)


def iterations(peers: PeerStrategy, node: int) -> list[int]:
    return [r.by_partition[node].updates.get("audio", 0) for r in peers.records]


def table(peers: PeerStrategy, field: str, node: int) -> list[Any]:
    return [getattr(r.by_partition[node], field) for r in peers.records]


# Batteries


def test_a_device_that_takes_twice_the_joules_gets_less_than_half_the_iterations(
    sysfs: Path,
) -> None:
    """B pays for 10 iterations in each of 5 rounds. Device 0 draws double from the first on.

    Round 1: 10 iterations for 20 units of 50. The other 30 are spread over 4 rounds: 7.5, of which
    an iteration takes 2, so 3 (6 units). Then 24/3 = 8: 4, but for the counter's rounding to 1 uJ.
    """
    Drawing.ratio[0] = 2.0
    peers = draw()
    assert iterations(peers, 1) == iterations(peers, 2) == [10] * ROUNDS
    mine = iterations(peers, 0)
    assert mine[:2] == [10, 3] and all(3 <= n <= 5 for n in mine[2:])
    battery_j = peers.planner.energy.battery_j[0]
    measured_j = table(peers, "measured_j", 0)
    assert 0.9 * battery_j < sum(measured_j) <= battery_j
    left_j = battery_j - np.cumsum(measured_j)
    measured_j[-1] -= CLOSING_J
    held_j = [r.battery_j[0] for r in peers.records]
    np.testing.assert_allclose(held_j, left_j, rtol=0, atol=1e-12)
    assert measured_j[0] == pytest.approx(2 * table(peers, "compute_j", 0)[0], abs=1e-6)
    np.testing.assert_allclose(measured_j[1:], table(peers, "compute_j", 0)[1:], rtol=2e-3)
    ledger = peers.planner.energy.ledger
    np.testing.assert_allclose(ledger.spent_j() + ledger.remaining_j, ledger.initial_j, atol=1e-12)


def test_a_device_that_takes_half_the_joules_gets_more_iterations(sysfs: Path) -> None:
    """Of 50 units 5 go in round 1; 45/4 = 11.25 pay for 22 at half price, of which 20 are let."""
    Drawing.ratio[0] = 0.5
    assert iterations(draw(), 0) == [10, 20, 20, 20, 20]


def test_flat_means_flat(sysfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """20 times the joules: round 1 alone takes 200 units of 50. The books end at 0, not below."""
    Drawing.ratio[0] = 20.0
    peers = draw()
    assert iterations(peers, 0) == [10, 0, 0, 0, 0]
    assert [r.battery_j[0] for r in peers.records] == [0.0] * ROUNDS
    assert [sorted(r.failed) for r in peers.records] == [[], *[[0]] * (ROUNDS - 1)]
    said = [r.getMessage() for r in caplog.records if "leaves" in r.getMessage()]
    expected = "Round 2: node 0 leaves: its battery holds 0 J, by its meter nothing is free"
    assert said == [expected]
    assert iterations(peers, 1) == [10] * ROUNDS


def test_on_mains_power_only_the_books_change(sysfs: Path) -> None:
    Drawing.ratio[0] = 3.0
    metered = draw(num_rounds=3, battery_share=0.0)
    plain = draw({"energy.meter": "model"}, num_rounds=3, battery_share=0.0)
    for with_meter, without in zip(metered.records, plain.records, strict=True):
        for a, b in zip(with_meter.nodes, without.nodes, strict=True):
            same = ("updates", "train_loss", "accuracy", "disagreement", "simulated_s", "speed")
            assert [getattr(a, f) for f in same] == [getattr(b, f) for f in same]
        assert with_meter.battery_j == {}
    mine, ones = (table(peers, "compute_j", 0) for peers in (metered, plain))
    assert mine[0] == ones[0]
    np.testing.assert_allclose(mine[1:], 3 * np.array(ones[1:]), rtol=1e-4)
    total_j = metered.records[-1].total_measured_j
    assert total_j == pytest.approx(5 * sum(ones) + 3 * CLOSING_J, rel=1e-4)  # 3 + 1 + 1
    assert plain.records[-1].total_measured_j is None


# What is written down


def test_without_meters_nothing_is_written_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``auto`` on boards without a sensor: the same records as the model's, and it is said."""
    monkeypatch.setattr(metering, "SYSFS", tmp_path)
    Drawing.counter = tmp_path / "none"
    lines = [
        [json.dumps(r.to_json()) for r in draw({"energy.meter": meter}, num_rounds=2).records]
        for meter in ("auto", "model")
    ]
    assert lines[0] == lines[1] and "measured" not in "".join(lines[0])
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Joules of")]
    assert len(said) == 1
    assert said[0].startswith("Joules of node 0, 1, 2 are modelled, for want of a meter: powercap:")
    assert f"{tmp_path}/class/powercap: no RAPL package" in said[0]


def test_measured_joules_are_in_records_log_and_table(
    sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Drawing.ratio[0] = 2.0
    peers = draw(num_rounds=2)
    last = peers.records[-1].to_json()
    assert all(n["measured_j"] > CLOSING_J / 2 and n["measured_s"] > 0 for n in last["nodes"])
    total_j = sum(n.measured_j or 0.0 for r in peers.records for n in r.nodes)
    assert last["total_measured_j"] == pytest.approx(total_j, rel=1e-12)
    report(Settings(method="drawing"), {"drawing": peers.records[-1]}, {})
    text = caplog.text
    assert "Joules of node 0, 1, 2 are measured by powercap: Processor energy from the" in text
    assert f"meters counted {total_j:.3g} J of computing" in text
    assert "joules measured, computing" in text and f"{total_j:.4g}" in text


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return a run's lines without the seconds on the wall."""
    found = [json.loads(x) for x in (run / "drawing/metrics.jsonl").read_text().splitlines()]
    for line in found:
        for node in line["nodes"]:
            assert node.pop("measured_s") > 0
    return found


def test_a_resumed_run_plans_as_if_never_stopped(sysfs: Path, tmp_path: Path) -> None:
    Drawing.ratio.update({0: 2.0, 1: 0.7})
    config = {
        **THREE, "run-dir": str(tmp_path), "num-server-rounds": ROUNDS, "wireless.enabled": True,
        "energy.battery-share": 0.5, "evaluate-every": 1, "allocation.rule": "max-min",
    }  # fmt: skip

    def run(name: str, stop_after: int = 0, resume: str = "") -> Path:
        app = FlowerApp(config, make_server_app(Drawing), make_client_app(Drawing))
        asked = iter(range(1, 100))
        given = {**config, "run-name": name, "resume": resume}
        run_app(app, 3, given, stopping=lambda: next(asked) == stop_after)
        return tmp_path / name

    whole = lines_of(run("whole"))
    with pytest.raises(RunStoppedError, match="after round 3"):
        run("stopped", stop_after=3)
    run("", resume="stopped")
    assert lines_of(tmp_path / "stopped") == whole
    updates = [line["nodes"][0]["updates"]["audio"] for line in whole]
    assert updates[1] < 0.5 * updates[0]
    ((_, cards),) = headline(read_run(tmp_path / "stopped"))
    assert ("joules measured, computing", f"{whole[-1]['total_measured_j']:.4g}") in cards


# Meters that fail


def test_a_meter_that_breaks_is_named_once_and_its_joules_are_the_models(
    sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The counter goes while device 0 works on round 2, and comes back while it does on round 4.

    Device 0 fails at the end of round 2, then at the beginning; the others at the beginning.
    """
    Drawing.ratio[0], Drawing.breaks = 2.0, (2, 4)
    peers = draw()
    measured = [[x is not None for x in table(peers, "measured_j", k)] for k in (0, 1)]
    assert measured == [
        [True, False, False, False, True],
        [True, False, False, True, True],
    ]
    said = [r for r in caplog.records if "meter fails" in r.getMessage()]
    assert [r.levelname for r in said] == ["WARNING"] * 3
    first, second, _ = (r.getMessage() for r in said)
    start = "Round 2: node 0's meter fails, its joules are the model's for now: powercap: "
    assert first.startswith(f"{start}{sysfs}/class/powercap/intel-rapl:0/energy_uj: No such file")
    assert second.startswith("Round 2: node 1's meter fails")
    again = [r.getMessage() for r in caplog.records if "read again" in r.getMessage()]
    assert again == [
        "Round 4: node 1's meter is read again",
        "Round 4: node 2's meter is read again",
        "Round 5: node 0's meter is read again",
    ]
    held_j = [r.battery_j[0] for r in peers.records]
    billed_j = table(peers, "compute_j", 0)  # at the price that was last measured
    np.testing.assert_allclose(-np.diff(held_j)[:3], billed_j[1:4], rtol=1e-9)
    assert 0 < billed_j[1] < 0.8 * billed_j[0] * 2


def test_the_sampling_of_a_jetsons_rails_ends_with_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 W are drawn: joules are 5 times the seconds that the meter was open, or a little more."""
    ina3221(tmp_path)
    monkeypatch.setattr(metering, "SYSFS", tmp_path)
    Drawing.counter = tmp_path / "none"
    peers = draw(num_rounds=2, battery_share=0.0)
    for line in (n for r in peers.records for n in r.nodes):
        assert line.measured_j is not None and line.measured_s is not None
        assert 0.9 * 5 * line.measured_s < line.measured_j
    for thread in threading.enumerate():
        if thread.name == "ina-meter":
            thread.join(timeout=10)
            assert not thread.is_alive()


# What a node config says


def run_nodes(own: dict[int, dict[str, Any]], **energy: Any) -> PeerStrategy:
    """Run one round of three devices with node configs of their own."""
    grid = InProcessGrid(make_client_app(Drawing), 3, THREE)
    for node, (_, simulated) in enumerate(sorted(grid._nodes.items())):
        simulated.config.update(own.get(node, {}))
    settings = Settings(local_iterations=20, energy=EnergyOptions(**energy))
    peers = PeerStrategy(
        make_topology("ring"),
        num_nodes=3,
        method="drawing",
        local_iterations=20,
        energy=EnergyConstrained(settings),
    )
    with server_identity(1):
        peers.start(grid, num_rounds=1, timeout=60)
    return peers


def test_a_device_is_what_its_node_config_says(sysfs: Path) -> None:
    """A Pi 5: 6.9 W at 2.4 GHz, so kappa f^2 is 6.9/2.4 to 3.4/1.8 of a Pi 4's, 1.522."""
    own = {0: {"profile": "raspberry-pi-5", "battery-j": 7, "meter": "none"}}
    peers = run_nodes(own, battery_j=50.0)
    node, other = (peers.records[0].by_partition[k] for k in (0, 1))
    assert node.compute_j == pytest.approx(other.compute_j * (6.9 / 2.4) / (3.4 / 1.8), rel=1e-9)
    assert node.measured_j is None and other.measured_j is not None
    held_j = peers.records[0].battery_j
    assert held_j[0] == pytest.approx(7 - node.compute_j, abs=1e-9)
    assert held_j[1] == pytest.approx(50 - other.measured_j, abs=1e-9)


def test_on_mains_power_there_is_no_battery(sysfs: Path) -> None:
    peers = run_nodes({0: {"battery-j": 7.0}})
    assert peers.records[0].battery_j == {}
    assert iterations(peers, 0) == iterations(peers, 1) == [20]


WRONG = [
    ({"profile": "pi"}, "profile = 'pi': allowed: raspberry-pi-3, raspberry-pi-4"),
    ({"battery-j": -1.0}, "battery-j = -1.0: must be from 0 to 1e+06 J"),
    ({"battery-j": float("nan")}, "battery-j = nan: must be from 0 to 1e+06 J"),
    ({"battery-j": "full"}, "battery-j = 'full': must be a number of joules"),
    ({"battery-j": True}, "battery-j = True: must be a number of joules"),
    ({"meter": "powercap"}, "meter = 'powercap': allowed: auto, none"),
]


@pytest.mark.parametrize(("own", "expected"), WRONG)
def test_a_wrong_node_config_is_refused_by_the_device(
    own: dict[str, Any], expected: str, sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SettingsError, match="node config: "):
        metering.equipment_of(own, Settings())
    grid = InProcessGrid(make_client_app(Drawing), 3, THREE)
    next(iter(grid._nodes.values())).config.update(own)
    peers = PeerStrategy(make_topology("complete"), num_nodes=3, method="drawing")
    with server_identity(1):
        peers.start(grid, num_rounds=1, timeout=60)
    assert f"SettingsError: node config: {expected}" in caplog.text
    assert sorted(peers.roster.members) == [1, 2]


def test_a_fleets_file_says_what_a_device_has(tmp_path: Path) -> None:
    """From fleet.toml through Flower's own reading of a node config to the device."""
    text = TWO.replace("[[device]]", '[[device]]\nbattery-j = 5000\nmeter = "none"', 1)
    (tmp_path / "fleet.toml").write_text(text.replace("raspberry-pi-4", "phone"))
    fleet = read_fleet(tmp_path / "fleet.toml")
    own, other = (
        parse_config_args([node_config(device_config(fleet, device))]) for device in fleet.devices
    )
    settings = Settings(energy=EnergyOptions(meter="auto"))
    told = Equipment("phone", 5000.0, "model", "its node config says meter = 'none'")
    assert metering.equipment_of(own, settings) == told
    assert metering.measures(other, settings) and not metering.measures(other, Settings())
    (tmp_path / "fleet.toml").write_text(text.replace('"none"', '"ina"'))
    with pytest.raises(FleetError, match="device pi-1: meter = 'ina': Input should be 'auto' or"):
        read_fleet(tmp_path / "fleet.toml")


# Several rounds in a message


def test_devices_that_write_to_each_other_measure_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ina3221(tmp_path)
    monkeypatch.setattr(metering, "SYSFS", tmp_path)
    learner = make_learner({**FAST, "num-nodes": 3, "method": "dpsgd", "energy.meter": "auto"})
    rounds = [plan_alone(t, learner, ()) for t in (1, 2)]
    for own, expected in (({}, True), ({"meter": "none"}, False)):
        outcomes, _ = run_directly(learner, rounds, {}, Shelf({}), "7", {}, own)
        measured = [o.metrics.get(metering.MEASURED_J, 0.0) > 0 for o in outcomes]
        assert measured == [expected] * 2 and not any(o.meter_problem for o in outcomes)


def test_rounds_planned_at_once_are_booked_one_by_one() -> None:
    """10 J, two rounds of 1 iteration of 0.34 J, measured 1.34 and 0.14: 1 J more, 0.2 J less."""
    work = Work(7.2e8, {"audio": 7.2e8})
    meter = Equipment(meter="ina", about_meter="x")
    members = {k: Member(k, k, ("audio",), {}, 0, {}, {}, 9, work, equipment=meter) for k in (0, 1)}
    options = EnergyOptions(battery_j=10.0, meter="auto")
    energy = EnergyConstrained(Settings(local_iterations=1, energy=options))
    energy.begin({0: work, 1: work}, 2, 4, equipment={0: meter, 1: meter})
    logbook = Logbook(members, 4, (), energy)
    for t in (1, 2):
        logbook.open(t)
        logbook.budget(energy.plan(t, nx.path_graph(2), [0, 1], np.zeros(2), {}))
    told = [{metering.MEASURED_J: joules, metering.MEASURED_S: 2.0} for joules in (1.34, 0.14)]
    for position, metrics in enumerate(told):
        logbook.mixed(position, 0, Account(metrics))
    first, second = logbook.records
    assert [r.battery_j[0] for r in logbook.records] == pytest.approx([8.66, 8.52], abs=1e-12)
    assert [r.battery_j[1] for r in logbook.records] == pytest.approx([9.66, 9.32], abs=1e-12)
    assert (first.total_measured_j, second.total_measured_j) == pytest.approx((1.34, 1.48))
    assert energy.ledger.remaining_j[0] == pytest.approx(8.52, abs=1e-12)
    assert energy.prices.factor[0] == pytest.approx(1.48 / 0.68, rel=1e-12)
    assert first.by_partition[1].measured_j is None


@pytest.mark.parametrize("joules", [-1.0, float("nan"), float("inf"), 1e12])
def test_joules_that_cannot_be_are_not_booked(joules: float) -> None:
    found = read_meter({metering.MEASURED_J: joules})
    assert found.problem == f"it counted {joules} J in 0.0 s"


# By hand


def test_a_ledger_is_corrected_by_hand() -> None:
    """10 J each, 4 charged. +3: 3 left. +9: all of it, 6. -3: 9 left. -5: what was charged, 4."""
    ledger = Ledger([10.0] * 4)
    ledger.charge("compute", 4.0)
    np.testing.assert_array_equal(ledger.correct("compute", [3, 9, -3, -5]), [3, 6, -3, -4])
    np.testing.assert_array_equal(ledger.remaining_j, [3, 0, 9, 10])
    np.testing.assert_array_equal(ledger.spent_j(), [7, 10, 1, 0])


def test_what_a_correction_gives_back_must_fit_in() -> None:
    """Charged 4 of 10 and refilled by 3: there is room for 1."""
    ledger = Ledger([10.0])
    ledger.charge("compute", 4.0)
    ledger.harvest(3.0)
    np.testing.assert_array_equal(ledger.correct("compute", -2.0), [-1])
    np.testing.assert_array_equal(ledger.remaining_j, [10])


def prices(expected: bool = True) -> MeasuredPrices:
    """Return prices of two Pis: 7.2 GFLOP in a second, 3.4 J, an iteration."""
    work = Work(7.2e9, {"audio": 7.2e9})
    costs = FleetCosts.of([PROFILES["raspberry-pi-4"]] * 2, {0: work, 1: work})
    return MeasuredPrices(costs, [""] * 4, 10, expected=expected)


def test_a_price_is_the_ratio_of_sums_by_hand() -> None:
    """34 J modelled, 51 measured: 1.5. Then 3 iterations at 5.1 J, 10.2 modelled, measured 37.4.

    So 88.4/44.2 = 2. A round without training has no model, and leaves it.
    """
    found = prices()
    tau = np.array([[10], [10]])
    billed_j, seconds = found.bill(1, tau, 0.0)
    np.testing.assert_allclose(billed_j, [34, 34], rtol=1e-12)
    np.testing.assert_allclose(found.measured(1, {0: 51.0}), [17, 0], rtol=1e-12)
    np.testing.assert_allclose(found.factor, [1.5, 1.0], rtol=1e-12)
    np.testing.assert_allclose(found.full_j, [51, 34], rtol=1e-12)
    billed_j, _ = found.bill(2, np.array([[3], [3]]), 0.0)
    np.testing.assert_allclose(billed_j, [15.3, 10.2], rtol=1e-12)
    np.testing.assert_allclose(found.measured(2, {0: 37.4}), [22.1, 0], rtol=1e-12)
    np.testing.assert_allclose(found.factor, [2, 1], rtol=1e-12)
    found.bill(3, np.array([[0], [0]]), 0.0)
    np.testing.assert_array_equal(found.measured(3, {0: 5.0}), [5, 0])
    np.testing.assert_allclose(found.factor, [2, 1], rtol=1e-12)
    np.testing.assert_array_equal(found.measured(5, {0: 2.0}), [2, 0])  # the closing work
    assert found.metered.tolist() == [True, False]
    np.testing.assert_array_equal(found.bill(4, tau, 0.0)[1], seconds)
    again = prices()
    again.load_state(json.loads(json.dumps(found.state())))
    np.testing.assert_array_equal(again.factor, found.factor)
    np.testing.assert_array_equal(again.bill(4, tau, 0.0)[0], found.bill(4, tau, 0.0)[0])


def test_scaled_prices_by_hand() -> None:
    work = Work(7.2e9, {"audio": 3.6e9}, per_round=7.2e8, in_phase={"labels": 7.2e8})
    pis = [PROFILES["raspberry-pi-4"]] * 2
    before = FleetCosts.of(pis, {0: work, 1: work})
    after = before.scaled(np.array([2.0, 1.0]))
    for phase, own_j in (("", 0.34), ("labels", 0.68)):
        own = after.own_work(phase)
        np.testing.assert_allclose(own.energy_j[:, 0], [2 * own_j, own_j], rtol=1e-12)
        np.testing.assert_array_equal(own.time_s, before.own_work(phase).time_s)
    np.testing.assert_allclose(after.joint.energy_j[:, 0], [6.8, 3.4], rtol=1e-12)
    np.testing.assert_allclose(after.solo.energy_j[:, 0], [3.4, 1.7], rtol=1e-12)
    np.testing.assert_array_equal(after.planning.time_s, before.planning.time_s)


def test_a_counter_that_stands_still_makes_nothing_free() -> None:
    found = prices()
    found.bill(1, np.array([[10], [10]]), 0.0)
    np.testing.assert_allclose(found.measured(1, {0: 0.0}), [-34, 0], rtol=1e-12)
    np.testing.assert_array_equal(found.factor, [1, 1])


def test_several_rounds_planned_at_once_are_compared_with_their_own_bills() -> None:
    """Rounds 1 and 2 are billed 34 J before either is measured, at 68 J: twice, in both."""
    found = prices()
    for t in (1, 2):
        found.bill(t, np.array([[10], [10]]), 0.0)
    for t in (1, 2):
        np.testing.assert_allclose(found.measured(t, {0: 68.0}), [34, 0], rtol=1e-12)
        np.testing.assert_allclose(found.factor, [2, 1], rtol=1e-12)
