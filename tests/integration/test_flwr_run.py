"""The examples under Flower's own engine (`flwr run`), against the in-process engine."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr_helpers import Run, superlink
from helpers import CUSTOM, QUICKSTART, simulate_custom
from typer.testing import CliRunner

from flwr_dmml.cli import app

pytest.importorskip("ray", reason='flwr run needs pip install "flwr-dmml[simulation]"')

SETTINGS = {
    "num-nodes": 4,
    "num-server-rounds": 3,
    "local-iterations": 3,
    "evaluate-every": 1,
    "samples-per-node": 60,
    "run-name": "same",
}


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with superlink(tmp_path_factory.mktemp("flwr")) as run:
        yield run


def test_all_engines_write_the_same_metrics_bit_for_bit(flwr_run: Run, tmp_path: Path):
    """4 nodes, 3 rounds, D-PSGD and DMML-KD: metrics files and models are equal as bytes.

    On Flower's engine, on the sharded one under ``flwr run`` (where Flower's has 2 nodes of its
    own, which nobody asks), on one and on three workers, and in one process.
    """
    status, log = flwr_run(4, **SETTINGS, **{"run-dir": str(tmp_path / "flower")})
    assert status == "finished:completed", log
    sharded = {**SETTINGS, "engine": "sharded", "workers": 2, "run-dir": str(tmp_path / "sharded")}
    status, log_of_sharded = flwr_run(2, **sharded)
    assert status == "finished:completed", log_of_sharded
    assert "4 nodes in 2 processes" in log_of_sharded

    for workers in (0, 1, 3):
        overrides = {**SETTINGS, "run-dir": str(tmp_path / str(workers))}
        sets = [part for k, v in overrides.items() for part in ("--set", f"{k}={json.dumps(v)}")]
        command = ["simulate", str(QUICKSTART), *sets, "--workers", str(workers)]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    for method in ("dpsgd", "dmml-kd"):
        ray, *others = (
            (tmp_path / engine / "same" / method / "metrics.jsonl").read_bytes()
            for engine in ("flower", "sharded", "0", "1", "3")
        )
        assert all(other == ray for other in others)
        kept, *same = (
            {f.name: f.read_bytes() for f in (tmp_path / e / "same" / method / "models").iterdir()}
            for e in ("flower", "sharded", "0", "1", "3")
        )
        assert len(kept) == 8 and all(other == kept for other in same)
        lines = [json.loads(line) for line in ray.splitlines()]
        assert [line["round"] for line in lines] == [1, 2, 3]
        assert all(len(line["nodes"]) == 4 for line in lines)
    text = re.sub(r"\x1b\[[0-9;]*m", "", log)
    assert "dmml-kd against dpsgd" in text and "devices score higher. One seed cannot tell" in text


def test_liars_lie_under_flwr_run_as_in_one_process(flwr_run: Run, tmp_path: Path):
    """DMML-KD with compressed letters and a robust rule; on Flower's own engine."""
    liars = {"attack.kind": "alie", "attack.devices": "1", "attack.payload": "forged"}
    settings = {**SETTINGS, **liars, "compare-with": "", "topology": "complete", "stagger": 0.0}
    settings |= {"aggregation": "ios", "num-nodes": 5}
    status, log = flwr_run(5, **settings, **{"run-dir": str(tmp_path / "flower")})
    assert status == "finished:completed", log
    settings["run-dir"] = str(tmp_path / "one")
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    command = ["simulate", str(QUICKSTART), *sets, "--workers", "0"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    flowers, own = (
        (tmp_path / engine / "same" / "dmml-kd" / "metrics.jsonl").read_bytes()
        for engine in ("flower", "one")
    )
    assert flowers == own
    assert json.loads(own.splitlines()[-1])["liars"]["devices"] == [1]


def test_a_bad_setting_fails_the_run_and_names_the_key(flwr_run: Run, tmp_path: Path):
    status, log = flwr_run(2, **{"topology": "torus", "num-nodes": 13, "run-dir": str(tmp_path)})
    assert status == "finished:failed"
    assert "torus" in log and "13" in log and "12 and 14" in log
    assert list(tmp_path.iterdir()) == [], "nothing is written before the settings are sound"


def test_a_method_of_ones_own_by_entry_point(flwr_run: Run, tmp_path: Path):
    """Half of 3 rounds, 1, is smoothed. Both engines write the same bytes; dpsgd runs first."""
    status, log = flwr_run(4, app=CUSTOM, **SETTINGS, **{"run-dir": str(tmp_path / "ray")})
    assert status == "finished:completed", log
    found = simulate_custom(tmp_path / "installed", tmp_path / "inprocess", **SETTINGS)
    for method in ("dpsgd", "smooth-start"):
        ray = (tmp_path / "ray" / "same" / method / "metrics.jsonl").read_bytes()
        assert ray == (found / "same" / method / "metrics.jsonl").read_bytes()


def test_a_run_that_is_stopped_and_killed_goes_on(flwr_run: Run, tmp_path: Path):
    """SIGTERM stops it after the round, with a checkpoint; then it is killed with -9.

    The last `flwr run` ends with what nobody disturbed.
    """
    settings = {**SETTINGS, "num-server-rounds": 20, "compare-with": "", "checkpoint-every": 3}
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    command = ["simulate", str(QUICKSTART), *sets, "--set", f"run-dir={tmp_path / 'whole'}"]
    assert CliRunner().invoke(app, [*command, "--workers", "0"]).exit_code == 0

    metrics = tmp_path / "flower" / "same" / "dmml-kd" / "metrics.jsonl"

    def after(rounds: int) -> Callable[[], bool]:
        return lambda: metrics.exists() and metrics.read_text().count("\n") >= rounds

    given = {**settings, "run-dir": str(tmp_path / "flower")}
    status, log = flwr_run(4, when=after(3), number=signal.SIGTERM, **given)
    assert status == "finished:failed", log
    stopped = re.search(r"Stopped after round (\d+)", log)
    assert stopped and "SIGTERM: the run stops after this round" in log, log
    checkpoints = metrics.parent / "checkpoints"
    assert (checkpoints / f"round-{int(stopped[1]):05d}").is_dir()
    assert metrics.read_text().count("\n") == int(stopped[1]) - 1

    status, _ = flwr_run(4, when=after(int(stopped[1]) + 4), **given, resume="same")
    assert status == "killed" and metrics.read_text().count("\n") < 20
    status, log = flwr_run(4, **given, resume="same")
    assert status == "finished:completed", log
    assert "Resumed after round" in log
    whole = tmp_path / "whole" / "same" / "dmml-kd" / "metrics.jsonl"
    assert metrics.read_bytes() == whole.read_bytes()


def test_a_lost_worker_is_told_and_too_few_devices_stop_the_run(flwr_run: Run, tmp_path: Path):
    """``kill -9`` of an actor: Flower starts no other one. `flwr run` itself exits with 0."""
    settings = {
        **SETTINGS, "num-server-rounds": 60, "compare-with": "", "min-devices": 1.0,
        "checkpoint-every": 0, "run-dir": str(tmp_path),
    }  # fmt: skip
    run = tmp_path / "same"
    metrics = run / "dmml-kd" / "metrics.jsonl"
    status, log = flwr_run(4, lose_a_worker=metrics.exists, **settings)
    assert status == "finished:failed", log
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", log))
    assert "A worker process of Flower's simulation has died" in text, text
    assert 'engine = "sharded"' in text
    done = CliRunner().invoke(app, ["status", str(run)])
    assert done.exit_code == 1 and "stopped: Stopped after round" in done.output, done.output
    assert "min-devices asks for 4" in done.output and "the run can be resumed" in done.output
    end = json.loads((run / "end.json").read_text())["methods"]["dmml-kd"]
    assert 1 <= end["rounds"] < 60 and end["begun"] == [0, 1, 2, 3]
    lost = {int(k) for k in end["failures"]}
    assert lost and set(end["finished"]) == set(end["begun"]) - lost
    assert len(list((run / "dmml-kd" / "checkpoints").glob("round-*"))) == 1
