"""A run's metrics as Prometheus reads them, over HTTP; and the dashboard that shows them."""

import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from helpers import QUICKSTART, ROOT
from helpers_resume import SMALL

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.openmetrics import (
    COUNTED,
    COUNTED_ON_DEVICES,
    OF_DEVICES,
    OF_THE_RUN,
    ON_DEVICES,
    PREFIX,
)
from flwr_dmml.engine import load_app, run_app
from flwr_dmml.tracking import NodeResult, RoundRecord
from flwr_dmml.tracking.openmetrics import exposed

pytest.importorskip("prometheus_client", reason='needs pip install "flwr-dmml[metrics]"')
ALL = {f"{PREFIX}_{n}" for n in (*OF_THE_RUN, *OF_DEVICES, *ON_DEVICES)} | {
    f"{PREFIX}_{n}_total" for n in (*COUNTED, *COUNTED_ON_DEVICES)
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read(port: int) -> dict[str, float]:
    """Return what is served: the value of each series, by its name with its labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


def record(server_round: int, accuracy: float | None) -> RoundRecord:
    nodes = {
        0: NodeResult(0, "audio", train_loss=1.0, accuracy=accuracy, bytes_sent=100),
        1: NodeResult(1, "audio+image", train_loss=2.0, bytes_sent=50, rejected=1),
    }
    failed = {2: 'gone "away"\n'}
    if server_round == 2:
        failed[1] = "late"
        del nodes[1]
    phases = {"planning": 0.5, "devices": 2.0}
    kept = {"battery_j": {0: 4.0}, "total_j": 6.5, "phases": phases}
    return RoundRecord(server_round, nodes, failed=failed, **kept)


def test_what_is_served_by_hand():
    port = free_port()
    with exposed("127.0.0.1", port) as (tracker,):
        tracker.run_started("dmml-kd", 9, ["audio", "audio+image", "image"])
        tracker.round_ended(record(1, 0.5))
        tracker.round_ended(record(2, None))
        found = read(port)
        run, device = '{method="dmml-kd"}', 'device="0",method="dmml-kd",modalities="audio"'
        assert found[f"flwr_dmml_round{run}"] == 2 and found[f"flwr_dmml_rounds{run}"] == 9
        assert found[f"flwr_dmml_accuracy{run}"] == 0.5, "of the last round that was evaluated"
        assert found[f"flwr_dmml_loss{run}"] == 1.0 and found[f"flwr_dmml_joules_total{run}"] == 6.5
        assert found[f"flwr_dmml_failed_devices{run}"] == 2
        waits = 'method="dmml-kd",phase="devices"'
        assert found[f"flwr_dmml_seconds_total{{{waits}}}"] == 4.0
        assert found[f"flwr_dmml_device_bytes_sent_total{{{device}}}"] == 200
        assert found[f"flwr_dmml_device_battery_joules{{{device}}}"] == 4.0
        other = 'device="2",method="dmml-kd",modalities="image"'
        assert found[f"flwr_dmml_device_failures_total{{{other}}}"] == 2
        late = 'device="1",method="dmml-kd",modalities="audio+image"'
        assert found[f"flwr_dmml_device_missed_rounds{{{late}}}"] == 1
        assert found[f"flwr_dmml_device_missed_rounds{{{device}}}"] == 0
        tracker.run_started("dpsgd", 3, ["audio"])
        assert not [name for name in read(port) if "dmml-kd" in name]
    with pytest.raises(OSError):
        read(port)


def test_a_port_that_is_taken_is_one_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = f"metrics-port = {port}: Address already in use"
        with pytest.raises(SettingsError, match=wanted), exposed("127.0.0.1", port):
            pass


def test_nothing_listens_unless_it_is_asked_for():
    with exposed("127.0.0.1", 0) as shown:
        assert shown == []


def test_a_run_serves_them_while_it_goes_on(tmp_path: Path):
    port, seen = free_port(), list[dict[str, float]]()

    class Looking:
        def run_started(self, *given: object) -> None: ...
        def round_ended(self, record: RoundRecord) -> None:
            seen.append(read(port))

    settings = {**SMALL, "num-server-rounds": 2, "metrics-port": port, "run-dir": str(tmp_path)}
    run_app(load_app(QUICKSTART), 4, settings, workers=0, trackers=[Looking()])
    rounds = [found['flwr_dmml_round{method="dmml-kd"}'] for found in seen]
    assert rounds == [1, 2]
    phases = {name: value for name, value in seen[-1].items() if "_seconds_total" in name}
    assert [*phases.values()] and min(phases.values()) > 0
    assert {re.findall(r'phase="(\w+)"', name)[0] for name in phases} == {
        "planning", "devices", "checkpoint"
    }  # fmt: skip


def test_the_dashboard_asks_for_what_there_is():
    text = (ROOT / "docs" / "assets" / "grafana.json").read_text()
    asked = {
        name for e in _expressions(json.loads(text)) for name in re.findall(rf"{PREFIX}_\w+", e)
    }
    assert asked and asked <= ALL, asked - ALL
    assert {f"{PREFIX}_accuracy", f"{PREFIX}_joules_total"} <= asked


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
