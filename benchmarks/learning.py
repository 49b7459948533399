"""What methods learn: compare them on the same data, model, optimiser and iterations.

    python benchmarks/learning.py --case dmml-kd --data av-digits [--seeds 0 1 2] [--json FILE]
    python benchmarks/learning.py --case baselines --json FILE [--arms A --scenarios S --rounds R]

Prints tables, ends with a line for each bar that names the gain, and exits with 0 if all bars are
met, 1 if not. ``--quick`` is a smoke run, whose bars are not judged. ``--case baselines`` has no
bars; it writes every run to the file when it is done, and what is in the file is not run again.
"""

import argparse
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import baselines
from cases import CASES, COMMON, DATA
from cases.baselines import METHODS, NETWORKS
from harness import OF_MODELS, OF_STATES, data_folder, made, run_all
from judging import conclude

from flwr_dmml.base.overrides import parse_override

QUICK = {"num-server-rounds": 3, "evaluate-every": 3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, "baselines"], default="dmml-kd")
    parser.add_argument("--data", choices=DATA, help="another data set than the case's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", "--methods", nargs="+", help="only these arms; bars on others are not judged"
    )
    parser.add_argument("--scenarios", "--networks", nargs="+", help="only these scenarios")
    parser.add_argument("--rounds", type=int, help="of baselines, where not the network's own")
    parser.add_argument("--full", action="store_true", help="also the case's other scenarios")
    parser.add_argument(
        "--set",
        type=parse_override,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings for all arms",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--quick", action="store_true", help="smoke run; the bar is not judged")
    options = parser.parse_args()

    if options.case == "baselines":
        _check(parser, "network", NETWORKS, options.scenarios)
        _check(parser, "method", METHODS, options.arms)
        return baselines.run(options)
    case = CASES[options.case]
    known = {**case.scenarios, **(case.full if options.full else {})}
    scenarios = _chosen(parser, "scenario", known, options.scenarios)
    arms = _chosen(parser, "arm", case.arms, options.arms)
    data = options.data or case.data
    common = COMMON | DATA[data]
    if data != "digits":
        common["data-path"] = data_folder()
    seeds, quick = options.seeds, {}
    if options.quick:
        seeds, quick = seeds[:1], QUICK
    settings = {
        (scenario, arm): made(common | where | own | quick | dict(options.set))
        for scenario, where in scenarios.items()
        for arm, own in arms.items()
        if arm in case.only.get(scenario, arms)
    }
    states = not OF_STATES.isdisjoint(case.measures)
    models = not OF_MODELS.keys().isdisjoint(case.measures)
    runs = run_all(settings, seeds, options.workers, states=states, models=models)
    bars = [b for b in case.bars if {(b.scenario, b.method), (b.scenario, b.baseline)} <= set(runs)]
    limits = [limit for limit in case.limits if (limit.scenario, limit.arm) in runs]
    title = f"{options.case} on {data}: mean over seeds {seeds}"
    return conclude(
        runs,
        settings,
        replace(case, bars=bars, limits=limits),
        title=title,
        json_file=options.json,
        judged=not options.quick,
    )


def _check(
    parser: argparse.ArgumentParser, what: str, known: Collection[str], names: list[str] | None
) -> None:
    if unknown := set(names or []) - set(known):
        parser.error(f"no {what} {', '.join(sorted(unknown))}; there are: {', '.join(known)}")


def _chosen(
    parser: argparse.ArgumentParser, what: str, known: Mapping[str, Any], names: list[str] | None
) -> dict[str, Any]:
    _check(parser, what, known, names)
    return {name: known[name] for name in known if not names or name in names}


if __name__ == "__main__":
    sys.exit(main())
