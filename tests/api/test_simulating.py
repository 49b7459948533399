"""Runs from Python."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn import functional as F

from flwr_dmml import Learner, Run, Topology, compare, open_run, simulate
from flwr_dmml.api.auditing import audit
from flwr_dmml.base.errors import MethodError, SettingsError, UserError
from flwr_dmml.data import LoadOptions, PartitionOptions, load_partition
from flwr_dmml.graph.topology import TOPOLOGIES, RandomRegular, make_topology
from flwr_dmml.report.reading import ReportError
from flwr_dmml.strategies import RunStoppedError

SMALL: dict[str, Any] = {
    "method": "dpsgd", "num_nodes": 3, "num_server_rounds": 2, "evaluate_every": 1,
    "local_iterations": 2, "samples_per_node": 20, "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return simulate(**SMALL, compare_with="local", run_dir=str(folder), run_name="one")


def test_the_numbers_are_those_of_the_command(run: Run, tmp_path: Path) -> None:
    app = Path(__file__).parents[2] / "examples/quickstart"
    settings = {key.replace("_", "-"): value for key, value in SMALL.items() if key != "workers"}
    wanted = settings | {"compare-with": "local", "run-dir": str(tmp_path), "run-name": "cli"}
    plain = {"energy.battery-share": 0.0, "wireless.enabled": False, "allocation.rule": "auto"}
    again = simulate(app, workers=0, **wanted, **plain)
    command = [sys.executable, "-m", "flwr_dmml.cli", "simulate", str(app), "--workers", "0"]
    for key, value in {**wanted, **plain, "run-name": "command"}.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    subprocess.run(command, check=True, capture_output=True)
    said = (tmp_path / "command/dpsgd/metrics.jsonl").read_bytes()
    assert (again.path / "dpsgd/metrics.jsonl").read_bytes() == said


def test_tables_are_those_of_the_run_folder(run: Run) -> None:
    lines = (run.path / "dpsgd/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert run.methods == ["local", "dpsgd"] and run.method == "dpsgd"
    rounds = run.rounds
    assert [*zip(rounds["method"], rounds["round"], strict=True)] == [
        ("local", 1), ("local", 2), ("dpsgd", 1), ("dpsgd", 2),
    ]  # fmt: skip
    assert rounds["accuracy"].iloc[-1] == last["accuracy"] == run.accuracy
    nodes = run.nodes[(run.nodes["method"] == "dpsgd") & (run.nodes["round"] == 2)]
    assert nodes["accuracy"].tolist() == [node["accuracy"] for node in last["nodes"]]
    confusion = run.confusion
    assert confusion.shape == (10, 10)
    right = np.trace(confusion.to_numpy()) / confusion.to_numpy().sum()
    assert right == pytest.approx(last["accuracy"], abs=0.05)  # devices have the same test set


def test_figures_and_pages(run: Run, tmp_path: Path) -> None:
    assert {"accuracy-rounds", "accuracy-bytes"} <= set(run.figures)
    figure = run.figure("accuracy-rounds")
    drawn = [trace for trace in figure.data if trace.name == "dpsgd" and trace.showlegend]
    assert list(drawn[0].x) == [1, 2]
    with pytest.raises(ReportError, match="figure 'x': there are accuracy-rounds"):
        run.figure("x")
    assert run.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "all devices, mean" in run._repr_html_()
    assert f"accuracy {run.accuracy:.3f}" in repr(run)


def test_a_folder_that_is_there_is_not_written_again(run: Run) -> None:
    again = simulate(
        **SMALL | {"num_server_rounds": 1}, run_dir=str(run.path.parent), run_name="one"
    )
    assert again.path.name == "one-2"
    assert open_run(run.path).rounds.equals(run.rounds)


class Smooth(Learner):
    """Cross-entropy on smoothed labels."""

    name = "smooth"

    def local_loss(self, batch: Any) -> Any:
        return F.cross_entropy(self.model(batch.inputs), batch.labels, label_smoothing=0.1)


class Chain(Topology):
    """Every device is linked to the next."""

    name = "chain"

    def _edges(self, n: int, t: int, seed: int) -> Any:
        return ((i, i + 1) for i in range(n - 1))


def test_a_class_an_object_and_arrays_need_no_app(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    devices = [({"a": rng.normal(size=(40, 4)) + labels[:, None]}, labels) for _ in range(3)]
    few = {"num_server_rounds": 1, "local_iterations": 2, "run_dir": str(tmp_path), "workers": 0}
    run = simulate(Smooth, data=devices, topology=Chain(), **few)
    assert run.config["topology"] == "chain" and run.config["num-nodes"] == 3
    assert run.method == "smooth"
    links = json.loads((run.path / "smooth/devices.json").read_text())["edges"]
    assert links == [[0, 1], [1, 2]]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_object_is_its_settings(name: str, tmp_path: Path) -> None:
    from flwr_dmml.api.simulating import _settings_of
    from flwr_dmml.settings import find_parts, parse_settings

    given = make_topology(name, degree=2, probability=0.4, path="links.txt", side_m=7, range_m=3)
    settings = parse_settings(
        {**_settings_of(given), "num-nodes": 8}, find_parts(), side="device"
    ).settings
    assert settings.make_topology() == given


def test_errors_are_exceptions_that_name_what_is_allowed(tmp_path: Path) -> None:
    for wrong, kind, said in (
        ({"num_server_round": 3}, SettingsError, "did you mean 'num-server-rounds'"),
        ({"method": "dmmlkd"}, UserError, "dmml-kd"),
        ({"num_nodes": 3, "num-nodes": 4}, SettingsError, "num-nodes: given twice"),
        ({"test": ([[1.0]], [0])}, SettingsError, "test: goes with data"),
        ({"data": [([[1.0]] * 4, [0, 1, 0, 1])], "num_nodes": 9}, SettingsError, "num-nodes = 9"),
    ):
        with pytest.raises(kind, match=said):
            simulate(run_dir=str(tmp_path), **wrong)
    with pytest.raises(MethodError, match="is no app; give a folder"):
        simulate(3, run_dir=str(tmp_path))  # type: ignore[arg-type]
    app = Path(__file__).parents[2] / "examples/quickstart"
    with pytest.raises(SettingsError, match="an app brings its own parts along"):
        simulate(app, topology=Chain(), run_dir=str(tmp_path))
    assert not any(tmp_path.iterdir())


def interrupted(**settings: Any) -> None:
    timer = threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(RunStoppedError, match="Stopped after round"):
            simulate(**settings)
    finally:
        timer.cancel()


def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    long = SMALL | {"num_server_rounds": 100_000, "run_dir": str(tmp_path)}
    interrupted(**long, run_name="stopped")
    first = open_run(tmp_path / "stopped").rounds
    interrupted(resume=str(tmp_path / "stopped"))
    both = open_run(tmp_path / "stopped").rounds
    assert 0 < len(first) < len(both)
    assert both["round"].tolist() == [*range(1, len(both) + 1)]
    same = [name for name in first if name != "seconds"]
    assert both[same][: len(first)].equals(first[same])


def test_the_log_is_in_the_folder_and_only_warnings_are_on_the_console(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Run folder" in (run.path / "log.txt").read_text()
    levels = [h.level for h in logging.getLogger("flwr").handlers]
    assert logging.WARNING not in levels  # put back
    assert RandomRegular(degree=4) == make_topology("random-regular")


def test_runs_side_by_side(run: Run, tmp_path: Path) -> None:
    few = SMALL | {"run_dir": str(tmp_path), "num_server_rounds": 1}
    runs = [simulate(**few | {"method": m}, seed=s) for m in ("dpsgd", "local") for s in (0, 1)]
    found = compare(runs, columns=["accuracy", "worst"])
    table = found.table
    assert set(table["row"]) == {"dpsgd", "local"} and set(table["column"]) == {"accuracy", "worst"}
    at = table[(table["row"] == "local") & (table["column"] == "accuracy")].iloc[0]
    accuracies = {r.config["method"]: [] for r in runs}
    for r in runs:
        accuracies[r.method].append(r.accuracy)
    assert at["mean"] == pytest.approx(np.mean(accuracies["local"]))
    gain = np.subtract(accuracies["local"], accuracies["dpsgd"]).mean()
    assert at["difference"] == pytest.approx(gain)
    assert r"\begin{tabular}" in found.to_latex() and "| local |" in found.to_markdown()
    assert found.figure(found.figures[0]).data and "<table" in found._repr_html_()
    assert found.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ReportError, match="is no row"):
        compare(runs, baseline="fedprox")


def test_a_second_run_reads_the_data_anew(tmp_path: Path) -> None:
    """The same folder, settings and process; the files have changed in between."""

    def write(names: Sequence[str], value: float) -> None:
        lines = ["x,label,split"]
        for k in range(24):
            np.save(tmp_path / f"{k}.npy", np.full(4, value + k % 2, np.float32))
            lines.append(f"{k}.npy,{names[k % 2]},{'test' if k > 15 else 'train'}")
        (tmp_path / "manifest.csv").write_text("\n".join(lines))

    given = SMALL | {
        "dataset": "folder", "data_path": str(tmp_path), "run_dir": str(tmp_path / "runs"),
        "num_nodes": 2, "samples_per_node": 0, "partition": "iid", "modality_pattern": "auto",
        "checkpoint_every": 2, "validation_fraction": 0,
    }  # fmt: skip
    write(["cat", "dog"], 0)
    one = simulate(**given)
    write(["cat", "eel"], 5)
    two = simulate(**given)
    assert [*one.confusion.index] == ["cat", "dog"] and [*two.confusion.index] == ["cat", "eel"]
    options = PartitionOptions(
        dataset="folder", load=LoadOptions(path=str(tmp_path)), scheme="iid", num_nodes=2,
        modality_pattern="auto",
    )  # fmt: skip
    before = load_partition(options, 0).train.inputs["x"].max()
    write(["cat", "eel"], 9)
    audit(two.path, non_members="test")
    assert (before, load_partition(options, 0).train.inputs["x"].max()) == (6, 10)
