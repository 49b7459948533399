"""Runs of the quickstart in processes of their own, to be stopped or killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

from helpers import QUICKSTART
from typer.testing import CliRunner

from flwr_dmml.cli import app

SETTINGS = {
    "num-nodes": 4,
    "num-server-rounds": 8,
    "samples-per-node": 40,
    "local-iterations": 2,
    "evaluate-every": 3,
    "checkpoint-every": 2,
    "compare-with": "",
}


def start(folder: Path, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    """Start a run in ``folder``, with temporary files of its own."""
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    command = ["simulate", str(QUICKSTART), *arguments, *sets, "--set", f"run-dir={folder}"]
    return start_command(folder, *command)


def start_command(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command of this package, with its temporary files in ``folder/tmp``."""
    (folder / "tmp").mkdir()
    own = {"COLUMNS": "200", "TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": "/tmp"}
    return subprocess.Popen(
        [sys.executable, "-m", "flwr_dmml.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # for what it starts to be killed with it
        env=os.environ | own,
    )


def run_here(folder: Path, *arguments: str, **settings: object) -> None:
    """Run the same command in this process, which spares the start of another."""
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    command = ["simulate", str(QUICKSTART), *arguments, *sets, "--set", f"run-dir={folder}"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output


def metrics(run: Path) -> bytes:
    """Return the metrics so far."""
    path = run / "dmml-kd" / "metrics.jsonl"
    return path.read_bytes() if path.exists() else b""


def wait_for(process: subprocess.Popen[str], run: Path, rounds: int) -> None:
    """Wait until so many rounds are complete."""
    while metrics(run).count(b"\n") < rounds:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
