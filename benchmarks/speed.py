"""How fast the engines are: one round of the same small D-PSGD on each, in one run.

    python benchmarks/speed.py [--nodes 16 64 256 1024] [--rounds 9] [--peers PYTHON] [--json FILE]

Every arm runs in a process of its own, one after another: a plain PyTorch loop; a Flower app
written by hand, on this package's engines and on Flower's; and this package's own D-PSGD with two
workers, devices one by one and batched. The first round is apart (it loads data and builds models);
of the others the median counts. All arms must end with the same models, those of the app by hand to
the bit. Prints a table and a line for each bar; exits with 0 if all bars are met, 1 if not.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from harness import CONSOLE, data_folder
from rich.table import Table

WORKERS = {"in process": 0, "sharded, 1 worker": 1, "sharded, 2 workers": 2}
LEARNER = {"learner, 2 workers": "never", "learner, batched": "always"}
ARMS = ["plain loop", *WORKERS, *LEARNER, "flower"]
BARS = [
    ("sharded, 2 workers", "plain loop", 0.75),
    ("learner, batched", "plain loop", 0.6),
    ("sharded, 2 workers", "flower", 1 / 30),
]
PEERS = ["fluke", "pfl"]
"""Other packages, see ``speed_peers.py``; they do something else."""
CLOSE = 1e-5
"""How much a parameter may differ between the arms."""


def measure(arm: str, nodes: int, rounds: int, data: str) -> dict[str, Any]:
    """Run one arm in this process."""
    import speed_app

    from flwr_dmml.engine import FlowerApp, run_app

    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    started = time.perf_counter()
    results: list[speed_app.Run] = []
    app = speed_app.server_app(results, nodes, rounds)
    if arm == "plain loop":
        results.append(speed_app.plain_loop(nodes, rounds, data))
    elif arm == "flower":
        from flwr.simulation import run_simulation

        run_simulation(
            app,
            speed_app.client_app,
            nodes,
            backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
        )
    elif arm in WORKERS:
        run_app(FlowerApp({}, app, speed_app.client_app), nodes, workers=WORKERS[arm])
    else:
        config = speed_app.settings(nodes, data) | {"batched": LEARNER[arm]}
        import speed_learner

        app = speed_learner.server_app(results, nodes, rounds)
        run_app(FlowerApp(config, app, speed_learner.client_app), nodes, workers=2)
    times = results[0].times
    seconds = [after - before for before, after in pairwise(times)]
    return {
        "first_s": seconds[0],
        "rounds_s": seconds[1:],
        "start_s": times[0] - started,
        "digest": results[0].digest,
        "models": results[0].sample,
    }


def efficiency(workers: int, rounds: int) -> tuple[float, float]:
    """Return the share of the workers' time in which devices compute, and a round's seconds.

    The quickstart as it is, DMML-KD alone: its bytes, states, batteries and evaluations.
    """
    from flwr_dmml.engine import load_app, server_identity, sharded_grid

    app = load_app(Path(__file__).parents[1] / "examples" / "quickstart")
    times, busy = list[float](), list[float]()

    class Clock:
        def run_started(self, *about: object) -> None:
            pass

        def round_ended(self, record: object) -> None:
            times.append(time.perf_counter())
            busy.append(grid.busy_s)

    with tempfile.TemporaryDirectory() as folder:
        changed = {"run-dir": folder, "compare-with": "", "num-server-rounds": rounds}
        config = app.run_config | changed
        nodes = int(config["num-nodes"])
        with (
            sharded_grid(
                app.client_app, nodes, config, workers=workers, trackers=[Clock()]
            ) as grid,
            server_identity(1),
        ):
            state = RecordDict()
            app.server_app(grid, Context(1, 1, {}, state, config))
    wall = times[-2] - times[0]  # the last round has a closing message of its own
    return (busy[-2] - busy[0]) / (workers * wall), wall / (len(times) - 2)


def memory_of(mark: str) -> int:
    """Return the bytes of all processes with ``mark`` in their environment, shared ones once."""
    kilobytes = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark.encode() in (folder / "environ").read_bytes():
                rollup = (folder / "smaps_rollup").read_text()
                kilobytes += int(rollup.partition("\nPss:")[2].split()[0])
    return 1024 * kilobytes


def run_arm(
    arm: str, nodes: int, rounds: int, data: str, peers: str = sys.executable
) -> dict[str, Any]:
    """Run one arm in a process of its own, and watch its memory."""
    script = Path(__file__).with_name("speed_peers.py") if arm in PEERS else __file__
    python = peers if arm in PEERS else sys.executable
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        out = Path(folder) / "result.json"
        command = [python, str(script), "--arm", arm, "--nodes", str(nodes)]
        command += ["--rounds", str(rounds), "--json", str(out)]
        env = {**os.environ, "RAY_TMPDIR": folder, "FLWR_TELEMETRY_ENABLED": "0"}
        env["FLWR_DMML_DATA"] = data
        with (Path(folder) / "log").open("wb") as log:
            child = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            peak = 0
            while child.poll() is None:
                peak = max(peak, memory_of(folder))
                time.sleep(1.0)
        if child.returncode:
            raise SystemExit(f"{arm}: {(Path(folder) / 'log').read_text()[-3000:]}")
        result: dict[str, Any] = json.loads(out.read_text())
        return result | {"peak_gb": peak / 1e9, "round_s": median(result["rounds_s"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=9, help="the first is apart")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--peers", metavar="PYTHON", help="one that has fluke-fl and pfl")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    data = data_folder()
    if options.arm:
        result = measure(options.arm, options.nodes[0], options.rounds, data)
        options.json.write_text(json.dumps(result))
        return 0
    table = Table(
        "nodes", "arm", "ms a round", "x plain loop", "us a node", "first s", "start s", "GB"
    )
    found: dict[tuple[int, str], dict[str, Any]] = {}
    share, round_s = efficiency(2, options.rounds)
    CONSOLE.print(f"quickstart, DMML-KD, 2 workers: {1e3 * round_s:.0f} ms a round")
    for nodes in options.nodes:
        for arm in [*options.arms, *(PEERS if options.peers else [])]:
            found[nodes, arm] = r = run_arm(arm, nodes, options.rounds, data, options.peers)
            plain = found.get((nodes, "plain loop"), r)["round_s"]
            cells = [f"{1e3 * r['round_s']:.1f}", f"{r['round_s'] / plain:.2f}"]
            cells += [f"{1e6 * r['round_s'] / nodes:.0f}", f"{r['first_s']:.1f}"]
            cells += [f"{r['start_s']:.1f}", f"{r['peak_gb']:.2f}"]
            table.add_row(str(nodes), arm, *cells)
            CONSOLE.print(nodes, arm, *cells, highlight=False)
    CONSOLE.print(table)
    if options.json:
        rows = [[*key, {k: v for k, v in r.items() if k != "models"}] for key, r in found.items()]
        options.json.write_text(json.dumps(rows, indent=2))
    return 0 if judge(found, share) else 1


def judge(found: dict[tuple[int, str], dict[str, Any]], efficiency: float) -> bool:
    """Print what became of every bar whose arms have run; return whether all are met."""
    met = list[bool]()

    def bar(text: str, value: float, most: float, *, least: bool = False) -> None:
        met.append(value >= most if least else value <= most)
        verdict = "met" if met[-1] else "MISSED"
        CONSOLE.print(f"{text}: {value:.3g} (bar {most:.3g}: {verdict})", highlight=False)

    bar("quickstart, share of 2 workers' time in ClientApps", efficiency, 0.85, least=True)

    for arm, other, most in BARS:
        if {(64, arm), (64, other)} <= set(found):
            ratio = found[64, arm]["round_s"] / found[64, other]["round_s"]
            bar(f"64 nodes, {arm} over {other}", ratio, most)
    sharded = "sharded, 2 workers"
    if {(64, sharded), (1024, sharded)} <= set(found):
        small, large = found[64, sharded], found[1024, sharded]
        growth = (large["round_s"] / 1024) / (small["round_s"] / 64)
        bar("time a node, 1,024 nodes over 64", growth, 1.2)
        bar("1,024 nodes, GB of memory", large["peak_gb"], 4.0)
    if (64, sharded) in found:
        bar("64 nodes, s from start to first round", found[64, sharded]["start_s"], 5.0)
    for nodes in {n for n, _ in found}:
        arms = {arm: r for (n, arm), r in found.items() if n == nodes and arm not in PEERS}
        digests = {r["digest"] for arm, r in arms.items() if arm not in LEARNER}
        bar(f"{nodes} nodes, different results by hand", max(0, len(digests) - 1), 0)
        models = [np.array(r["models"]) for r in arms.values()]
        apart = max(float(np.abs(x - models[0]).max()) for x in models)
        bar(f"{nodes} nodes, largest difference of a parameter", apart, CLOSE)
    return all(met)


if __name__ == "__main__":
    sys.exit(main())
