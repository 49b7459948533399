"""examples/fleet under Flower's deployment engine: a SuperLink and SuperNodes, on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from typer.testing import CliRunner

from flwr_dmml.cli import app

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "examples" / "fleet"
NODES = 3
SETTINGS = {
    "num-nodes": NODES,
    "num-server-rounds": 2,
    "local-iterations": 4,
    "evaluate-every": 1,
    "run-name": "same",
}
CONNECTION = """[superlink]
default = "fleet"

[superlink.fleet]
address = "127.0.0.1:{port}"
insecure = true
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and end it with all that it has started."""
    process = started(command, environment, log)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_port(port: int, log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_a_fleet_trains_on_its_own_parts(tmp_path: Path):
    """Each SuperNode knows its part's folder only; the metrics file is that of ``simulate``."""
    cut = ["partition", str(ROOT / "examples" / "quickstart"), "-n", str(NODES)]
    parts = tmp_path / "parts"
    cut += ["-o", str(parts), "--set", "samples-per-node=60"]
    assert CliRunner().invoke(app, cut).exit_code == 0

    folder = Path(sys.executable).parent
    port = free_port()
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(CONNECTION.format(port=port))
    log = tmp_path / "superlink.log"
    link = [
        str(folder / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(running(link, environment, log))
        wait_for_port(port, log)
        for node in range(NODES):
            own = parts / f"part-{node:03d}"
            command = [
                str(folder / "flower-supernode"), "--insecure",
                "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                "--node-config", f"data-path='{own}'",
            ]  # fmt: skip
            stack.enter_context(running(command, environment, tmp_path / f"node{node}.log"))
        config = {**SETTINGS, "run-dir": str(tmp_path / "fleet")}
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        done = subprocess.run(
            [str(folder / "flwr"), "run", str(FLEET), "fleet", "--stream", "-c", given],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
    metrics = tmp_path / "fleet" / "same" / "dmml-kd" / "metrics.jsonl"
    assert metrics.exists(), done.stdout + logs

    sets = {**SETTINGS, "run-dir": str(tmp_path / "simulated"), "data-path": str(parts)}
    simulate = ["simulate", str(FLEET), "--workers", "0"]
    simulate += [part for k, v in sets.items() for part in ("--set", f"{k}={v}")]
    assert CliRunner().invoke(app, simulate).exit_code == 0
    same = tmp_path / "simulated" / "same" / "dmml-kd" / "metrics.jsonl"
    assert metrics.read_bytes() == same.read_bytes()
    assert metrics.read_text().count("\n") == SETTINGS["num-server-rounds"]
