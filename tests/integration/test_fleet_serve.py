"""A run that is brought to its end, whatever dies meanwhile: real processes, TLS, node keys."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fleet_helpers import FLEET, cut_parts

from flwr_dmml.fleet.local import LocalFleet

ROUNDS = 12
SETTINGS = {
    "num-server-rounds": ROUNDS,
    "local-iterations": 4,
    "evaluate-every": 1,
    "checkpoint-every": 1,
}


def serve(fleet: LocalFleet, name: str, *options: str) -> subprocess.Popen[str]:
    return fleet.serve(FLEET, name, SETTINGS, *options)


def metrics(fleet: LocalFleet, name: str) -> bytes:
    file = fleet.runs / name / "dmml-kd" / "metrics.jsonl"
    return file.read_bytes() if file.exists() else b""


def wait_until(reached: Callable[[], bool], served: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        if served.poll() is not None or time.monotonic() > deadline:
            served.kill()
            raise AssertionError(served.communicate()[0])
        time.sleep(0.1)


def test_a_run_survives_its_coordinator_the_superlink_and_who_watches_it(tmp_path: Path):
    """``kill -9`` for each of them; the metrics are those of a run that nothing happened to."""
    cut_parts(tmp_path / "parts", 2)
    with LocalFleet(tmp_path, sorted((tmp_path / "parts").iterdir())) as fleet:
        whole = serve(fleet, "whole")
        said = whole.communicate(timeout=600)[0]
        assert whole.returncode == 0, said

        served = serve(fleet, "r")
        wait_until(lambda: metrics(fleet, "r").count(b"\n") >= 1, served)
        served.kill()  # whoever watches: the run goes on
        served.communicate()
        served = serve(fleet, "r")
        assert served.stdout is not None and "is going on in process" in served.stdout.readline()
        coordinator = json.loads((fleet.runs / "r" / "in-use.json").read_text())["pid"]
        os.kill(coordinator, signal.SIGKILL)
        done = metrics(fleet, "r").count(b"\n")
        wait_until(lambda: metrics(fleet, "r").count(b"\n") > done, served)
        fleet.kill("superlink")
        fleet.start_superlink()
        said = served.communicate(timeout=600)[0]
        assert served.returncode == 0, said
        assert "has died" in said and said.count("resumed as Flower's run") == 2, said
        assert metrics(fleet, "r") == metrics(fleet, "whole")

        again = serve(fleet, "r")
        assert "has finished already" in again.communicate(timeout=60)[0]
        assert again.returncode == 0
        wrong = serve(fleet, "wrong", "-c", "num-nodes=0", "--tries", "1")
        said = wrong.communicate(timeout=120)[0]
        assert wrong.returncode == 3 and "gave up after 1 start" in said, said
        assert "num-nodes" in said, said
