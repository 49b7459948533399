"""Rounds without a beat: simulated seconds to an accuracy, with one device four times slower.

    python benchmarks/async_rounds.py [--seeds 0 1 2] [--methods dpsgd dmml-kd] [--json FILE]
    python benchmarks/async_rounds.py --real [--json FILE]

Eight devices with both sensors on one graph; one of them has a quarter of the others' clock, so
that its rounds last four times as long. Each method runs with ``rounds = "sync"`` and ``"async"``.
Judged is when the mean accuracy first reaches what synchronous D-PSGD has at its end: the
asynchronous run needs at most 0.6 of the synchronous run's simulated seconds, as the mean of the
seeds' ratios. It may do half as many rounds more: that is still less time. A short run of each
method is done twice and must leave the same bytes. Prints a table and a line for each bar that is
missed, and exits with 1 if there is one. ``--quick`` is a smoke run whose bars are not judged.

``--real`` is the same question on real processes: a SuperLink and four devices on this machine,
which exchange letters directly, with TLS. A cgroup gives each device the same share of a core, so
little that all of them together leave some of the machine idle: otherwise the others would gain
what a throttled device leaves. Then one device gets a quarter of that share. Judged is what this
costs the other three: their rounds a minute, each from the start of its first round to the end of
its last one, pauses between messages included, must be at least 0.9 of those in a run without a
throttled device. A run with a beat is measured in the same way for comparison. That needs root
and the cpu controller of cgroup v1.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from cases import COMMON, DATA
from cases.common import PLAIN
from fleet import QUICKSTART, cut_parts, trees
from harness import CONSOLE, data_folder
from judging import verdict
from rich.table import Table

from flwr_dmml.base.overrides import parse_override
from flwr_dmml.clients import make_client_app
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.fleet.local import LocalFleet
from flwr_dmml.strategies import make_server_app
from flwr_dmml.tracking.events import EVENTS, read_events

BAR = 0.6
FAST = "raspberry-pi-4"
SLOW = "a-quarter"
DEVICES = 8
METHODS = ("dpsgd", "dmml-kd")
SETTINGS = {
    "num-nodes": DEVICES,
    "topology": "random-regular",
    "topology-degree": 4,
    "energy.devices": ",".join([FAST] * (DEVICES - 1) + [SLOW]),
    "modality-pattern": "audio+image",
    "alpha": 0.1,
    "local-iterations": 5,
    "evaluate-every": 2,
    "checkpoint-every": 0,
    "keep-models": False,
}
ROUNDS = {"sync": 40, "async": 60}
SHORT = {"num-server-rounds": 4}
REAL_BAR = 0.9
REAL_DEVICES = 4
CGROUP = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000
CORES, THROTTLED_CORES = 0.3, 0.075
"""Of a core, for each device of a fleet."""
REAL: dict[str, Any] = {
    "method": "dpsgd",
    "compare-with": "",
    "dataset": "parts",
    "topology": "complete",
    "energy.battery-share": 0.0,
    "wireless.enabled": False,
    "num-server-rounds": 40,
    "evaluate-every": 1000,
    "checkpoint-every": 0,
    "exchange.transport": "direct",
    "exchange.rounds-per-message": 20,
    "exchange.timeout-s": 120.0,
}

Line = dict[str, Any]
Run = dict[str, Any]


def run(settings: Mapping[str, Any]) -> Run:
    """Run one method; return its lines by round, and what it has left as bytes."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    PROFILES[SLOW] = replace(
        PROFILES[FAST], name=SLOW, frequency_hz=PROFILES[FAST].frequency_hz / 4
    )
    app = FlowerApp({}, make_server_app(), make_client_app())
    with tempfile.TemporaryDirectory() as folder:
        run_app(app, DEVICES, {**settings, "run-dir": folder, "run-name": "run"})
        left = Path(folder) / "run" / settings["method"]
        metrics, events = left / "metrics.jsonl", left / EVENTS
        lines: list[Line] = [json.loads(line) for line in metrics.read_text().splitlines()]
        written = metrics.read_bytes() + (events.read_bytes() if events.exists() else b"")
        ages = [
            age
            for line in (events.read_text().splitlines() if events.exists() else ())
            for _, age in json.loads(line).get("letters", ())
        ]
    if any(line["failed"] for line in lines):
        raise RuntimeError(f"devices failed: {lines[-1]['failed']}")
    return {
        "accuracy": [line["accuracy"] for line in lines],
        "worst": [line["min_accuracy"] for line in lines],
        "seconds": [line["total_simulated_s"] for line in lines],
        "joules": [line["total_j"] for line in lines],
        "staleness": fmean(ages) if ages else 0.0,
        "written": written.hex(),
    }


def reached(run: Run, accuracy: float, cost: str = "seconds") -> float:
    """Return what a run has cost when its accuracy is first so high; inf where it never is."""
    best = accumulate((a or 0.0 for a in run["accuracy"]), max)
    return next((c for a, c in zip(best, run[cost], strict=True) if a >= accuracy), inf)


@contextmanager
def shares_of_a_core(fleet: LocalFleet) -> Iterator[dict[str, Path]]:
    """Yield a cgroup for each device with all its processes, those to come included."""
    groups = {name: CGROUP / f"flwr-dmml-{os.getpid()}-{name}" for name in fleet.devices}
    try:
        for name, group in groups.items():
            group.mkdir()
            for process in trees({name: fleet.pid(name)})[name]:
                (group / "cgroup.procs").write_text(str(process.pid))
        yield groups
    except OSError as error:
        raise SystemExit(f"--real needs root and cgroup v1 with cpu: {error}") from error
    finally:
        for group in filter(Path.exists, groups.values()):
            for pid in (group / "cgroup.procs").read_text().split():
                (CGROUP / "cgroup.procs").write_text(pid)
            group.rmdir()


def give(group: Path, cores: float) -> None:
    """Let the processes of a cgroup have so much of a core, together."""
    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(round(cores * PERIOD_US)))


def rounds_a_minute(fleet: LocalFleet, rounds: str, name: str, seed: int) -> list[float]:
    """Run on a fleet; return the rounds a minute of each device, by partition id."""
    settings = REAL | {"rounds": rounds, "run-name": name, "seed": seed}
    said = fleet.submit(QUICKSTART, settings).communicate()[0]
    left = fleet.runs / name / str(REAL["method"])
    if not (left / "end.json").exists():
        raise SystemExit(said + "\n".join(fleet.said(device) for device in fleet.devices))
    lines = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    if any(line["failed"] for line in lines):
        raise SystemExit(f"{name}: devices failed: {[line['failed'] for line in lines]}")
    if rounds == "sync":
        timing = (left / "timing.jsonl").read_text().splitlines()
        return [60 / fmean(json.loads(line)["seconds"] for line in timing)] * len(fleet.devices)
    events = read_events(left / EVENTS)
    found: list[float] = []
    for device in range(len(fleet.devices)):
        own = [event for event in events if event.device == device]
        minutes = (max(e.end_s for e in own) - min(e.start_s for e in own)) / 60
        found.append(len(own) / minutes)
    return found


def real(seeds: Sequence[int], to_json: Path | None) -> int:
    """Measure a fleet of real processes without a throttled device, and with one."""
    kinds = {"none": CORES, "the last": THROTTLED_CORES}
    found: dict[tuple[str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="async-") as temporary:
        folder = Path(temporary)
        parts = cut_parts(folder / "parts", REAL_DEVICES, 0)
        with LocalFleet(folder / "fleet", parts) as fleet:
            time.sleep(20)  # until the devices have loaded all that they keep between messages
            with shares_of_a_core(fleet) as groups:
                for seed in seeds:
                    for kind, cores in kinds.items():
                        for name, group in groups.items():
                            give(group, cores if name == fleet.devices[-1] else CORES)
                        for rounds in ("async", "sync"):
                            run_name = f"{rounds}-{kind}-{seed}".replace(" ", "-")
                            rates = rounds_a_minute(fleet, rounds, run_name, seed)
                            found[rounds, seed, kind] = rates
                            CONSOLE.print(run_name, [round(rate, 1) for rate in rates])
    table = Table(
        "rounds", "seed", "the others, none throttled", "one throttled", "ratio", "that one",
        title="Rounds a minute of real processes",
    )  # fmt: skip
    ratios: dict[str, list[float]] = {"async": [], "sync": []}
    for (rounds, seed, kind), rates in found.items():
        if kind == "none":
            continue
        before, after = fmean(found[rounds, seed, "none"][:-1]), fmean(rates[:-1])
        ratios[rounds].append(after / before)
        cells = (before, after, after / before, rates[-1])
        table.add_row(rounds, str(seed), *(f"{cell:.2f}" for cell in cells))
    CONSOLE.print(table)
    if to_json:
        kept = {" ".join(map(str, key)): rates for key, rates in found.items()}
        to_json.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    mean = fmean(ratios["async"])
    missed = f"the others' rounds a minute are {mean:.3f} of those before, allowed {REAL_BAR}"
    return verdict([] if mean >= REAL_BAR else [missed])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--set", type=parse_override, nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--json", type=Path, help="write all lines here")
    parser.add_argument("--quick", action="store_true", help="a smoke run, not judged")
    parser.add_argument("--real", action="store_true", help="real processes instead")
    given = parser.parse_args()
    if given.real:
        return real(given.seeds[:1] if given.quick else given.seeds, given.json)
    common = {k: v for k, v in COMMON.items() if k not in PLAIN}  # methods as they are
    common |= DATA[given.data] | SETTINGS
    if given.data != "digits":
        common["data-path"] = data_folder()
    seeds: Sequence[int] = given.seeds
    seeds = seeds[:1] if given.quick else seeds
    methods = list(dict.fromkeys(["dpsgd", *given.methods]))
    jobs: dict[tuple[str, str, int], dict[str, Any]] = {
        (method, rounds, seed): {
            **common, "num-server-rounds": count, **(SHORT if given.quick else {}),
            **dict(given.set), "method": method, "rounds": rounds, "seed": seed,
        }
        for seed in seeds
        for method in methods
        for rounds, count in ROUNDS.items()
    }  # fmt: skip
    jobs |= {
        (method, again, seeds[0]): jobs[method, "async", seeds[0]] | SHORT
        for method in methods
        for again in ("first", "second")
    }
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=spawn) as pool:
        runs = dict(zip(jobs, pool.map(run, jobs.values()), strict=True))
    wrong = [
        f"{method}: two runs of seed {seeds[0]} differ"
        for method in methods
        if runs[method, "first", seeds[0]] != runs[method, "second", seeds[0]]
    ]
    table = Table(
        "method", "seed", "accuracy to reach", "sync, s", "async, s", "ratio", "sync, J",
        "async, J", "at the end: sync", "async", "mean staleness",
        title="Simulated seconds to an accuracy",
    )  # fmt: skip
    for method in given.methods:
        ratios: list[float] = []
        for seed in seeds:
            wanted = runs["dpsgd", "sync", seed]["accuracy"][-1]
            sync, own = (runs[method, rounds, seed] for rounds in ROUNDS)
            ratios.append(reached(own, wanted) / reached(sync, wanted))
            cells = [
                wanted, reached(sync, wanted), reached(own, wanted), ratios[-1],
                reached(sync, wanted, "joules"), reached(own, wanted, "joules"),
                sync["accuracy"][-1], own["accuracy"][-1], own["staleness"],
            ]  # fmt: skip
            table.add_row(method, str(seed), *(f"{cell:.3f}" for cell in cells))
        mean = fmean(ratios)
        if not mean <= BAR:
            wrong.append(f"{method}: {mean:.3f} of the synchronous run's seconds, allowed {BAR}")
        table.add_row(method, "mean", "", "", "", f"{mean:.3f}", *[""] * 5, end_section=True)
    CONSOLE.print(table)
    if given.json:
        kept = {" ".join(map(str, key)): value for key, value in runs.items()}
        for value in kept.values():
            del value["written"]
        given.json.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    if given.quick:
        return 0
    return verdict(wrong)


if __name__ == "__main__":
    sys.exit(main())
