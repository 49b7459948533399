"""Rounds of all devices at once: equal numbers in one process, in several, and after a death."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers_disk import disk
from ray.exceptions import RayActorError
from spread_app import run

from flwr_dmml.engine import EngineError, server_identity, sharded
from flwr_dmml.engine.cluster import connect
from flwr_dmml.engine.spread import SpreadDevices

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
LIARS = {"attack.devices": "1", "attack.payload": "forged"}


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    """Start Ray in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: sockets are made in it
    with pytest.MonkeyPatch.context() as patch, server_identity(1):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", PATHS, prepend=os.pathsep)
        patch.setenv("KILLED", str(Path(folder) / "killed"))
        cluster = connect("", 3)
        yield
        cluster.disconnect()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd", "qg-dsgdm", "fedproto"])
def test_any_number_of_workers_gives_equal_numbers(method: str) -> None:
    alone = run(method, 0)
    assert run(method, 1) == alone
    assert run(method, 3) == alone


@pytest.mark.parametrize(
    "how",
    [
        {"exchange.precision": "int8", "exchange.top-k": 0.5},
        {"couriers": "forward"},
        {"couriers": "forward", "exchange.precision": "int8"},
        {"couriers": "average"},
        {"aggregation": "ios", "topology": "complete"},
        {"aggregation": "median", "topology": "complete", **LIARS, "attack.kind": "alie"},
        {"aggregation": "robust", "topology": "complete", **LIARS, "attack.kind": "gaussian"},
    ],
    ids=str,
)
def test_letters_go_from_worker_to_worker(how: dict[str, Any]) -> None:
    assert run("dpsgd", 2, rounds=4, **how) == run("dpsgd", 0, rounds=4, **how)


def test_a_worker_that_dies_costs_nothing() -> None:
    """Device 0's worker is killed in round 3, and its devices go on as after round 2."""
    mark = Path(os.environ["KILLED"])
    died = run("killed", 2, couriers="forward")
    assert mark.exists(), "nobody has died"
    assert died == run("killed", 2, couriers="forward")
    assert died[1] == run("dpsgd", 0, couriers="forward")[1] != run("dpsgd", 0)[1]


@pytest.mark.parametrize("when", ["_begin", "payloads", "run"])
def test_a_worker_may_die_whatever_it_is_asked(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has rows, between rounds, and for what its devices have published at the end."""
    asked: Callable[..., Any] = getattr(SpreadDevices, when)

    def dying(devices: SpreadDevices, *given: Any) -> Any:
        found = asked(devices, *given) if when == "run" else None
        ray.kill(devices._workers_of()[0].actor)
        if when != "run":
            return asked(devices, *given)
        devices.payloads()  # as a checkpoint reads them: the next round finds a new worker
        return found

    monkeypatch.setattr(SpreadDevices, when, dying)
    assert run("dpsgd", 2) == run("dpsgd", 0)


def test_a_worker_may_die_when_it_has_told_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone before it is given its rows."""
    division, dead = SpreadDevices._division, list[Any]()

    def dying(devices: SpreadDevices, k: int, every: Any) -> Any:
        if not dead:
            dead.append(devices._workers_of()[k].actor)
            ray.kill(dead[0])
            with pytest.raises(RayActorError):
                ray.get(dead[0].payloads.remote())
        return division(devices, k, every)

    monkeypatch.setattr(SpreadDevices, "_division", dying)
    assert run("dpsgd", 2) == run("dpsgd", 0)
    assert dead


def test_full_shared_memory_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for 64 kB. Without a word the system would kill each worker that writes."""
    with disk(tmp_path / "memory", 64) as place:
        monkeypatch.setattr(sharded, "shared_memory", lambda: place)
        words = r"rows-1-0-a cannot be written: No space left on device; free space on that disk; "
        words += (
            r"the devices' rows need \d\.\d MB there .*, or run in one process \(workers = 0\)$"
        )
        with pytest.raises(EngineError, match=words):
            run("dpsgd", 2)
        assert not list(place.iterdir())


def test_rows_travel_between_machines() -> None:
    script = HERE / "two_machines.py"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        env = {**os.environ, "RAY_TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
        )
    assert done.stdout.count("equal") == 3, done.stdout + done.stderr
