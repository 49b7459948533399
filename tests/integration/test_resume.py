"""Runs in real processes that are killed with -9 or stopped with Ctrl-C, and go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "flwr_dmml.cli", "simulate", str(QUICKSTART), *arguments]
    return subprocess.Popen(
        [*command, *sets, "--set", f"run-dir={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # for what it starts to be killed with it
        env=os.environ | {"COLUMNS": "200"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def run_here(folder: Path, *arguments: str, **settings: object) -> None:
    """Run the same command in this process, which spares the start of another."""
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    command = ["simulate", str(QUICKSTART), *arguments, *sets, "--set", f"run-dir={folder}"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output


def lines(run: Path) -> int:
    path = run / "dmml-kd" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def when(process: subprocess.Popen[str], run: Path, rounds: int, number: int) -> str:
    """Send a signal when so many rounds are complete; return what the process has said."""
    while lines(run) < rounds:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.communicate(timeout=300)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the metrics of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, "--workers", "0", **SETTINGS, **{"run-name": "whole"})
    return (folder / "whole" / "dmml-kd" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("workers", "rounds"), [(0, 1), (0, 5), (2, 4)])
def test_killed_and_resumed(workers: int, rounds: int, whole: bytes, tmp_path: Path):
    """The metrics are those of the run that nobody disturbed; the engine may be another."""
    if workers:
        pytest.importorskip("ray", reason="workers need Ray")
    given = ["--workers", str(workers)]
    process = start(tmp_path, *given, **SETTINGS, **{"run-name": "r"})
    when(process, tmp_path / "r", rounds, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    run_here(tmp_path, *given, "--resume", "r")
    if rounds > 1:  # else it may be killed before its first checkpoint
        assert re.search(r"Resumed after round \d+", (tmp_path / "r" / "log.txt").read_text())
    assert (tmp_path / "r" / "dmml-kd" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_stops_after_the_round(workers: int, whole: bytes, tmp_path: Path):
    if workers:
        pytest.importorskip("ray", reason="workers need Ray")
    given = ["--workers", str(workers)]
    settings = {**SETTINGS, "checkpoint-every": 0, "run-name": "r"}
    process = start(tmp_path, *given, **settings)
    said = when(process, tmp_path / "r", 2, signal.SIGINT)
    assert process.returncode == 130, said
    stopped = re.search(r"Stopped after round (\d+)", said)
    assert stopped and "--resume" in said and "Stopping after this round" in said
    text = finish(start(tmp_path, *given, "--resume", "r"))
    assert f"Resumed after round {stopped[1]}" in text
    assert (tmp_path / "r" / "dmml-kd" / "metrics.jsonl").read_bytes() == whole
