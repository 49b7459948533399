"""Run arms (settings) over seeds in parallel processes, tabulate, write JSON, judge bars."""

import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
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
Result = dict[str, Any]
"""A last RoundRecord's JSON, and sums over the run (``updates``, ``mean_balance``)."""
Runs = Mapping[tuple[str, str], Mapping[int, Result]]
"""(scenario, arm) -> seed -> result."""
CONSOLE = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Bar:
    """What ``method`` must gain over ``baseline`` in a scenario: points for each measure."""

    method: str
    baseline: str
    points: Mapping[str, float]
    scenario: str = ""


@dataclass(frozen=True)
class Case:
    """A comparison: every arm in every scenario, what to show and what to judge."""

    arms: Mapping[str, Settings]
    bars: Sequence[Bar]
    measures: Sequence[str]
    scenarios: Mapping[str, Settings] = field(default_factory=lambda: {"": {}})


MEASURES: dict[str, Callable[[Result], float]] = {
    "mean": lambda r: r["accuracy"],
    "min": lambda r: r["min_accuracy"],
    "fused": lambda r: r["accuracy_by_set"]["audio+image"],
    "audio": lambda r: r["accuracy_by_modality"]["audio"],
    "image": lambda r: r["accuracy_by_modality"]["image"],
    "kB sent a round": lambda r: r["bytes_sent_per_node"] / 1e3,
    "audio / image updates": lambda r: r["updates"]["audio"] / r["updates"]["image"],
    "balance": lambda r: r["mean_balance"],
    "joules": lambda r: r["total_j"],
    "simulated s": lambda r: r["total_simulated_s"],
}
ACCURACIES = {"mean", "min", "fused", "audio", "image"}


class _History:
    """A tracker that keeps every round."""

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        self.records: list[RoundRecord] = []

    def round_ended(self, record: RoundRecord) -> None:
        self.records.append(record)


def run_arm(settings: Settings) -> Result:
    """Run one arm on the in-process engine and return its result."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    app = FlowerApp({}, make_server_app(), make_client_app())
    history = _History()
    with tempfile.TemporaryDirectory() as folder:
        run_app(app, settings["num-nodes"], {**settings, "run-dir": folder}, trackers=[history])
    result = history.records[-1].to_json()
    if result["failed"] or len(result["nodes"]) != settings["num-nodes"]:
        raise RuntimeError(f"devices failed, the figures would be of the survivors: {result}")
    result["updates"] = {
        m: sum(n.updates.get(m, 0) for r in history.records for n in r.nodes)
        for m in result["accuracy_by_modality"]
    }
    balances = [r.balance for r in history.records if r.balance is not None]
    result["mean_balance"] = fmean(balances) if balances else 1.0
    return result


def run_all(
    arms: Mapping[tuple[str, str], Settings], seeds: Sequence[int], workers: int
) -> dict[tuple[str, str], dict[int, Result]]:
    """Run every arm with every seed, ``workers`` at a time, each in a process of its own."""
    results: dict[tuple[str, str], dict[int, Result]] = {name: {} for name in arms}
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
            shown = " | ".join(part for part in name if part)
            line = f"{shown}, seed {seed}: {job.result()['accuracy']:.3f}"
            progress.console.print(line, highlight=False)
    return results


def table_of(runs: Runs, scenario: str, measures: Sequence[str], title: str) -> Table:
    """Return means over seeds (and each seed's accuracy) of a scenario, one row an arm."""
    table = Table(title=title, title_justify="left")
    for column in ("arm", *measures):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for (where, arm), by_seed in runs.items():
        if where == scenario:
            results = [by_seed[seed] for seed in sorted(by_seed)]
            table.add_row(arm, *(_cell(name, results) for name in measures))
    return table


def _cell(name: str, results: Sequence[Result]) -> str:
    values = [MEASURES[name](result) for result in results]
    if name not in ACCURACIES:
        return f"{fmean(values):.3g}"
    each = " ".join(f"{v:.3f}"[1:] if v < 1 else "1.0" for v in values)
    return f"{fmean(values):.3f}" + (f" ({each})" if len(values) > 1 else "")


def gains(runs: Runs, bar: Bar, name: str) -> dict[int, float]:
    """Return the gain on one measure by seed, in points."""
    baseline = runs[bar.scenario, bar.baseline]
    return {
        seed: 100 * (MEASURES[name](result) - MEASURES[name](baseline[seed]))
        for seed, result in runs[bar.scenario, bar.method].items()
    }


def conclude(
    runs: Runs,
    arms: Mapping[tuple[str, str], Settings],
    case: Case,
    *,
    title: str,
    json_file: Path | None,
    judged: bool,
) -> int:
    """Print the tables and each bar's gains; write JSON; return the exit status."""
    for scenario in dict.fromkeys(where for where, _ in runs):
        head = f"{title}{', ' if scenario else ''}{scenario}"
        CONSOLE.print(table_of(runs, scenario, case.measures, head))
    passed, report = True, []
    for bar in case.bars:
        for name, points in bar.points.items():
            by_seed = gains(runs, bar, name)
            gain = fmean(by_seed.values())
            met = gain >= points
            passed &= met
            each = ", ".join(f"seed {seed} {value:+.1f}" for seed, value in sorted(by_seed.items()))
            where = f"{bar.scenario}: " if bar.scenario else ""
            verdict = ("met" if met else "MISSED") if judged else "not judged, a smoke run"
            line = f"{where}{bar.method} - {bar.baseline}, {name}: {gain:+.1f} points"
            CONSOLE.print(f"{line} (bar {points:+.1f}: {verdict}; {each})", highlight=False)
            report.append(asdict(bar) | {"measure": name, "gains": by_seed, "met": met})
    if json_file is not None:
        write = {
            "title": title,
            "arms": [[*name, dict(settings)] for name, settings in arms.items()],
            "bars": report,
            "results": [[*name, by_seed] for name, by_seed in runs.items()],
        }
        json_file.write_text(json.dumps(write, indent=2) + "\n", encoding="utf-8")
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
