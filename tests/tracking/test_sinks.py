"""Sinks: what they are given, what goes wrong, and real files of all three libraries."""

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.libraries import LIBRARIES, Library
from flwr_dmml.engine import load_app, run_app
from flwr_dmml.tracking.history import read_metrics_file
from flwr_dmml.tracking.records import NodeResult, RoundRecord
from flwr_dmml.tracking.sinks import SINKS, Sink, closing_all, make_sinks, scalars


def record(server_round: int) -> RoundRecord:
    nodes = {
        0: NodeResult(
            0, "audio", train_loss=1.0, accuracy=0.5, accuracy_by_modality={"audio": 0.5}
        ),
        1: NodeResult(1, "audio+image", train_loss=2.0, accuracy=0.7, updates={"audio": 2}),
    }
    return RoundRecord(server_round, nodes, failed={2: "gone"}, seconds=1.5, battery_j={0: 4.0})


def test_scalars_by_hand():
    numbers = scalars(record(3))
    assert numbers["accuracy"] == pytest.approx(0.6) and numbers["train_loss"] == 1.5
    assert numbers["accuracy_by_set/audio+image"] == 0.7
    assert numbers["accuracy_by_modality/audio"] == 0.5
    assert numbers["battery_quantiles_j/median"] == 4.0
    assert numbers["failed"] == 1.0 and numbers["seconds"] == 1.5
    assert "consensus_distance" not in numbers, "nobody mixed"
    assert not {"round", "nodes"} & numbers.keys()


@dataclass
class Told:
    """Opens writers that note what they are told, and fail where they are asked to."""

    calls: list[object] = field(default_factory=list)
    fails: tuple[object, ...] = ()  # what of it is an error

    def open(self, method: str) -> "Told":
        self._note(method)
        return self

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        self._note((server_round, numbers["train_loss"]))

    def close(self, complete: bool) -> None:
        self._note("complete" if complete else "cut off")

    def _note(self, call: object) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise OSError("no answer from https://me:secret@host/api")


def run_two_methods(sink: Sink) -> None:
    for method in ("dpsgd", "dmml-kd"):
        sink.run_started(method, 2, ["audio"])
        sink.round_ended(record(1))
        sink.round_ended(record(2))


def test_a_sink_opens_and_closes_each_method():
    told = Told()
    run_two_methods(Sink("it", told.open))
    rounds = [(1, 1.5), (2, 1.5), "complete"]
    assert told.calls == ["dpsgd", *rounds, "dmml-kd", *rounds]


def test_what_is_cut_off_is_closed_as_such():
    told, idle = Told(), Told()
    sinks = [Sink("it", told.open), Sink("idle", idle.open)]
    with pytest.raises(KeyboardInterrupt), closing_all(sinks):
        sinks[0].run_started("dpsgd", 2, ["audio"])
        sinks[0].round_ended(record(1))
        raise KeyboardInterrupt
    assert told.calls == ["dpsgd", (1, 1.5), "cut off"] and idle.calls == []


def test_a_run_does_not_begin_where_nothing_can_be_written():
    with pytest.raises(SettingsError) as refused:
        run_two_methods(Sink("it", Told(fails=("dpsgd",)).open))
    assert str(refused.value) == "track-with: it: OSError: no answer from https://host/api"
    assert refused.value.__suppress_context__, "the traceback of the cause has the password"


@pytest.mark.parametrize(
    ("failing", "first", "second"),
    [
        ("dmml-kd", [(1, 1.5), (2, 1.5), "complete"], []),
        ((1, 1.5), [(1, 1.5)], [(1, 1.5)]),
        ("complete", [(1, 1.5), (2, 1.5), "complete"], [(1, 1.5), (2, 1.5), "complete"]),
    ],
)
def test_a_failure_later_on_is_a_warning(
    failing: object, first: list[object], second: list[object], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    told = Told(fails=(failing,))
    run_two_methods(Sink("it", told.open))
    assert told.calls == ["dpsgd", *first, "dmml-kd", *second]
    assert "track-with: it failed" in caplog.text and "https://host/api" in caplog.text
    assert "secret" not in caplog.text


def test_a_folder_of_that_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb_of_a_run").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(SINKS, "wandb", ("wandb_of_a_run", SINKS["wandb"][1]))
    monkeypatch.setitem(LIBRARIES, "wandb_of_a_run", Library("wandb-of-a-run", "nothing", "wandb"))
    with pytest.raises(SettingsError, match=r'pip install "flwr-dmml\[wandb\]"'):
        make_sinks("wandb", tmp_path, {})


def test_an_unknown_sink_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"track-with = 'x'.*tensorboard, mlflow, wandb"):
        run_app(
            load_app(QUICKSTART), 2, {"num-nodes": 2, "track-with": "x", "run-dir": str(tmp_path)}
        )
    assert list(tmp_path.iterdir()) == []


def small_run(tmp_path: Path, track_with: str) -> dict[str, list[dict[str, Any]]]:
    """Run two methods of two rounds, the second evaluated; return their metrics files."""
    config = {
        "num-nodes": 3,
        "num-server-rounds": 2,
        "local-iterations": 1,
        "samples-per-node": 40,
        "compare-with": "local",
        "method": "dpsgd",
        "energy.battery-share": 0.0,  # half of one iteration would be none
        "track-with": track_with,
        "run-dir": str(tmp_path),
        "run-name": "r",
    }
    run_app(load_app(QUICKSTART), 3, config)
    methods = ("local", "dpsgd")
    return {m: read_metrics_file(tmp_path / "r" / m / "metrics.jsonl") for m in methods}


def test_tensorboard_has_what_the_metrics_file_has(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for method, lines in small_run(tmp_path, "tensorboard").items():
        found = EventAccumulator(str(tmp_path / "r" / method))
        found.Reload()
        losses = [(event.step, event.value) for event in found.Scalars("train_loss")]
        expected = [(line["round"], pytest.approx(line["train_loss"])) for line in lines]
        assert losses == expected and len(losses) == 2
        (accuracy,) = found.Scalars("accuracy_by_set/audio+image")
        assert accuracy.value == pytest.approx(lines[-1]["accuracy_by_set"]["audio+image"])


def test_tensorboard_has_a_round_once_that_a_resumed_run_has_run_again(tmp_path: Path):
    """Rounds 1 to 3, killed, and from the checkpoint of round 1 on again."""
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end, loss in ((1, 3, 1.0), (2, 4, 5.0)):
        sinks = make_sinks("tensorboard", tmp_path, {})
        with closing_all(sinks):
            sinks[0].run_started("dpsgd", 4, ["audio"])
            for number in range(begin, end + 1):
                there = record(number)
                there.by_partition[0].train_loss = loss
                sinks[0].round_ended(there)
    found = EventAccumulator(str(tmp_path / "dpsgd"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train_loss")]
    assert losses == [(1, 1.5), (2, 3.5), (3, 3.5), (4, 3.5)]


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow and Weights & Biases keep everything in this folder, and ask no network."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        tracking = pytest.importorskip("mlflow.tracking", reason="needs the extra 'mlflow'")
        tracking.MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow(own_places: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, own_places / "mlflow.db")


def mlflow_runs(experiment: str) -> dict[str, Any]:
    """Return the runs of an MLflow experiment, by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (found,) = client.search_experiments(filter_string=f"name = '{experiment}'")
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def mlflow_history(run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(m.step, m.value) for m in MlflowClient().get_metric_history(run.info.run_id, name)]


def test_mlflow_has_what_the_metrics_file_has(mlflow: None, own_places: Path):
    files = small_run(own_places, "mlflow")
    runs = mlflow_runs("flwr-dmml")
    assert runs.keys() == {"r/local", "r/dpsgd"}
    config = json.loads((own_places / "r" / "config.json").read_text(encoding="utf-8"))
    for method, lines in files.items():
        run = runs[f"r/{method}"]
        assert run.info.status == "FINISHED"
        assert run.data.params == {key: str(value) for key, value in config.items()}
        expected = [(line["round"], line["train_loss"]) for line in lines]
        assert mlflow_history(run, "train_loss") == expected and len(expected) == 2
        accuracy = lines[-1]["accuracy_by_set"]["audio+image"]
        assert mlflow_history(run, "accuracy_by_set/audio-image") == [(2, accuracy)]


def test_mlflow_is_told_where_and_how_it_ended(
    mlflow: None, own_places: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my own")
    sinks = make_sinks("mlflow", own_places / "cut", {"seed": 1, "data-path": ""})
    with closing_all(sinks):
        sinks[0].run_started("dpsgd", 2, ["audio"])
        diverged = record(1)
        diverged.by_partition[0].train_loss = float("nan")
        diverged.by_partition[1].updates = {"3d: {lidar}": 2}
        sinks[0].round_ended(diverged)
    run = mlflow_runs("my own")["cut/dpsgd"]
    assert run.info.status == "KILLED"
    assert run.data.params == {"seed": "1", "data-path": ""}
    ((step, loss),) = mlflow_history(run, "train_loss")
    assert step == 1 and loss != loss
    assert mlflow_history(run, "updates_by_modality/3d- -lidar-") == [(1, 2.0)]


@pytest.fixture
def wandb(own_places: Path) -> Iterator[Any]:
    library = pytest.importorskip("wandb", reason="needs the extra 'wandb'")
    yield library
    library.teardown()


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a ``.wandb`` file: records in pieces, none across a block of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, piece = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + size
        piece += content[position - size : position]
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(piece)
            piece = b""


@dataclass
class WandbRun:
    """What a ``.wandb`` file says of a run."""

    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    exit_code: int | None = None


def wandb_runs(library: Any, folder: Path) -> dict[str, WandbRun]:
    """Return the offline runs in a folder, by name."""
    library.teardown()  # its process ends, and what it holds is written
    found: dict[str, WandbRun] = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        run = WandbRun()
        for entry in wandb_records(path):
            kind = entry.WhichOneof("record_type")
            if kind == "run":
                found[entry.run.display_name], run.project = run, entry.run.project
                run.config = {i.key: json.loads(i.value_json) for i in entry.run.config.update}
            elif kind == "history":
                numbers = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in entry.history.item
                }
                run.rounds[entry.history.step.num] = numbers
            elif kind == "exit":
                run.exit_code = entry.exit.exit_code
    return found


def test_wandb_has_what_the_metrics_file_has(wandb: Any, own_places: Path):
    files = small_run(own_places, "wandb")
    runs = wandb_runs(wandb, own_places / "r")
    assert runs.keys() == {"r/local", "r/dpsgd"}
    config = json.loads((own_places / "r" / "config.json").read_text(encoding="utf-8"))
    for method, lines in files.items():
        run = runs[f"r/{method}"]
        assert (run.project, run.exit_code) == ("flwr-dmml", 0)
        assert {key: run.config[key] for key in config} == config
        losses = {number: row["train_loss"] for number, row in run.rounds.items()}
        expected = {line["round"]: line["train_loss"] for line in lines}
        assert losses == expected and list(losses) == [1, 2]
        accuracy = lines[-1]["accuracy_by_set"]["audio+image"]
        assert run.rounds[2]["accuracy_by_set/audio+image"] == accuracy
        assert "accuracy" not in run.rounds[1], "not evaluated"


def test_wandb_is_told_where_and_how_it_ended(
    wandb: Any, own_places: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_PROJECT", "my-own")
    monkeypatch.setenv("WANDB_DIR", str(own_places / "elsewhere"))
    (own_places / "elsewhere").mkdir()
    sinks = make_sinks("wandb", own_places / "cut", {"seed": 1})
    with closing_all(sinks):
        sinks[0].run_started("dpsgd", 2, ["audio"])
        sinks[0].round_ended(record(1))
    run = wandb_runs(wandb, own_places / "elsewhere")["cut/dpsgd"]
    assert (run.project, run.exit_code) == ("my-own", 1)
    assert run.rounds[1]["train_loss"] == 1.5


def test_all_three_at_once(mlflow: None, wandb: Any, own_places: Path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    lines = small_run(own_places, "tensorboard, mlflow,wandb")["dpsgd"]
    losses = [(line["round"], line["train_loss"]) for line in lines]
    assert mlflow_history(mlflow_runs("flwr-dmml")["r/dpsgd"], "train_loss") == losses
    rounds = wandb_runs(wandb, own_places / "r")["r/dpsgd"].rounds
    assert [(number, row["train_loss"]) for number, row in rounds.items()] == losses
    assert len(list((own_places / "r").glob("*/events.out.tfevents.*"))) == 2


def test_nothing_is_made_where_nothing_is_named(tmp_path: Path):
    assert make_sinks("", tmp_path, {}) == [] and make_sinks(" , ", tmp_path, {}) == []


def test_scalars_of_a_round_with_couriers_and_liars():
    there = record(3)
    there.carried = {(0, 1, 2)}
    for node, lies in zip(there.nodes, (True, False), strict=False):
        node.lies, node.lying_neighbours = lies, int(not lies)
    numbers = scalars(there)
    assert all(isinstance(value, float) for value in numbers.values())
    near = there.liars
    assert near is not None and numbers["liars/accuracy_near"] == near.accuracy_near
    assert not any(name.startswith("carried") or name == "liars/devices" for name in numbers)
