"""Tables of a comparison's results, and what its bars say."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import inf, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness import CONSOLE, OF_MODELS, Bar, Case, Result, Runs, Settings
from rich.table import Table
from scipy import stats


def _dropped(key: str, result: Result) -> float:
    share: float = result["dropped"][key]
    return share


# A measure that a result does not have (KeyError) is shown as "-".
MEASURES: dict[str, Callable[[Result], float]] = {
    "mean": lambda r: r["accuracy"],
    "min": lambda r: r["min_accuracy"],
    "macro F1": lambda r: r["macro_f1"],
    "UAR": lambda r: r["uar"],
    "averaged model": lambda r: r["averaged_accuracy"],
    "fused": lambda r: r["accuracy_by_set"]["audio+image"],
    "audio": lambda r: r["accuracy_by_modality"]["audio"],
    "image": lambda r: r["accuracy_by_modality"]["image"],
    "audio, image zeroed": lambda r: r["fused_alone"]["audio"],
    "kB sent a round": lambda r: r["bytes_sent_per_node"] / 1e3,
    "kB a round": lambda r: r["bytes_a_round"] / 1e3,
    "audio / image updates": lambda r: r["updates"]["audio"] / r["updates"]["image"],
    "balance": lambda r: r["mean_balance"],
    "joules": lambda r: r["total_j"],
    "simulated s": lambda r: r["total_simulated_s"],
    "lowest AUROC": lambda r: min(r["labels"]["auroc"]),
    "kept": lambda r: r["labels"]["kept"][-1],
    "most admitted": lambda r: max(r["labels"]["admitted"]),
    "right, first": lambda r: r["labels"]["right"][0],
    "right, last": lambda r: r["labels"]["right"][-1],
    "skew before": lambda r: r["labels"]["skew-before"][-1],
    "skew after": lambda r: r["labels"]["skew"][-1],
    "label / model bytes": lambda r: r["label_share"],
    "without audio": lambda r: r["accuracy_without"]["audio"],
    "without image": lambda r: r["accuracy_without"]["image"],
    "ECE uncalibrated": lambda r: r["ece_uncalibrated"],
    "ECE": lambda r: r["ece"],
    **{name: partial(_dropped, key) for name, key in OF_MODELS.items()},
}
ACCURACIES = {
    *("mean", "min", "macro F1", "UAR"),
    *("averaged model", "fused", "audio", "image", "audio, image zeroed"),
    *("without audio", "without image", "ECE uncalibrated", "ECE", *OF_MODELS),
}
OF_GROUP = re.compile(r"(accuracy|macro F1|UAR) of (\S+)")
"""A measure of the devices with exactly these sensors, ``macro F1 of audio+image``: their mean."""


def read(name: str, result: Result) -> float:
    """Return a measure of a result: one of MEASURES, or of a group of devices.

    Raises
    ------
    KeyError
        There is no such measure, or the result does not have it.
    """
    if name in MEASURES:
        return MEASURES[name](result)
    if not (match := OF_GROUP.fullmatch(name)):
        raise KeyError(name)
    what, sensors = match[1].lower().replace(" ", "_"), match[2]
    values = [node[what] for node in result["nodes"] if node["modalities"] == sensors]
    if not values:
        raise KeyError(name)
    return fmean(values)


def is_share(name: str) -> bool:
    """Return whether a measure lies in [0, 1] like an accuracy."""
    return name in ACCURACIES or OF_GROUP.fullmatch(name) is not None


def table_of(runs: Runs, scenario: str, measures: Sequence[str], title: str) -> Table:
    """Return means over seeds (and each seed's accuracy) of a scenario, one row an arm.

    Measures that none of its results has are left out.
    """
    rows = {
        arm: [_cell(name, [by_seed[seed] for seed in sorted(by_seed)]) for name in measures]
        for (where, arm), by_seed in runs.items()
        if where == scenario
    }
    shown = [i for i in range(len(measures)) if any(cells[i] != "-" for cells in rows.values())]
    table = Table(title=title, title_justify="left")
    for column in ("arm", *(measures[i] for i in shown)):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, cells in rows.items():
        table.add_row(arm, *(cells[i] for i in shown))
    return table


def _cell(name: str, results: Sequence[Result]) -> str:
    try:
        values = [read(name, result) for result in results]
    except KeyError:
        return "-"
    if not is_share(name):
        return f"{fmean(values):.3g}"
    each = " ".join(f"{v:.3f}"[1:] if v < 1 else "1.0" for v in values)
    return f"{fmean(values):.3f}" + (f" ({each})" if len(values) > 1 else "")


def differences_of(runs: Runs, scenario: str, ahead: str, measures: Sequence[str]) -> Table:
    """Return what an arm is ahead of each other one, in points of the shares among the measures.

    Means over seeds, and 95 % intervals of Student's t over the seeds' differences.
    """
    shares = [name for name in measures if is_share(name)]
    rows: dict[str, list[str]] = {}
    for where, arm in runs:
        if where != scenario or arm == ahead:
            continue
        rows[arm] = []
        for name in shares:
            try:
                by_seed = gains(runs, Bar(ahead, arm, {}, scenario), name)
                rows[arm].append("{:+.1f} ± {:.1f}".format(*interval(list(by_seed.values()))))
            except KeyError:
                rows[arm].append("-")
    shown = [i for i in range(len(shares)) if any(cells[i] != "-" for cells in rows.values())]
    table = Table(title=f"{ahead} minus the arm, points", title_justify="left")
    for column in ("arm", *(shares[i] for i in shown)):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, cells in rows.items():
        table.add_row(arm, *(cells[i] for i in shown))
    return table


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval (Student's t; nan for one value)."""
    if len(values) < 2:
        return values[0], nan
    spread = stdev(values) / sqrt(len(values))
    return fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def gains(runs: Runs, bar: Bar, name: str) -> dict[int, float]:
    """Return the gain on one measure by seed, in points."""
    baseline = runs[bar.scenario, bar.baseline]
    return {
        seed: 100 * (read(name, result) - read(bar.read or name, baseline[seed]))
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
        if (scenario, case.ahead) in runs:
            CONSOLE.print(differences_of(runs, scenario, case.ahead, case.measures))
    passed, report = True, list[dict[str, Any]]()
    for limit in case.limits:
        results = runs[limit.scenario, limit.arm].values()
        mean = fmean(read(limit.measure, result) for result in results)
        met = limit.at_least <= mean <= limit.at_most
        passed &= met
        upper = limit.at_most < inf
        asked = f"at most {limit.at_most:g}" if upper else f"at least {limit.at_least:g}"
        where = f"{limit.scenario}: " if limit.scenario else ""
        verdict = ("met" if met else "MISSED") if judged else "not judged, a smoke run"
        line = f"{where}{limit.arm}, {limit.measure}: {mean:.3f} (bar {asked}: {verdict})"
        CONSOLE.print(line, highlight=False)
        report.append({"limit": asked, "measure": limit.measure, "mean": mean, "met": met})
    for bar in case.bars:
        for name, points in bar.points.items():
            by_seed = gains(runs, bar, name)
            gain = fmean(by_seed.values())
            met = gain >= points
            passed &= met
            each = ", ".join(f"seed {seed} {value:+.1f}" for seed, value in sorted(by_seed.items()))
            where = f"{bar.scenario}: " if bar.scenario else ""
            verdict = ("met" if met else "MISSED") if judged else "not judged, a smoke run"
            against = f" ({bar.read})" if bar.read else ""
            line = f"{where}{bar.method} - {bar.baseline}{against}, {name}: {gain:+.1f} points"
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


def verdict(wrong: Sequence[str]) -> int:
    """Print which bars were missed, a line each, and return the exit status."""
    for line in wrong:
        print(line)
    print("as it should be" if not wrong else f"{len(wrong)} of the bars are missed")
    return int(bool(wrong))
