"""Run arms (settings) over seeds in parallel processes, tabulate, write JSON, judge a bar."""

import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flwr_dmml.clients import make_client_app
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.strategies import make_server_app
from flwr_dmml.tracking import RoundRecord

Settings = Mapping[str, Any]
Last = dict[str, Any]  # a RoundRecord's JSON
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Bar:
    """What ``method`` must gain over ``baseline``, in points, on each of ``measures``."""

    method: str
    baseline: str
    points: float
    measures: tuple[str, ...]


class _LastRound:
    """A tracker that keeps the last round."""

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        self.record: RoundRecord | None = None

    def round_ended(self, record: RoundRecord) -> None:
        self.record = record


def run_arm(settings: Settings) -> Last:
    """Run one arm on the in-process engine and return its last round."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    app = FlowerApp({}, make_server_app(), make_client_app())
    last = _LastRound()
    with tempfile.TemporaryDirectory() as folder:
        run_app(app, settings["num-nodes"], {**settings, "run-dir": folder}, trackers=[last])
    assert last.record is not None
    result = last.record.to_json()
    if result["failed"] or len(result["nodes"]) != settings["num-nodes"]:
        raise RuntimeError(f"devices failed, the figures would be of the survivors: {result}")
    return result


def run_all(
    arms: Mapping[str, Settings], seeds: Sequence[int], workers: int
) -> dict[str, dict[int, Last]]:
    """Run every arm with every seed, ``workers`` at a time, each in a process of its own."""
    results: dict[str, dict[int, Last]] = {name: {} for name in arms}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(console=CONSOLE) as progress,
    ):
        task = progress.add_task("runs", total=len(arms) * len(seeds))
        jobs = {
            pool.submit(run_arm, {**settings, "seed": seed}): (name, seed)
            for seed in seeds
            for name, settings in arms.items()
        }
        for job in as_completed(jobs):
            name, seed = jobs[job]
            results[name][seed] = job.result()
            progress.advance(task)
            progress.console.print(f"{name}, seed {seed}: {job.result()['accuracy']:.3f}")
    return results


def measure(last: Last, name: str) -> float:
    """Return a measure of a last round: ``mean``, ``min`` or a modality (used alone)."""
    summary: dict[str, float] = {"mean": last["accuracy"], "min": last["min_accuracy"]}
    return (summary | last["accuracy_by_modality"])[name]


def table_of(results: Mapping[str, Mapping[int, Last]], title: str) -> Table:
    """Return mean over seeds (and each seed) of the test accuracy, one row an arm."""
    any_last = next(iter(next(iter(results.values())).values()))
    measures = ["mean", "min", *any_last["accuracy_by_modality"]]
    table = Table(title=title, title_justify="left")
    for column in ("arm", *measures, "kB sent a round"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, by_seed in results.items():
        lasts = [by_seed[seed] for seed in sorted(by_seed)]
        cells = []
        for m in measures:
            values = [measure(last, m) for last in lasts]
            each = " ".join(f"{v:.3f}"[1:] if v < 1 else "1.0" for v in values)
            cells.append(f"{fmean(values):.3f}" + (f" ({each})" if len(values) > 1 else ""))
        sent = fmean(last["bytes_sent_per_node"] for last in lasts) / 1e3
        table.add_row(name, *cells, f"{sent:.0f}")
    return table


def gains(results: Mapping[str, Mapping[int, Last]], bar: Bar, name: str) -> dict[int, float]:
    """Return the gain on one measure by seed, in points."""
    return {
        seed: 100 * (measure(last, name) - measure(results[bar.baseline][seed], name))
        for seed, last in results[bar.method].items()
    }


def conclude(
    results: Mapping[str, Mapping[int, Last]],
    arms: Mapping[str, Settings],
    bar: Bar,
    *,
    title: str,
    json_file: Path | None,
    judged: bool,
) -> int:
    """Print the table, the gains and the last line; write JSON; return the exit status."""
    CONSOLE.print(table_of(results, title))
    summary = {name: gains(results, bar, name) for name in bar.measures}
    for name, by_seed in summary.items():
        each = ", ".join(f"seed {seed} {gain:+.1f}" for seed, gain in sorted(by_seed.items()))
        CONSOLE.print(f"{name}: {fmean(by_seed.values()):+.1f} points ({each})", highlight=False)
    passed = all(fmean(by_seed.values()) >= bar.points for by_seed in summary.values())
    if json_file is not None:
        report = {
            "title": title,
            "arms": {name: dict(settings) for name, settings in arms.items()},
            "bar": {"points": bar.points, "measures": bar.measures, "passed": passed},
            "gains": summary,
            "results": results,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not judged:
        CONSOLE.print("a smoke run (--quick): the bar is not judged")
    gain = fmean(summary[bar.measures[0]].values())
    line = f"{bar.method} - {bar.baseline}: {gain:+.1f} points (bar {bar.points:.1f})"
    CONSOLE.print(line, highlight=False)
    return 0 if passed or not judged else 1


def data_folder() -> str:
    """Return ``$FLWR_DMML_DATA``.

    Raises
    ------
    SystemExit
        The variable is not set.
    """
    folder = os.environ.get("FLWR_DMML_DATA", "")
    if not folder:
        raise SystemExit("set FLWR_DMML_DATA to the folder that holds mnist/ and fsdd/")
    return str(Path(folder).resolve())
