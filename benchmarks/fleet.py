"""A fleet of processes on this machine: one run simulated, by relay, and from device to device.

The quickstart with its batteries and its radio, a SuperLink with TLS and node authentication, and
a SuperNode for each device. What is shown: whether accuracies are those of the simulation, in every
round; the bytes between the devices and the SuperLink; the seconds of a gossip round; the memory of
a device. From device to device a message is for one round, where numbers are to be equal, or for
all of them.

    python benchmarks/fleet.py --json fleet.json

Bytes are counted by a relay of TCP between the devices and the SuperLink, TLS, polling and
heartbeats included; the ServerApp, on the SuperLink's machine, is not counted. The seconds of a
round come from two runs more, which train one iteration a round and evaluate at the end only, so
that little but the exchange is timed; both ways in turn, medians.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flwr_dmml.fleet.local import LocalFleet

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart"
PATTERN = "audio,audio+image"
"""Two devices of four with a microphone only, two with a camera, too."""
RELAY, DIRECT, AT_ONCE = "relay", "direct", "direct-at-once"


class Counter:
    """Hands TCP connections on to a port of this machine, and counts their bytes."""

    def __init__(self, target: int) -> None:
        self._target, self._lock = target, threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self._server.accept()
            try:
                theirs = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the SuperLink is not there: nor is this
                ours.close()
                continue
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
                with self._lock:
                    self.bytes += len(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side has closed: so does the other
            for end in (source, sink):
                end.close()


class Memory:
    """Samples the resident memory of process trees, in MB: the most of each, and of its parts."""

    def __init__(self, roots: dict[str, int]) -> None:
        self._roots, self._done = roots, threading.Event()
        self.most_mb: dict[str, float] = defaultdict(float)
        self.most_of_a_process_mb: dict[str, float] = defaultdict(float)

    @contextmanager
    def sampling(self, every_s: float = 0.2) -> Iterator[None]:
        """Sample in the background."""
        thread = threading.Thread(target=self._sample_until_done, args=(every_s,))
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _sample_until_done(self, every_s: float) -> None:
        while not self._done.wait(every_s):
            children, resident_mb, names = _processes()
            for who, root in self._roots.items():
                family, total = [root], 0.0
                while family:
                    process = family.pop()
                    family += children[process]
                    own = resident_mb.get(process, 0.0)
                    total += own
                    name = names.get(process, "")
                    self.most_of_a_process_mb[name] = max(self.most_of_a_process_mb[name], own)
                self.most_mb[who] = max(self.most_mb[who], total)


def _processes() -> tuple[dict[int, list[int]], dict[int, float], dict[int, str]]:
    """Return children, resident MB and names of all processes."""
    children, resident_mb, names = defaultdict(list), {}, {}
    page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            name, _, numbers = (place / "stat").read_text().partition("(")[2].rpartition(")")
            pages = int((place / "statm").read_text().split()[1])
        except OSError:  # it has ended
            continue
        children[int(numbers.split()[1])].append(int(place.name))
        resident_mb[int(place.name)], names[int(place.name)] = pages * page_mb, name
    return children, resident_mb, names


def cut_parts(folder: Path, nodes: int, seed: int) -> list[Path]:
    """Cut the quickstart's data; return a folder for each device."""
    flwr_dmml(
        "partition", QUICKSTART, "-n", nodes, "-o", folder, "--set",
        f"modality-pattern={PATTERN}", "--set", f"seed={seed}",
    )  # fmt: skip
    return sorted(folder.iterdir())


def flwr_dmml(*arguments: Any) -> None:
    """Run a command of this package's."""
    command = [sys.executable, "-m", "flwr_dmml.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def told(run: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def accuracies(run: Path) -> list[list[float]]:
    """Return the accuracy of each device in each evaluated round."""
    return [[n["accuracy"] for n in line["nodes"]] for line in told(run)]


def seconds_per_round(run: Path) -> float:
    """Return the mean seconds of a round, of all of them."""
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    return statistics.fmean(line["seconds"] for line in lines)


@contextmanager
def counted(fleet: LocalFleet) -> Iterator[Counter]:
    """Yield what counts the bytes between the devices and the SuperLink of a running fleet."""
    counter = Counter(fleet.port)
    for name in fleet.devices:
        script = fleet.folder / "devices" / name / "start.sh"
        text = script.read_text()
        script.write_text(text.replace(f"127.0.0.1:{fleet.port}", f"127.0.0.1:{counter.port}"))
        fleet.kill(name)
        fleet.start(name)
    yield counter


def run(fleet: LocalFleet, way: str, settings: dict[str, Any]) -> Path:
    """Run the quickstart to its end; return the method's run folder."""
    settings = {
        **settings,
        "exchange.transport": RELAY if way == RELAY else DIRECT,
        "exchange.rounds-per-message": settings["num-server-rounds"] if way == AT_ONCE else 1,
    }
    said = fleet.submit(QUICKSTART, settings).communicate()[0]
    folder = fleet.runs / str(settings["run-name"]) / str(settings["method"])
    if not (folder / "end.json").exists():
        raise SystemExit(said + "\n".join(fleet.said(name) for name in fleet.devices))
    return folder


def main(
    nodes: Annotated[int, typer.Option(min=3, help="Devices.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the runs that learn.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each kind.")] = 3,
    gossip: Annotated[int, typer.Option(min=2, help="Rounds of a timed run, peer.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    method: Annotated[str, typer.Option(help="Method.")] = "dmml-kd",
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure a fleet on this machine against the simulation, and peer against relay."""
    err = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="fleet-") as temporary:
        folder = Path(temporary)
        parts = cut_parts(folder / "parts", nodes, seed)
        learns: dict[str, Any] = {
            "method": method, "compare-with": "", "seed": seed, "dataset": "parts",
            "num-server-rounds": rounds, "evaluate-every": 1, "checkpoint-every": 0,
            "exchange.timeout-s": 60.0,
        }  # fmt: skip
        here = learns | {"num-nodes": nodes, "run-dir": folder / "simulated", "run-name": "run"}
        sets = [f"{key}={value}" for key, value in here.items()] + [f"data-path={folder / 'parts'}"]
        flwr_dmml("simulate", QUICKSTART, "--workers", 0, *(a for s in sets for a in ("--set", s)))
        simulated = accuracies(folder / "simulated" / "run" / method)
        err.print(f"simulated: {statistics.fmean(simulated[-1]):.3f} after {rounds} rounds")
        with LocalFleet(folder / "fleet", parts) as fleet, counted(fleet) as counter:
            memory = Memory({name: fleet.pid(name) for name in fleet.devices})
            equal: dict[str, bool] = {}
            passed: dict[str, int] = {}
            times: dict[str, list[float]] = {RELAY: [], AT_ONCE: []}
            with memory.sampling():
                for way in (RELAY, DIRECT, AT_ONCE):
                    before = counter.bytes
                    found = accuracies(run(fleet, way, learns | {"run-name": f"{way}-learns"}))
                    equal[way], passed[way] = found == simulated, counter.bytes - before
                    err.print(f"{way}: equal {equal[way]}, {passed[way]:,} bytes")
                before, started = counter.bytes, time.monotonic()
                time.sleep(20)
                idle = (counter.bytes - before) / (time.monotonic() - started)
                for repeat in range(repeats):
                    for way, seconds in times.items():
                        count = gossip if way == AT_ONCE else 4
                        settings = learns | {
                            "run-name": f"{way}-{repeat}", "num-server-rounds": count,
                            "local-iterations": 1, "evaluate-every": count,
                        }  # fmt: skip
                        seconds.append(seconds_per_round(run(fleet, way, settings)))
                        err.print(f"{way} {repeat + 1}/{repeats}: {seconds[-1]:.3f} s a round")
    report(equal, passed, idle, times, memory, to_json)


def report(
    equal: dict[str, bool],
    passed: dict[str, int],
    idle: float,
    times: dict[str, list[float]],
    memory: Memory,
    to_json: Path | None,
) -> None:
    """Print the figures, and write them."""
    table = Table("", "accuracies are", "bytes", "of relay", "s per gossip round", "relay / it")
    for way, count in passed.items():
        spread = ratio = ""
        if seconds := times.get(way):
            median = statistics.median(seconds)
            spread = f"{median:.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
            ratio = f"{statistics.median(times[RELAY]) / median:.0f}"
        same = "the simulation's" if equal[way] else "others"
        share = f"{count / passed[RELAY]:.2%}"
        table.add_row(way, same, f"{count:,}", share, spread, ratio)
    console = Console(width=120)
    console.print(table)
    console.print(f"an idle fleet: {idle:,.0f} bytes a second through the SuperLink (heartbeats)")
    for who, mb in memory.most_mb.items():
        console.print(f"{who}: at most {mb:.0f} MB resident, all its processes")
    for name, mb in memory.most_of_a_process_mb.items():
        console.print(f"  a process {name!r}: at most {mb:.0f} MB")
    if to_json is not None:
        figures = {
            "equal": equal, "bytes": passed, "idle_bytes_per_s": idle, "seconds": times,
            "device_mb": memory.most_mb, "process_mb": memory.most_of_a_process_mb,
        }  # fmt: skip
        to_json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
