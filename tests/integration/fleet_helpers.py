"""What tests with a SuperLink and SuperNodes on this machine have in common."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import ROOT
from typer.testing import CliRunner

from flwr_dmml.cli import app

FLEET = ROOT / "examples" / "fleet"
PROGRAMS = Path(sys.executable).parent
NODES = 3
SETTINGS = {
    "num-nodes": NODES,
    "num-server-rounds": 2,
    "local-iterations": 4,
    "evaluate-every": 1,
    "run-name": "same",
}


def cut_parts(folder: Path, nodes: int = NODES) -> None:
    """Write a tiny part for each device."""
    cut = ["partition", str(ROOT / "examples" / "quickstart"), "-n", str(nodes)]
    cut += ["-o", str(folder), "--set", "samples-per-node=60"]
    assert CliRunner().invoke(app, cut).exit_code == 0


def environment(flwr_home: Path) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }


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


def wait_for_port(port: int, log: Path, host: str = "127.0.0.1") -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def learned(metrics: bytes) -> list[Any]:
    """Return what must not depend on how payloads travel."""
    keys = ("round", "train_loss", "accuracy", "macro_f1", "consensus_distance", "failed")
    nodes = ("accuracy", "accuracy_by_modality", "disagreement", "speed", "updates")
    return [
        [line[key] for key in keys] + [[node[key] for key in nodes] for node in line["nodes"]]
        for line in map(json.loads, metrics.splitlines())
    ]
