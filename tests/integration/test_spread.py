"""Rounds of all devices at once: equal numbers in one process, in several, and after a death."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import ray
from apps_sharded import Fragile, OnGPU
from helpers_disk import disk
from ray.exceptions import OutOfMemoryError, RayActorError
from spread_app import CONFIG, client_app, run

from flwr_dmml.engine import EngineError, server_identity, sharded, sharded_grid
from flwr_dmml.engine.cluster import connect
from flwr_dmml.engine.spread import SpreadDevices
from flwr_dmml.engine.worker import Worker
from flwr_dmml.strategies import RunStoppedError
from flwr_dmml.strategies.roster import Roster

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
        patch.setenv("DEATHS", str(Path(folder) / "deaths"))
        cluster = connect("", 3)
        yield
        cluster.disconnect()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mark() -> Path:
    """Return the file that is made when a process kills itself."""
    found = Path(os.environ["KILLED"])
    found.unlink(missing_ok=True)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """Return metrics and the arrays of all checkpoints."""
    names = "*/metrics.jsonl", "*/checkpoints/*/*.safetensors"
    return {str(p.relative_to(folder)): p.read_bytes() for name in names for p in folder.glob(name)}


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


@pytest.mark.parametrize(
    "how",
    [
        {"label-correction": "network"},
        {"test-fusion": "certainty", "samples-per-node": 200, "validation-fraction": 0.2},
    ],
    ids=str,
)
def test_what_devices_report_is_known_to_all_workers(how: dict[str, Any]) -> None:
    """Rows are mixed block by block in round 3, as device 0's values are out of range."""
    alone = run("far", 0, rounds=4, **how)
    assert "holds values beyond" in str(alone)
    assert run("far", 3, rounds=4, **how) == alone


def test_a_worker_that_dies_costs_nothing(mark: Path) -> None:
    """Device 0's worker is killed in round 3, and its devices go on as after round 2."""
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


@pytest.mark.parametrize("when", ["before the question", "before the payloads", "in between"])
def test_a_worker_may_die_when_a_checkpoint_is_due(
    when: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from the last round, and not from what its nodes told at the checkpoint before."""
    asking, method = Roster.ask, "dpsgd" if when != "in between" else "killed-telling"

    def ask(roster: Roster, grid: Any, kind: str, *given: Any) -> Any:
        if kind == "query.state" and when == "before the question":
            ray.kill(grid._workers[0].actor)
        found = asking(roster, grid, kind, *given)
        if kind == "query.state" and when == "before the payloads":
            ray.kill(grid._workers[0].actor)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Roster, "ask", ask)
        died = run(method, 2, folder=tmp_path / "died")
    assert mark.exists() == (when == "in between")
    assert died == run(method, 0, folder=tmp_path / "alone")
    assert files_of(tmp_path / "died") == files_of(tmp_path / "alone")


@pytest.mark.parametrize("when", ["before its first round", "in its first round"])
def test_a_worker_may_die_when_a_run_is_resumed(
    when: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "dpsgd" if when == "before its first round" else "killed"
    rounds = iter([False, True])
    with pytest.raises(RunStoppedError, match="after round 2"):
        run(method, 2, folder=tmp_path / "died", stopping=lambda: next(rounds))
    loading = SpreadDevices.load_payloads

    def load(devices: SpreadDevices, *given: Any) -> None:
        loading(devices, *given)
        ray.kill(devices._workers_of()[0].actor)

    if when == "before its first round":
        monkeypatch.setattr(SpreadDevices, "load_payloads", load)
    died = run(method, 2, folder=tmp_path / "died")
    assert mark.exists() == (when == "in its first round")
    assert died == run(method, 0, folder=tmp_path / "alone")
    assert files_of(tmp_path / "died") == files_of(tmp_path / "alone")


@pytest.mark.parametrize("call", ["take", "begin", "enter"])
def test_a_worker_may_die_while_it_is_started_again(
    call: str, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart, deaths = Worker.restart, Path(os.environ["DEATHS"])

    def fragile(worker: Worker, error: Exception) -> None:
        deaths.write_text(f"{call} 1")
        restart(worker, error)

    monkeypatch.setattr(sharded, "Shard", Fragile)
    monkeypatch.setattr(Worker, "restart", fragile)
    died = run("killed", 2)
    assert mark.exists() and deaths.read_text() == f"{call} 0"
    deaths.unlink()
    assert died == run("killed", 0)


def test_a_worker_that_lacks_memory_is_started_again(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's memory monitor kills it: that is another error."""
    get = ray.get

    def monitored(*given: Any, **options: Any) -> Any:
        try:
            return get(*given, **options)
        except RayActorError as error:
            raise OutOfMemoryError(str(error)) from None

    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", monitored)
        died = run("killed", 2)
    assert mark.exists() and died == run("killed", 0)


def test_devices_stay_where_they_are_between_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much longer one worker takes over the messages of checkpoints.

    They may move again when another method begins.
    """
    running, found = SpreadDevices.run, list[SpreadDevices]()

    def noting(devices: SpreadDevices, *given: Any) -> Any:
        found.append(devices)
        return running(devices, *given)

    monkeypatch.setattr(SpreadDevices, "run", noting)
    monkeypatch.setattr(
        Worker, "seconds", lambda worker: dict.fromkeys(worker.nodes, float(worker.number == 0))
    )
    spread = run("dpsgd", 2, rounds=7, folder=tmp_path / "spread")
    assert spread == run("dpsgd", 0, rounds=7, folder=tmp_path / "alone")
    assert files_of(tmp_path / "spread") == files_of(tmp_path / "alone")
    assert found[0].going_on and not found[0].takes("asked one by one") and not found[0].going_on


@pytest.mark.parametrize("how", ["rows", "kept", "machine"])
def test_rows_that_are_lost_end_the_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has left in memory has gone, or it comes back on another machine."""
    running = SpreadDevices.run

    def losing(devices: SpreadDevices, *given: Any) -> Any:
        found = running(devices, *given)
        if how == "rows":
            for path in tmp_path.rglob("rows-*"):
                path.unlink()
        elif how == "machine":
            devices._machines[0] = "another"
        else:
            ray.internal.free(devices._kept)
        ray.kill(devices._workers_of()[0].actor)
        return found

    monkeypatch.setattr(sharded, "shared_memory", lambda: tmp_path)
    monkeypatch.setattr(SpreadDevices, "run", losing)
    with pytest.raises(EngineError, match=r"rows are lost: .*; resume the run from its last check"):
        run("dpsgd", 2)


def test_rows_on_gpus_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for shard, shared in ((sharded.Shard, True), (OnGPU, False)):
        monkeypatch.setattr(sharded, "Shard", shard)
        with sharded_grid(client_app(), 2, {**CONFIG, "num-nodes": 2}, workers=2) as grid:
            grid.arrange(nx.path_graph(2))
            assert grid.hosted is not None and grid.hosted.takes("dpsgd") == shared


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
