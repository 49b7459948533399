"""How fast the engines are: one round of the same work on each, in one run.

    python benchmarks/speed.py [--parts engines many dmml-kd start efficiency] [--rounds 10]
        [--nodes 16 64 256 1024] [--many 10000] [--peers PYTHON] [--device cuda] [--json FILE]

Every arm runs in a process of its own, one after another; the machine must be idle otherwise. The
first two rounds are apart (they load data and build models); of the others the median counts.

engines     A small D-PSGD: a plain PyTorch loop; a Flower app written by hand, on this package's
            engines and on Flower's; this package's own D-PSGD (the learner) in process, on two
            workers, devices one by one and stacked, and stacked on two Ray nodes of this machine;
            with --peers two other packages, which do something else (``speed_peers.py``).
many        10,000 devices with a smaller model, five rounds: plain loop and learner.
dmml-kd     The quickstart's DMML-KD with 12 and 64 devices, and a bare loop of it by hand.
start       Seconds from the command to the first round, median of three.
efficiency  The share of two workers' time in which devices of the quickstart compute.

Arms that compute the same must end with the same models, those of the app by hand to the bit.
Prints a table and a line for each bar whose arms have run; exits with 0 if all are met, 1 if not.
With ``--device cuda`` the plain loop and the learner run on the GPU, for 64, 1,024 and 10,000
devices; all other arms are left out, and the bars but for equal models: they are a CPU's.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from flwr.app import Context, RecordDict
from harness import CONSOLE, data_folder
from rich.table import Table
from speed_bars import BARE, EFFICIENCY, Judge
from speed_start import starts

if TYPE_CHECKING:
    from speed_app import Run
    from speed_dmml_kd import Trained


@dataclass(frozen=True)
class Arm:
    """What runs, on how many workers (0: in one process)."""

    kind: Literal["loop", "by hand", "flower", "learner", "bare loop", "dmml-kd"]
    workers: int = 0
    exact: bool = False
    ray_nodes: int = 1


ENGINES = {
    "plain loop": Arm("loop"),
    "in process": Arm("by hand"),
    "sharded, 1 worker": Arm("by hand", 1),
    "sharded, 2 workers": Arm("by hand", 2),
    "learner, in process": Arm("learner"),
    "learner, one by one": Arm("learner", 2, exact=True),
    "learner, 2 workers": Arm("learner", 2),
    "learner, two Ray nodes": Arm("learner", 2, ray_nodes=2),
    "flower": Arm("flower"),
}
MANY = ["plain loop", "learner, in process", "learner, 2 workers"]
KD = {
    BARE: Arm("bare loop"),
    "DMML-KD, in process": Arm("dmml-kd"),
    "DMML-KD, 2 workers": Arm("dmml-kd", 2),
}
NODES, KD_NODES, GPU_NODES = [16, 64, 256, 1024], [12, 64], [64, 1024]
GPU_ARMS = ["plain loop", "learner, in process", "learner, one by one", "learner, 2 workers"]
ARMS = ENGINES | KD
PEERS = ["fluke", "pfl"]
"""Other packages, see ``speed_peers.py``; they do something else."""
PARTS = ["engines", "many", "dmml-kd", "start", "efficiency"]
GPU_PARTS = ["engines", "many"]
MANY_ROUNDS = 5
COLUMNS = ["ms a round", "x loop", "us a device", "first s", "start s", "GB"]
STORE_BYTES = 2_000_000_000
"""Memory that each of two Ray nodes may use for objects."""


def measure(name: str, nodes: int, rounds: int, dataset: str, device: str) -> dict[str, Any]:
    """Run one arm in this process."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    started, arm = time.perf_counter(), ARMS[name]
    run = dmml_kd(arm, nodes, rounds) if name in KD else dpsgd(arm, nodes, rounds, dataset, device)
    return {
        **asdict(run),
        "first_s": run.ended[0] - run.begun,
        "rounds_s": [after - before for before, after in pairwise(run.ended)],
        "start_s": run.begun - started,
    }


def dmml_kd(arm: Arm, nodes: int, rounds: int) -> "Trained":
    """Run the quickstart's DMML-KD."""
    import speed_dmml_kd

    if arm.kind == "bare loop":
        return speed_dmml_kd.bare_loop(nodes, rounds)
    return speed_dmml_kd.package(nodes, rounds, arm.workers)


def dpsgd(arm: Arm, nodes: int, rounds: int, dataset: str, device: str) -> "Run":
    """Run the small D-PSGD."""
    import speed_app

    from flwr_dmml.engine import FlowerApp, run_app

    config = speed_app.settings(nodes, os.environ["FLWR_DMML_DATA"], dataset, device)
    results: list[Run] = []
    app = speed_app.server_app(results, nodes, rounds)
    if arm.kind == "loop":
        return speed_app.plain_loop(nodes, rounds, config)
    if arm.kind == "flower":
        from flwr.simulation import run_simulation

        run_simulation(
            app,
            speed_app.client_app,
            nodes,
            backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
        )
    elif arm.kind == "by hand":
        run_app(FlowerApp({}, app, speed_app.client_app), nodes, workers=arm.workers)
    else:
        import speed_learner

        app = speed_learner.server_app(results, nodes, rounds)
        own = FlowerApp(config | {"exact": arm.exact}, app, speed_learner.client_app)
        with ray_nodes(arm.ray_nodes) as address:
            run_app(own, nodes, workers=arm.workers, ray_address=address)
    return results[0]


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """Start a Ray cluster on this machine's loopback, a CPU a node, and yield its address.

    Of a single node none is started, and the address is empty: the engine starts its own.
    """
    if count == 1:
        yield ""
        return
    # The first keeps Ray to loopback, on any system; the other is as in the engine's own cluster.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {
        "num_cpus": 1,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(count - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


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
    arm: str, nodes: int, rounds: int, *, dataset: str, device: str, data: str, peers: str | None
) -> dict[str, Any]:
    """Run one arm in a process of its own, and watch its memory."""
    script = Path(__file__).with_name("speed_peers.py") if arm in PEERS else __file__
    python = peers if peers and arm in PEERS else sys.executable
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        out = Path(folder) / "result.json"
        command = [python, str(script), "--arm", arm, "--nodes", str(nodes)]
        command += ["--rounds", str(rounds), "--json", str(out)]
        if arm not in PEERS:
            command += ["--dataset", dataset, "--device", device]
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
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--nodes", type=int, nargs="+", help="devices of engines")
    parser.add_argument("--many", type=int, default=10_000, help="devices of many")
    parser.add_argument("--rounds", type=int, default=10, help="at least 3; two are apart")
    parser.add_argument("--arms", nargs="+", choices=ENGINES, metavar="ARM", help="of engines")
    parser.add_argument("--peers", metavar="PYTHON", help="one that has fluke-fl and pfl")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", default="mnist", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("--rounds: at least 3, of which the first two are apart")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this machine; leave it out for a CPU")
    if options.device == "cuda" and not set(options.parts or []) <= set(GPU_PARTS):
        parser.error(f"--device cuda: of the parts only {' and '.join(GPU_PARTS)} run on a GPU")
    if options.arm:
        nodes = options.nodes[0]
        result = measure(options.arm, nodes, options.rounds, options.dataset, options.device)
        options.json.write_text(json.dumps(result))
        return 0
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    """Run the parts that are asked for, show and judge them; return the exit status."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    on_gpu = options.device == "cuda"
    parts = options.parts or (GPU_PARTS if on_gpu else PARTS)
    engines = [arm for arm in options.arms or ENGINES if arm in GPU_ARMS or not on_gpu]
    engines += PEERS if options.peers and not on_gpu else []
    few = options.nodes or (GPU_NODES if on_gpu else NODES)
    runs = [("engines", nodes, arm, options.rounds) for nodes in few for arm in engines]
    runs += [("many", options.many, arm, MANY_ROUNDS) for arm in MANY]
    runs += [("dmml-kd", nodes, arm, options.rounds) for nodes in KD_NODES for arm in KD]
    data = data_folder() if "engines" in parts else ""
    table = Table("part", "devices", "arm", *COLUMNS)
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for part, nodes, arm, rounds in runs:
        if part not in parts:
            continue
        where: dict[str, Any] = {"data": data, "device": options.device, "peers": options.peers}
        where["dataset"] = "digits" if part == "many" else "mnist"
        found[part, nodes, arm] = r = run_arm(arm, nodes, rounds, **where)
        loop = found.get((part, nodes, BARE if part == "dmml-kd" else "plain loop"), r)["round_s"]
        cells = [f"{1e3 * r['round_s']:.1f}", f"{r['round_s'] / loop:.2f}"]
        cells += [f"{1e6 * r['round_s'] / nodes:.0f}", f"{r['first_s']:.1f}"]
        cells += [f"{r['start_s']:.1f}", f"{r['peak_gb']:.2f}"]
        table.add_row(part, str(nodes), arm, *cells)
        CONSOLE.print(part, nodes, arm, *cells, highlight=False)
    CONSOLE.print(table)
    judge = Judge()
    if not on_gpu:
        judge.speed(found)
    judge.equality(found)
    if "start" in parts:
        judge.starts(starts())
    if "efficiency" in parts:
        share, round_s = efficiency(2, options.rounds)
        CONSOLE.print(f"quickstart, DMML-KD, 2 workers: {1e3 * round_s:.0f} ms a round")
        text = "quickstart, share of 2 workers' time in ClientApps"
        judge.bar(text, share, EFFICIENCY, least=True)
    if options.json:
        rows = [[*key, {k: v for k, v in r.items() if k != "models"}] for key, r in found.items()]
        options.json.write_text(json.dumps(rows, indent=2))
    return 0 if judge.met else 1


if __name__ == "__main__":
    sys.exit(main())
