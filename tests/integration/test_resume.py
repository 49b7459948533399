"""Runs in real processes that are killed with -9, and go on."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from helpers_signals import SETTINGS, metrics, run_here, start, wait_for

from flwr_dmml.engine import folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the metrics of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, "--workers", "0", **SETTINGS, **{"run-name": "whole"})
    return metrics(folder / "whole")


@pytest.mark.parametrize(("workers", "rounds"), [(0, 1), (0, 5), (2, 4)])
def test_killed_and_resumed(workers: int, rounds: int, whole: bytes, tmp_path: Path):
    """The metrics are those of the run that nobody disturbed; the engine may be another.

    The next run removes the data set that the workers had in the folder for temporary files.
    """
    if workers:
        pytest.importorskip("ray", reason="workers need Ray")
    given = ["--workers", str(workers)]
    process = start(tmp_path, *given, **SETTINGS, **{"run-name": "r"})
    wait_for(process, tmp_path / "r", rounds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = list((tmp_path / "tmp").glob(f"{folders.PREFIX}*"))
    assert len(left) == (1 if workers else 0)
    for folder in left:
        assert list(folder.glob("*.safetensors"))
        os.utime(folder, (0, 0))  # as old as it would be in a minute
    for _ in range(300):  # its workers hold it until they notice that the driver is gone
        folders.sweep(tmp_path / "tmp")
        if not (left := list((tmp_path / "tmp").glob(f"{folders.PREFIX}*"))):
            break
        time.sleep(0.1)
    assert not left
    run_here(tmp_path, *given, "--resume", "r")
    if rounds > 1:  # else it may be killed before its first checkpoint
        assert re.search(r"Resumed after round \d+", (tmp_path / "r" / "log.txt").read_text())
    assert metrics(tmp_path / "r") == whole
