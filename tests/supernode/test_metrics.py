"""What a device notes of its rounds, and what Prometheus reads of that."""

import socket
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from helpers import QUICKSTART
from typer.testing import CliRunner

from flwr_dmml.base import machine
from flwr_dmml.base.facts import FILE, FOLDER, read_facts
from flwr_dmml.base.openmetrics import COUNTED_ON_DEVICES, ON_DEVICES, served
from flwr_dmml.cli import app
from flwr_dmml.clients.hosting import learner_with
from flwr_dmml.clients.noting import noting
from flwr_dmml.learning.learner import Learner
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import OwnParts
from flwr_dmml.supernode.metrics import OnDevice, values_of
from flwr_dmml.transport.messages import METRICS, REPORT
from flwr_dmml.transport.traffic import Traffic


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    parts = tmp_path_factory.mktemp("parts")
    cut = ["partition", str(QUICKSTART), "-n", "2", "-o", str(parts / "all")]
    assert CliRunner().invoke(app, [*cut, "--set", "samples-per-node=20"]).exit_code == 0
    run = {"dataset": "parts", "num-nodes": 2, "method": "dpsgd", "num-server-rounds": 9}
    node = {"data-path": str(parts / "all" / "part-001"), "partition-id": 1}
    return learner_with("dpsgd", run, node, OwnParts())


def take_two(learner: Learner, traffic: Traffic, first: int = 1) -> None:
    """Note a message of two rounds; the second has a meter and rejects two letters."""
    told = {"train.loss": 2.0, "test.accuracy": 0.5, "1:train.loss": 1.5}
    metrics = MetricRecord({**told, "1:energy.measured-j": 3.0})
    report = ConfigRecord({"1:rejected": ["2: late", "3: NaN"]})
    with noting() as note:
        plans = [Plan(first, 1, evaluate=True), Plan(first + 1, 1)]
        note.ran(learner, plans, RecordDict({METRICS: metrics, REPORT: report}), traffic)


def test_messages_are_noted_and_summed(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take_two(learner, Traffic())
    assert not list(tmp_path.iterdir()), "only a device of a fleet notes anything"
    monkeypatch.setenv(FOLDER, str(tmp_path))
    traffic = Traffic(Counter({0: 100}), Counter({0: 40}), {0: 1}, 1e9)
    take_two(learner, traffic)
    take_two(learner, traffic, 3)
    with pytest.raises(OSError), noting():
        raise OSError("no\nroom")
    facts = read_facts(tmp_path / FILE)
    assert (facts.method, facts.partition, facts.round, facts.rounds) == ("dpsgd", 1, 4, 9)
    assert (facts.loss, facts.accuracy, facts.joules, facts.rejected) == (1.5, 0.5, 6.0, 4)
    assert facts.received == {0: 200} and facts.sent == {0: 80} and facts.heard == {0: 1}
    assert facts.seconds["letters"] == 2e9 and facts.seconds["work"] >= 0
    assert facts.failures == 1 and facts.error == "OSError: no room"
    assert values_of(facts, facts.time_s + 5)["device_staleness_rounds"] == {"0": 3.0}
    take_two(learner, Traffic(), 1)  # of another run
    facts = read_facts(tmp_path / FILE)
    assert facts.heard == {} and facts.error == "" and facts.failures == 1


def test_they_are_served_as_they_change(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("prometheus_client", reason='needs pip install "flwr-dmml[metrics]"')
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for name, kind, capacity in (("AC", "Mains", "1"), ("BAT0", "Battery", "42")):
        (tmp_path / "power" / name).mkdir(parents=True)
        (tmp_path / "power" / name / "type").write_text(f"{kind}\n")
        (tmp_path / "power" / name / "capacity").write_text(f"{capacity}\n")
    monkeypatch.setattr(machine, "POWER", tmp_path / "power")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def read() -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    with served(OnDevice(tmp_path), "127.0.0.1", port):
        assert not read()
        take_two(learner, Traffic(Counter({0: 100}), Counter({0: 40}), {0: 1}, 2.0))
        found = read()
    own = 'device="1",method="dpsgd",modalities="image"'
    assert found[f"flwr_dmml_device_loss{{{own}}}"] == 1.5
    assert found[f"flwr_dmml_device_battery_charge{{{own}}}"] == 0.42
    assert found[f"flwr_dmml_device_measured_joules_total{{{own}}}"] == 3.0
    phase = 'device="1",method="dpsgd",modalities="image",phase="letters"'
    assert found[f"flwr_dmml_device_seconds_total{{{phase}}}"] == 2.0
    neighbour = 'device="1",method="dpsgd",modalities="image",neighbour="0"'
    assert found[f"flwr_dmml_device_neighbour_received_bytes_total{{{neighbour}}}"] == 100
    names = {name.partition("{")[0] for name in found}
    wanted = {f"flwr_dmml_{n}" for n in ON_DEVICES}
    assert names == wanted | {f"flwr_dmml_{n}_total" for n in COUNTED_ON_DEVICES}


def test_a_damaged_file_is_named_and_nothing_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / FILE).write_text('{"round": -1}')
    assert read_facts(tmp_path / FILE).round == 0
    assert "facts.json cannot be read, and begins anew" in caplog.text
    caplog.clear()
    assert read_facts(tmp_path / "none").round == 0 and not caplog.text
