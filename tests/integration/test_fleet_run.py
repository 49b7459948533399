"""examples/fleet under Flower's deployment engine: a SuperLink and devices, on this machine."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fleet_helpers import (
    FLEET,
    NODES,
    PROGRAMS,
    SETTINGS,
    cut_parts,
    environment,
    free_port,
    learned,
    running,
    wait_for_port,
)
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.tracking.events import read_events

CONNECTION = """[superlink]
default = "fleet"

[superlink.fleet]
address = "127.0.0.1:{port}"
insecure = true
"""
Run = Callable[..., bytes]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "parts"
    cut_parts(folder)
    return folder


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, with the devices' states in it."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def fleet_run(parts: Path, states: Path) -> Iterator[Run]:
    """Run examples/fleet; returns the metrics file. A SuperNode knows its part's folder only."""
    folder = states
    port = free_port()
    variables = environment(folder / "flwr")
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(CONNECTION.format(port=port))
    log = folder / "superlink.log"
    superlink = [
        str(PROGRAMS / "flower-superlink"), "--insecure", "--host", "127.0.0.1",
        "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip

    def run(name: str, **settings: Any) -> bytes:
        config = {**SETTINGS, "run-dir": str(folder), "run-name": name, **settings}
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), "run", str(FLEET), "fleet", "--stream", "-c", given],
            env=variables, cwd=folder, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
        metrics = folder / name / "dmml-kd" / "metrics.jsonl"
        assert metrics.exists(), done.stdout + done.stderr + logs
        return metrics.read_bytes()

    with ExitStack() as stack:
        stack.enter_context(running(superlink, variables, log))
        wait_for_port(port, log)
        for node in range(NODES):
            own = parts / f"part-{node:03d}"
            config = f"data-path='{own}' direct-address='127.0.0.1:{free_port()}'"
            config += f" state-dir='{folder / f'state{node}'}'"
            command = [
                str(PROGRAMS / "flwr-dmml"), "fleet", "device", "--run-dir", f"{folder}/run{node}",
                "--", "--insecure", "--superlink", f"127.0.0.1:{port}",
                "--port", str(free_port()), "--node-config", config,
            ]  # fmt: skip
            stack.enter_context(running(command, variables, folder / f"node{node}.log"))
        yield run
        check_zygotes(folder)


def check_zygotes(folder: Path) -> None:
    """Every message was served by a zygote, and the waits of Flower's were replaced."""
    for node in range(NODES):
        said = (folder / f"node{node}.log").read_text()
        begun, _, ran = said.partition("The zygote is ready")
        assert "Start `flwr-clientapp` process" not in begun
        assert ran.count("Start `flwr-clientapp` process") >= 3, said  # hello, rounds, closing
        for never in ("no zygote answers", "The zygote has ended", "Flower's own", "killed"):
            assert never not in said, said


def simulated(parts: Path, folder: Path, **settings: Any) -> bytes:
    """Return the metrics file of the same run in one process."""
    sets = {**SETTINGS, "run-dir": str(folder), "run-name": "here", "data-path": str(parts)}
    sets |= settings
    command = ["simulate", str(FLEET), "--workers", "0"]
    command += [part for k, v in sets.items() for part in ("--set", f"{k}={v}")]
    assert CliRunner().invoke(app, command).exit_code == 0
    return (folder / "here" / "dmml-kd" / "metrics.jsonl").read_bytes()


def test_a_fleet_trains_on_its_own_parts(fleet_run: Run, states: Path, parts: Path, tmp_path: Path):
    """The metrics file is that of ``simulate``, byte for byte, and so are the models."""
    expected = simulated(parts, tmp_path)
    assert fleet_run("relayed") == expected
    assert expected.count(b"\n") == SETTINGS["num-server-rounds"]
    check_kept(tmp_path / "here", states)


def check_kept(run: Path, states: Path) -> None:
    """Every device has kept what the simulation has of it, beside its state, and nobody else."""
    for node in range(NODES):
        (found,) = (states / f"state{node}" / "models").glob("run-*/dmml-kd")
        kept = {file.name: file.read_bytes() for file in found.iterdir()}
        expected = sorted((run / "dmml-kd" / "models").glob(f"device-{node:03d}.*"))
        assert kept == {file.name: file.read_bytes() for file in expected} and len(kept) == 2
    assert not list(states.glob("*/dmml-kd/models"))


def test_letters_give_the_numbers_of_the_relay(fleet_run: Run, parts: Path, tmp_path: Path):
    """Three rounds in two messages (2 and 1), from device to device, in fewer bytes."""
    pytest.importorskip("zenoh", reason='devices need pip install "flwr-dmml[direct]" for that')
    fewer = {"num-server-rounds": 3, "exchange.precision": "int8", "exchange.top-k": 0.5}
    peer = {"exchange.transport": "direct", "exchange.rounds-per-message": 2}
    direct = fleet_run("direct", **fewer, **peer)
    assert learned(direct) == learned(simulated(parts, tmp_path, **fewer))
    lines = [json.loads(line) for line in direct.splitlines()]
    sent = [[node["bytes_sent"] for node in line["nodes"]] for line in lines]
    assert all(20_000 < size < 100_000 for line in sent for size in line), sent
    assert not any(line["failed"] for line in lines)


def test_devices_that_do_not_wait_do_all_rounds_together(fleet_run: Run, states: Path):
    """Three rounds of three devices, two in a message: nobody fails, letters are mixed."""
    pytest.importorskip("zenoh", reason='devices need pip install "flwr-dmml[direct]" for that')
    own = {"rounds": "async", "exchange.transport": "direct", "exchange.rounds-per-message": 2}
    metrics = fleet_run("own-pace", **own, **{"num-server-rounds": 3, "exchange.timeout-s": 60.0})
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert not any(line["failed"] for line in lines)
    assert all(node["accuracy"] is not None for node in lines[-1]["nodes"])
    events = read_events(states / "own-pace" / "dmml-kd" / "events.jsonl")
    assert len(events) == 3 * NODES and {event.device for event in events} == {*range(NODES)}
    assert lines[-1]["consensus_distance"] > 0  # at the end all have mixed
