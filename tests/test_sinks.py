"""Sinks: what they are given, and TensorBoard's real files."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from flwr_dmml.config import SettingsError
from flwr_dmml.engine import load_app, run_app
from flwr_dmml.tracking.history import read_metrics_file
from flwr_dmml.tracking.records import NodeResult, RoundRecord
from flwr_dmml.tracking.sinks import Sink, make_sinks, scalars

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"


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


def test_a_sink_opens_and_closes_each_method():
    told: list[object] = []

    class Writer:
        def __init__(self, method: str) -> None:
            told.append(method)

        def write(self, numbers: Mapping[str, float], server_round: int) -> None:
            told.append((server_round, numbers["train_loss"]))

        def close(self) -> None:
            told.append("closed")

    sink = Sink(Writer)
    for method in ("dpsgd", "dmml-kd"):
        sink.run_started(method, 2, ["audio"])
        sink.round_ended(record(1))
        sink.round_ended(record(2))
    expected = [(1, 1.5), (2, 1.5), "closed"]
    assert told == ["dpsgd", *expected, "dmml-kd", *expected]


def test_an_unknown_sink_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"track-with = 'x'.*tensorboard, mlflow, wandb"):
        run_app(
            load_app(QUICKSTART), 2, {"num-nodes": 2, "track-with": "x", "run-dir": str(tmp_path)}
        )
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_what_the_metrics_file_has(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {
        "num-nodes": 3,
        "num-server-rounds": 2,
        "local-iterations": 1,
        "samples-per-node": 40,
        "compare-with": "",
        "method": "dpsgd",
        "energy.battery-share": 0.0,  # half of one iteration would be none
        "track-with": "tensorboard",
        "run-dir": str(tmp_path),
        "run-name": "r",
    }
    run_app(load_app(QUICKSTART), 3, config)
    found = EventAccumulator(str(tmp_path / "r" / "dpsgd"))
    found.Reload()
    lines = read_metrics_file(tmp_path / "r" / "dpsgd" / "metrics.jsonl")
    losses = [(event.step, event.value) for event in found.Scalars("train_loss")]
    expected = [(line["round"], pytest.approx(line["train_loss"])) for line in lines]
    assert losses == expected and len(losses) == 2
    (accuracy,) = found.Scalars("accuracy_by_set/audio+image")
    assert accuracy.value == pytest.approx(lines[-1]["accuracy_by_set"]["audio+image"])


def test_nothing_is_made_where_nothing_is_named(tmp_path: Path):
    assert make_sinks("", tmp_path, {}) == [] and make_sinks(" , ", tmp_path, {}) == []
