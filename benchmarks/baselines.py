"""``learning.py --case baselines``: every method at its best of three rates, cell by cell."""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from cases.baselines import METHODS, NETWORKS, RATE_SEED, WAYS, settings_of
from harness import CONSOLE, FailedDevicesError, data_folder, made, run_arm
from judging import interval, read

from flwr_dmml.base.errors import UserError
from flwr_dmml.strategies.roster import NoDevicesError

MEASURES = "mean", "min", "macro F1", "kB a round", "joules"
HEAD = "mean (seeds)", "worst device", "macro F1", "kB a round", "joules"
ALONE, AIDED = WAYS
Found = dict[str, dict[str, Any]]
"""Each cell's measures, or why it was ``refused`` or has ``failed``, and its seconds."""


@dataclass(frozen=True)
class Cell:
    """A run."""

    network: str
    method: str
    way: str
    rate: float
    seed: int
    more: tuple[tuple[str, Any], ...] = ()
    """Settings that are not those of the network."""

    @property
    def name(self) -> str:
        """The cell's key in the JSON file."""
        others = (f"{key}={value}" for key, value in self.more)
        rate, seed = f"rate {self.rate:g}", f"seed {self.seed}"
        return " | ".join((self.network, self.method, self.way, rate, seed, *others))

    def run(self) -> dict[str, Any]:
        """Return what the JSON file has of the cell."""
        settings = settings_of(self.network, self.method, self.way) | dict(self.more)
        settings |= {"learning-rate": self.rate, "seed": self.seed}
        settings["evaluate-every"] = settings["num-server-rounds"]
        if "data-path" not in settings:
            settings["data-path"] = data_folder()
        begun = time.process_time()
        try:
            result = run_arm(made(settings))
            found: dict[str, Any] = {name: read(name, result) for name in MEASURES}
        except (NoDevicesError, FailedDevicesError) as error:
            found = {"failed": str(error)}
        except UserError as error:
            found = {"refused": str(error)}
        return found | {"seconds": round(time.process_time() - begun, 1)}


def run_cells(cells: Iterable[Cell], found: Found, save: Callable[[], None], workers: int) -> None:
    """Run those that are not found yet, and add them."""
    left = [cell for cell in cells if cell.name not in found]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(cell.run): cell for cell in left}
        for done in as_completed(running):
            cell, result = running[done], done.result()
            found[cell.name] = result
            save()
            said = f"{result['mean']:.3f}" if "mean" in result else _why(result)
            CONSOLE.print(f"{cell.name}: {said}, {result['seconds']:.0f} s", highlight=False)


def _why(result: Mapping[str, Any]) -> str:
    return next(f"{kind}: {result[kind]}" for kind in ("refused", "failed") if kind in result)


def best_rate(found: Found, cells: Sequence[Cell]) -> float | None:
    """Return the rate with the best mean accuracy; None if no run came to its end."""
    ended = [cell for cell in cells if "mean" in found.get(cell.name, {})]
    best = max(ended, key=lambda cell: found[cell.name]["mean"], default=None)
    return best.rate if best else None


def run(options: argparse.Namespace) -> int:
    """Choose rates, run what the file does not have, print the tables in markdown."""
    file, found = options.json, Found()
    if file is not None and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))

    def save() -> None:
        if file is not None:
            part = file.with_name(f"{file.name}.part")
            part.write_text(json.dumps(found, indent=1), encoding="utf-8")
            os.replace(part, file)

    more = dict(options.set)
    if options.quick:
        options.rounds, options.seeds = 3, options.seeds[:1]
    if options.rounds:
        more["num-server-rounds"] = options.rounds
    networks = [name for name in NETWORKS if name in (options.scenarios or NETWORKS)]
    methods = [name for name in METHODS if name in (options.arms or METHODS)]
    make = partial(Cell, more=tuple(sorted(more.items())))
    run_now = partial(run_cells, found=found, save=save, workers=options.workers)
    for network in networks:
        tried = {
            m: [make(network, m, ALONE, rate, RATE_SEED) for rate in NETWORKS[network].rates]
            for m in methods
        }
        run_now(cell for m in methods for cell in tried[m])
        best = {m: best_rate(found, tried[m]) for m in methods}
        cells = {
            (m, way): [make(network, m, way, rate, seed) for seed in options.seeds]
            for m, rate in best.items()
            if rate is not None
            for way in WAYS
        }
        run_now(cell for each in cells.values() for cell in each)
        rows = {key: [found[cell.name] for cell in each] for key, each in cells.items()}
        _print(network, best, rows)
        for m in methods:
            if best[m] is None:
                CONSOLE.print(f"{m}: {_why(found[tried[m][0].name])}", highlight=False)
    return 0


def _print(
    network: str,
    rates: Mapping[str, float | None],
    rows: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
) -> None:
    """Print a network's table, best method first, and who is not behind it."""
    means = {
        key: fmean(result["mean"] for result in each)
        for key, each in rows.items()
        if all("mean" in result for result in each)
    }
    ranked = sorted(rates, key=lambda m: -max(means.get((m, way), 0.0) for way in WAYS))
    head = ["", "rate", *HEAD, *(f"aided: {name}" for name in HEAD)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for method in ranked:
        rate = rates[method]
        if rate is not None:
            cells = [c for way in WAYS for c in _columns(rows[method, way])]
            lines.append(f"| {' | '.join([f'`{method}`', f'{rate:g}', *cells])} |")
    print(f"\n{network}:\n", *lines, "", sep="\n", flush=True)
    for way in WAYS:
        order = sorted((m for m in rates if (m, way) in means), key=lambda m: -means[m, way])
        if not order:
            continue
        leads = {m: _lead(rows[order[0], way], rows[m, way]) for m in order[1:]}
        near = [f"{m} ({gap:.1f} ± {by:.1f})" for m, (gap, by) in leads.items() if gap <= by]
        first = f"{network}, {way}: {order[0]} first; within noise: {', '.join(near) or 'nobody'}"
        if "dmml-kd" in leads:
            gap, by = leads["dmml-kd"]
            place = order.index("dmml-kd") + 1
            first += f"; dmml-kd is number {place}, {gap:.1f} ± {by:.1f} points behind"
        print(first, flush=True)


def _columns(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cells of a row for one way: means over seeds, and each seed's accuracy."""
    if odd := [result for result in results if "mean" not in result]:
        return ["refused" if "refused" in odd[0] else "diverged", *["-"] * (len(HEAD) - 1)]
    mean, worst, f1, kilobytes, joules = (
        fmean(result[name] for result in results) for name in MEASURES
    )
    each = " ".join(f"{result['mean']:.3f}".removeprefix("0") for result in results)
    return [
        f"{mean:.3f} ({each})",
        f"{worst:.3f}",
        f"{f1:.3f}",
        f"{kilobytes:.0f}",
        f"{joules:.0f}",
    ]


def _lead(
    first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> tuple[float, float]:
    """Return the lead of a row over another in points, and its 95 % interval over the seeds."""
    pairs = zip(first, other, strict=True)
    return interval([100 * (one["mean"] - two["mean"]) for one, two in pairs])
