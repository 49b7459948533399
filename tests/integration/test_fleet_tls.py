"""A fleet as ``flwr-dmml fleet`` prepares it: TLS, registered devices only, its own scripts."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from click.testing import Result
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

TOP = """name = "lab"
device-dir = "{folder}/devices/{{name}}"
venv = "{venv}"
[superlink]
host = "127.0.0.1"
port = {port}
"""
DEVICE = """[[device]]
name = "pi-{number}"
address = "127.0.0.1"
direct-port = {peer}
runtime-port = {runtime}
data-path = "{data}"
profile = "raspberry-pi-4"
"""
ENCRYPTED = {**SETTINGS, "exchange.sealed": True, "checkpoint-every": 2}


def fleet(command: str, file: Path, folder: Path, *more: str) -> Result:
    arguments = ["fleet", command, str(file), "-o", str(folder), *more]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})


def simulated(parts: Path, folder: Path) -> bytes:
    """The metrics file of the same run in one process, where nothing is encrypted."""
    sets = {**ENCRYPTED, "run-dir": str(folder), "data-path": str(parts)}
    command = ["simulate", str(FLEET), "--workers", "0"]
    command += [part for k, v in sets.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    log = (folder / "same" / "log.txt").read_text()
    assert "exchange.sealed: nothing is sealed between devices simulated here" in log
    return (folder / "same" / "dmml-kd" / "metrics.jsonl").read_bytes()


def test_a_fleet_is_prepared_registered_checked_and_trains(tmp_path: Path):
    """A folder with a space and a quote in its name; nothing is started but the scripts.

    What is relayed is encrypted: the numbers are those of ``simulate``.
    """
    folder, parts, port = tmp_path / "it's a lab", tmp_path / "parts", free_port()
    cut_parts(parts)
    text = TOP.format(folder=folder, venv=sys.prefix, port=port)
    for number in range(NODES):
        text += DEVICE.format(
            number=number,
            peer=free_port(),
            runtime=free_port(),
            data=parts / f"part-{number:03d}",
        )
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    assert fleet("init", file, folder).exit_code == 0
    asked_before = fleet("register", file, folder)
    assert asked_before.exit_code == 1 and "unavailable" in asked_before.output

    variables = environment(folder / "flwr")
    log = tmp_path / "superlink.log"
    with ExitStack() as stack:
        link = ["bash", str(folder / "superlink" / "start.sh")]
        stack.enter_context(running(link, variables, log))
        wait_for_port(port, log)

        refused = tmp_path / "refused.log"
        start = [["bash", str(folder / "devices" / f"pi-{n}" / "start.sh")] for n in range(NODES)]
        with running(start[0], variables, refused) as unregistered:
            assert unregistered.wait(timeout=60) != 0
        assert "Failed to activate SuperNode" in refused.read_text(), refused.read_text()
        assert "412" in log.read_text()
        unknown = fleet("status", file, folder)
        assert unknown.exit_code == 1
        assert "pi-0 is not registered and is refused" in unknown.output, unknown.output

        first = fleet("register", file, folder)
        assert first.exit_code == 0, first.output
        again = fleet("register", file, folder)
        assert again.exit_code == 0 and again.output.count("was registered") == NODES
        assert "registered and was never there" in fleet("status", file, folder).output

        for number, command in enumerate(start):
            stack.enter_context(running(command, variables, tmp_path / f"node{number}.log"))
        for _ in range(10):
            state = fleet("status", file, folder, "--no-ask")
            if state.exit_code == 0:
                break
            time.sleep(2)
        logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
        assert state.exit_code == 0, state.output + logs
        assert "all is well" in state.output and state.output.count("online") == NODES

        asked = fleet("status", file, folder, "--json")
        report = json.loads(asked.output)
        assert asked.exit_code == 0 and report["problems"] == [], asked.output
        for number, device in enumerate(report["devices"]):
            said, bounds = device["answer"], device["clock-ahead-s"]
            assert said["config"]["partition-id"] == said["data"]["part"] == number
            assert said["versions"]["flwr-dmml"] == version("flwr-dmml")
            others = {f"pi-{n}": "closed" for n in range(NODES) if n != number}
            assert said["peers"] == others and bounds[0] <= 0 <= bounds[1]

        config = {**ENCRYPTED, "run-dir": str(tmp_path / "runs")}
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), "run", str(FLEET), "lab", "--stream", "-c", given],
            env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
    metrics = tmp_path / "runs" / "same" / "dmml-kd" / "metrics.jsonl"
    assert metrics.exists(), done.stdout + logs
    assert metrics.read_text().count("\n") == SETTINGS["num-server-rounds"]
    assert learned(metrics.read_bytes()) == learned(simulated(parts, tmp_path / "here"))
    assert not any(line["failed"] for line in map(json.loads, metrics.read_text().splitlines()))
    checkpoint = metrics.parent / "checkpoints" / "round-00002"
    about = json.loads((checkpoint / "state.json").read_text())
    held = [names for group in ("nodes", "payloads") for names in about[group]["names"].values()]
    alike = {name.partition("@")[0] for names in held for name in names}
    assert alike == {"locked-state", "sealed", "key"} and len(held) == 2 * NODES
    secrets = [path.read_text() for path in folder.rglob("*.key")]
    secrets += [path.read_text() for path in folder.rglob("node-key")]
    everything = logs + done.stdout + first.output + state.output
    assert len(secrets) == 2 * NODES + 2 and not any(s in everything for s in secrets)
