"""Run folders that somebody has changed: reports name the file, and resuming does."""

import json
import tomllib
from pathlib import Path

import pytest
from fuzzing import UNCHANGED, fuzz, of_file, of_values
from helpers_report import two_methods

from flwr_dmml.cli.sweep_plan import SweepError, read_sweep
from flwr_dmml.report import (
    ReportError,
    compare_runs,
    comparison_sections,
    read_run,
    read_runs,
    render_page,
    report_sections,
)
from flwr_dmml.report.appendix import to_latex
from flwr_dmml.tracking.history import read_metrics_file

FILES = (
    "config.json",
    "run.json",
    "dmml-kd/metrics.jsonl",
    "dmml-kd/devices.json",
    "dmml-kd/confusion.json",
)


@pytest.fixture
def run(memory: Path) -> Path:
    path = two_methods(memory / "runs")
    metrics = path / "dmml-kd" / "metrics.jsonl"
    first, *lines = map(json.loads, metrics.read_text().splitlines())
    first["failed"] = {"2": "no answer"}
    first["carried"] = [[0, 1, 2]]
    first["nodes"][0] |= {"labels": {"sent": 0.5}, "own": {"x.y": 1.0}, "measured_j": 0.5}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    return path


def report(run: Path) -> None:
    found = read_run(run)
    page = render_page("run", "", report_sections(found), [*found.warnings, *found.unfinished])
    assert len(page) < 10_000_000


@pytest.mark.parametrize("name", FILES)
def test_a_report_of_damaged_files(run: Path, name: str, pytestconfig: pytest.Config) -> None:
    file = run / name
    parse = of_file(file, lambda: report(run), ReportError)
    fuzz(parse, (ReportError,), [file.read_bytes()], pytestconfig, memory_mb=500, inputs=50)


@pytest.mark.parametrize("name", FILES)
def test_a_report_of_odd_values(run: Path, name: str, pytestconfig: pytest.Config) -> None:
    parse = of_values(run / name, lambda: report(run), ReportError)
    fuzz(parse, (ReportError,), [UNCHANGED], pytestconfig, memory_mb=500, inputs=100)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_comparison(run: Path, memory: Path, name: str, pytestconfig: pytest.Config) -> None:
    two_methods(memory / "runs", "other", seed=1)
    file = run / name

    def compare() -> str:
        found, _ = read_runs([memory / "runs"])
        comparison, _ = compare_runs(found)
        comparison.results.to_latex(), comparison.results.to_markdown()
        comparison.to_csv(), comparison.to_json(), to_latex(comparison)
        return render_page("Comparison", "", comparison_sections(comparison), [])

    parse = of_values(file, compare, ReportError, file.name, "nothing to compare")
    fuzz(parse, (ReportError,), [UNCHANGED], pytestconfig, memory_mb=500, inputs=50)


def test_a_metrics_file(run: Path, pytestconfig: pytest.Config) -> None:
    file = run / "dmml-kd" / "metrics.jsonl"
    parse = of_file(file, lambda: read_metrics_file(file), ValueError)
    fuzz(parse, (ValueError,), [file.read_bytes()], pytestconfig)


SWEEP = b"""app = "../app"
[settings]
num-nodes = 8
energy.battery-share = 0.5
[grid]
method = ["dpsgd", "dmml-kd"]
"alpha" = [0.1, 1.0]
seed = [0, 1, 2]
"""


def test_a_sweep_file(memory: Path, pytestconfig: pytest.Config) -> None:
    file = memory / "grid.toml"
    parse = of_file(file, lambda: read_sweep(file).runs(), SweepError, file.name, "grid: ")
    assert tomllib.loads(SWEEP.decode())
    fuzz(parse, (SweepError,), [SWEEP], pytestconfig)
