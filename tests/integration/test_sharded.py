"""The sharded engine with real Ray processes, of a Ray of their own that ends with the tests."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from apps_sharded import Fragile, averaging, counting, fedavg
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.simulation import run_simulation
from helpers_liars import LIES, Lying, lines_of, run_four

from flwr_dmml.engine import (
    EngineError,
    FlowerApp,
    run_app,
    server_identity,
    sharded,
    sharded_grid,
)
from flwr_dmml.engine.cluster import connect
from flwr_dmml.engine.sharded import ShardedGrid
from flwr_dmml.engine.wire import RemoteArray


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    """Start Ray in a folder of its own: a cluster file that others left behind is not read."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: sockets are made in it
    with pytest.MonkeyPatch.context() as patch, server_identity(1):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # of Flower's
        patch.setenv("DEATHS", str(Path(folder) / "deaths"))
        cluster = connect("", 3)
        yield
        cluster.disconnect()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def grid_of(nodes: int, workers: int, **options: Any) -> Iterator[ShardedGrid]:
    with sharded_grid(counting, nodes, {}, workers=workers, **options) as grid:
        yield grid


def letters(grid: ShardedGrid, do: dict[str, Any] | None = None, **records: ArrayRecord) -> Any:
    """Return a message to every node."""
    content = [RecordDict({"do": ConfigRecord(do or {}), **records}) for _ in grid.get_node_ids()]
    pairs = zip(content, grid.get_node_ids(), strict=True)
    return [Message(c, node_id, "train") for c, node_id in pairs]


def about(replies: list[Message], key: str) -> dict[int, Any]:
    found = [r.content.metric_records["about"] for r in replies if not r.has_error()]
    return {int(record["node"]): record[key] for record in sorted(found, key=lambda r: r["node"])}


def test_nodes_stay_in_their_worker_with_their_state():
    with grid_of(5, 2) as grid:
        rounds = [grid.send_and_receive(letters(grid)) for _ in range(3)]
        assert [about(replies, "count") for replies in rounds] == [
            dict.fromkeys(range(5), count) for count in (1, 2, 3)
        ]
        places = [about(replies, "pid") for replies in rounds]
        assert places[0] == places[1] == places[2] and len(set(places[0].values())) == 2
        assert os.getpid() not in places[0].values() and grid.peak_bytes > 0


def test_payloads_go_from_node_to_node_unread():
    """Node k publishes 50,000 times k + 1; each then gets node 0's and node 4's in one message."""
    with grid_of(5, 2) as grid:
        replies = grid.send_and_receive(letters(grid))
        payloads = {
            int(r.content.metric_records["about"]["node"]): r.content.array_records["own"]
            for r in replies
        }
        assert all(isinstance(record["own"], RemoteArray) for record in payloads.values())
        second = grid.send_and_receive(letters(grid, zero=payloads[0], four=payloads[4]))
        assert set(about(second, "zero").values()) == {50_000.0}
        assert set(about(second, "four").values()) == {250_000.0}
        assert payloads[4]["own"].numpy().tolist() == [5.0] * 50_000  # a strategy may look


def test_neighbours_share_a_worker():
    graph = nx.Graph([(0, 2), (2, 4), (1, 3), (3, 5)])
    with grid_of(6, 2) as grid:
        grid.arrange(graph)
        pids = about(grid.send_and_receive(letters(grid)), "pid")
        assert len({pids[k] for k in (0, 2, 4)}) == len({pids[k] for k in (1, 3, 5)}) == 1
        with pytest.raises(RuntimeError, match="have their places already"):
            grid.arrange(graph)


def test_a_client_app_that_raises_costs_its_own_reply_only():
    with grid_of(4, 2) as grid:
        grid.send_and_receive(letters(grid))
        replies = grid.send_and_receive(letters(grid, {"raise": 2}))
        (failed,) = [r for r in replies if r.has_error()]
        assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert failed.error.reason == "<class 'RuntimeError'>:<'node 2 has had enough'>"
        assert failed.metadata.src_node_id == grid.get_node_ids()[2]
        third = grid.send_and_receive(letters(grid))
        assert about(third, "count") == {0: 3, 1: 3, 2: 2, 3: 3}, "its state is that of before"


def test_a_worker_that_is_killed_comes_back_with_its_nodes(tmp_path: Path, caplog: Any):
    """Node 1 is killed in the middle of round 2: all go on as if nothing had happened."""
    caplog.set_level("WARNING", logger="flwr")
    with grid_of(6, 2) as grid:
        first = grid.send_and_receive(letters(grid))
        die = {"die": 1, "mark": str(tmp_path / "mark"), "times": 1}
        second = grid.send_and_receive(letters(grid, die, zero=first[0].content["own"]))
        third = grid.send_and_receive(letters(grid))
    assert about(second, "count") == dict.fromkeys(range(6), 2)
    assert about(third, "count") == dict.fromkeys(range(6), 3)
    before, after = about(first, "pid"), about(third, "pid")
    assert before[1] != after[1] and sum(before[k] == after[k] for k in range(6)) == 3
    assert "A worker died" in caplog.text and "its 3 nodes" in caplog.text


def test_nodes_that_kill_their_worker_again_and_again_are_given_up(tmp_path: Path):
    with grid_of(4, 2) as grid:
        grid.send_and_receive(letters(grid))
        die = {"die": 0, "mark": str(tmp_path / "mark"), "times": 99}
        replies = grid.send_and_receive(letters(grid, die))
        lost = [r for r in replies if r.has_error()]
        assert len(replies) == 4 and len(lost) == 2
        assert all(r.error.code == ErrorCode.CLIENT_APP_CRASHED for r in lost)
        assert "died 3 times" in str(lost[0].error.reason)
        again = about(grid.send_and_receive(letters(grid)), "count")
        assert sorted(again.values()) == [2, 2, 3, 3]


@pytest.mark.parametrize("times", [1, 3])
def test_a_worker_that_dies_again_while_it_is_started_keeps_its_states(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three deaths in a row are too many."""
    monkeypatch.setattr(sharded, "Shard", Fragile)
    deaths = Path(os.environ["DEATHS"])
    with grid_of(4, 2) as grid:
        grid.send_and_receive(letters(grid))
        deaths.write_text(f"take {times}")
        die = {"die": 1, "mark": str(tmp_path / "mark"), "times": 1}
        if times == 1:
            replies = grid.send_and_receive(letters(grid, die))
            assert about(replies, "count") == dict.fromkeys(range(4), 2)
        else:
            with pytest.raises(EngineError, match=r"died 3 times in a row .* fewer workers"):
                grid.send_and_receive(letters(grid, die))
    assert deaths.read_text() == "take 0"


def test_closing_that_is_interrupted_still_lets_go(monkeypatch: pytest.MonkeyPatch):
    """A second Ctrl-C comes while a worker hangs."""

    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with grid_of(2, 1) as grid:
        grid.send_and_receive(letters(grid))
        folders = list(grid._held)
        with monkeypatch.context() as patch:
            patch.setattr("flwr_dmml.engine.sharded.ray.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                grid.close()
        assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("name", "method"),
    [("payload words", "dpsgd"), ("state no array", "dpsgd"), ("", "lying-row")],
)
def test_a_liar_costs_no_more_than_in_one_process(name: str, method: str, tmp_path: Path):
    """Of arrays only names and sizes come to the driver; rows come without messages."""
    liar = Lying(*LIES[name][:2]) if name else None
    one, spread = (
        run_four(tmp_path / str(workers), liar, workers, method=method) for workers in (0, 2)
    )
    assert (one / "metrics.jsonl").read_bytes() == (spread / "metrics.jsonl").read_bytes()
    assert len(lines_of(spread)) == 3


def test_devices_that_do_not_wait_do_the_same_in_any_number_of_processes(tmp_path: Path):
    config = {"rounds": "async", "energy.devices": "phone,raspberry-pi-3", "loss-rate": 0.2}
    one, spread = (
        run_four(tmp_path / str(workers), None, workers, method="dmml-kd", **config)
        for workers in (0, 2)
    )
    for name in ("metrics.jsonl", "events.jsonl"):
        assert (one / name).read_bytes() == (spread / name).read_bytes()


def test_a_late_reply_can_be_pulled_later():
    with grid_of(2, 2) as grid:
        grid.send_and_receive(letters(grid))
        slow = letters(grid, {"seconds": 3.0})
        assert grid.send_and_receive(slow, timeout=0.5) == []
        waiting, late = {m.metadata.message_id for m in slow}, list[Message]()
        while len(late) < 2:
            late += grid.pull_messages(waiting)
        assert about(late, "count") == {0: 2, 1: 2}
        assert grid.pull_messages(waiting) == []


def test_progress_is_told_and_unknown_nodes_are_refused():
    told = list[tuple[int, int]]()
    with grid_of(6, 2, on_reply=lambda done, total: told.append((done, total))) as grid:
        grid.send_and_receive(letters(grid, {"seconds": 0.3}))
        with pytest.raises(ValueError, match="there is no node 7"):
            grid.push_messages([Message(RecordDict(), 7, "train")])
    assert told[-1] == (6, 6) and len(told) > 2, "workers report before they have finished"


def test_a_busy_worker_gives_nodes_to_an_idle_one(tmp_path: Path):
    """By what they are said to cost nodes 1-4 are together, but each takes 0.1 s, and node 0 none.

    After five exchanges two of the four have moved.
    """
    with sharded_grid(counting, 5, {}, workers=2) as grid:
        grid.arrange(nx.empty_graph(5), [4.0, 1.0, 1.0, 1.0, 1.0])
        for _ in range(5):
            messages = letters(grid)
            for message in messages[1:]:
                message.content["do"] = ConfigRecord({"seconds": 0.1})
            replies = grid.send_and_receive(messages)
        pids, counts = about(replies, "pid"), about(replies, "count")
        assert sum(pid == pids[0] for pid in pids.values()) == 3
        assert counts == dict.fromkeys(range(5), 5), "with their states"


def test_nobody_else_can_reach_the_workers():
    """All that the processes of this run listen on is on loopback; 1 and ::1 end in 1, as hex."""
    folder, inodes = os.environ["RAY_TMPDIR"], set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.encode() in (process / "environ").read_bytes():
                links = (os.readlink(link) for link in (process / "fd").iterdir())
                inodes |= {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [
        row.split()
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listening = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}
    v6 = "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"
    assert listening and listening <= {"0100007F", *v6}


@pytest.mark.parametrize("workers", [1, 3])
def test_flowers_fedavg_ends_with_the_same_numbers(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A foreign app on Flower's own engine, on the sharded one, and in this process."""

    for name, count in (("sharded", workers), ("here", 0)):
        monkeypatch.setenv("FEDAVG_OUT", str(tmp_path / f"{name}.npz"))
        run_app(FlowerApp({}, fedavg, averaging), 5, workers=count)
    monkeypatch.setenv("FEDAVG_OUT", str(tmp_path / "flower.npz"))
    run_simulation(fedavg, averaging, 5, backend_config={"client_resources": {"num_cpus": 1}})
    ours, here, flower = (
        dict(np.load(tmp_path / f"{name}.npz")) for name in ("sharded", "here", "flower")
    )
    assert set(ours) == set(here) == set(flower)
    for key, value in ours.items():
        # FedAvg asks the nodes in a random order each time, and so rounds its sums.
        np.testing.assert_allclose(value, here[key], rtol=1e-6, err_msg=key)
        np.testing.assert_allclose(value, flower[key], rtol=1e-6, err_msg=key)


def test_a_cluster_of_two_machines(tmp_path: Path):
    """Two Ray nodes with a CPU each: the workers are on both, and payloads cross."""
    script = Path(__file__).with_name("two_nodes.py")
    env = {**os.environ, "RAY_TMPDIR": tempfile.mkdtemp(prefix="r", dir="/tmp")}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
    )
    shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 machines" in done.stdout and "all heard" in done.stdout


def test_without_a_cluster_at_the_address_it_says_so():
    code = "from flwr_dmml.engine.cluster import connect\nconnect('127.0.0.1:1', 2)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "EngineError: no Ray cluster at 127.0.0.1:1" in done.stderr
    assert EngineError.__name__ in done.stderr
