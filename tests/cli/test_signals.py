"""Ctrl-C and SIGTERM stop a run after the round, with a checkpoint; in processes of their own."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
from helpers import QUICKSTART
from helpers_signals import SETTINGS, metrics, run_here, start, start_command, wait_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the metrics of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, "--workers", "0", **SETTINGS, **{"run-name": "whole"})
    return metrics(folder / "whole")


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that were started with temporary files there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if os.fsencode(folder / "tmp") in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


@pytest.mark.parametrize(
    ("workers", "number"),
    [(0, signal.SIGINT), (0, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGTERM)],
)
def test_a_run_stops_after_the_round_and_goes_on_as_if_never_stopped(
    workers: int, number: signal.Signals, whole: bytes, tmp_path: Path
):
    """With workers SIGTERM goes to all processes at once, as timeout, Slurm and systemd send it.

    Nothing is left of temporary files and of Ray, and the resumed metrics are the same bytes.
    """
    if workers:
        pytest.importorskip("ray", reason="workers need Ray")
    given = ["--workers", str(workers)]
    process = start(tmp_path, *given, **{**SETTINGS, "checkpoint-every": 0, "run-name": "r"})
    wait_for(process, tmp_path / "r", 2)
    if workers and number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, said
    stopped = re.search(r"Stopped after round (\d+); go on with --resume", said)
    assert stopped and "Stopping after this round" in said
    assert "Traceback" not in said and "SIGTERM received" not in said, said
    assert not list((tmp_path / "tmp").glob("flwr-dmml-*"))
    assert not (tmp_path / "r" / "in-use.json").exists()
    assert not processes_of(tmp_path)
    run_here(tmp_path, "--workers", "0", "--resume", "r")
    assert f"Resumed after round {stopped[1]};" in (tmp_path / "r" / "log.txt").read_text()
    assert metrics(tmp_path / "r") == whole


def test_sigterm_again_stops_in_the_round(tmp_path: Path):
    """A round would take minutes; the second signal comes more than a second after the first."""
    own = {"energy.battery-share": 0, "local-iterations": 10**6, "run-name": "r"}
    process = start(tmp_path, "--workers", "0", **{**SETTINGS, **own})
    assert process.stdout is not None
    said = ""
    while "devices take part" not in said:
        said += process.stdout.readline()
    while "Stopping after this round" not in said:
        process.send_signal(signal.SIGTERM)
        said += process.stdout.readline()
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    said += process.stdout.read()
    assert process.returncode == 143, said
    assert "Stopped. Continue from the last checkpoint" in said and "Traceback" not in said
    assert not (tmp_path / "r" / "in-use.json").exists()


def test_a_sweep_passes_sigterm_on_and_stops(tmp_path: Path):
    """Only the sweep is told. The run that goes on is stopped after its round, no other begins."""
    file = tmp_path / "grid.toml"
    lines = [f"{key} = {value!r}" for key, value in {**SETTINGS, "num-server-rounds": 500}.items()]
    own = [f'app = "{QUICKSTART}"', "[settings]", *lines, "[grid]", "seed = [0, 1]"]
    file.write_text("\n".join(own))
    runs = tmp_path / "runs"
    process = start_command(tmp_path, "sweep", str(file), "-o", str(runs), "--workers", "0")
    wait_for(process, runs / "seed-0", 2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert (
        "Stopped after round" in said and "Stopped. Run the same command again to continue." in said
    )
    assert [path.name for path in runs.iterdir()] == ["seed-0"]
    assert list((runs / "seed-0").rglob("state.json"))
