"""A fleet of processes on this machine: one run simulated, by relay, and from device to device.

The quickstart with its batteries and its radio, a SuperLink with TLS and node authentication, and
a SuperNode for each device. What is shown: whether accuracies are those of the simulation, in every
round; the bytes between the devices and the SuperLink; the seconds of a round, and the CPU seconds
of a message on a device; the memory of a device. From device to device a message is for one round,
where numbers are to be equal, or for all of them.

    python benchmarks/fleet.py --json fleet.json

Bytes are counted by a relay of TCP between the devices and the SuperLink, TLS, polling and
heartbeats included; the ServerApp, on the SuperLink's machine, is not counted. The seconds of a
round come from runs that train one iteration a round and evaluate at the end only, so that little
but the exchange is timed. They are made on three fleets, one after another: with all that makes
messages cheap; without what replaces private names of Flower's; and without the zygote, too. CPU
seconds are those of all processes of a device, ended ones included, from before such a run to its
end, by its messages: a first one, one a round, and a closing one.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from flwr_dmml.base.waits import FLOWERS_OWN
from flwr_dmml.fleet.local import LocalFleet

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart"
PATTERN = "audio,audio+image"
"""Two devices of four with a microphone only, two with a camera, too."""
RELAY, DIRECT, AT_ONCE = "relay", "direct", "direct-at-once"
KINDS: dict[str, tuple[dict[str, str], bool]] = {
    "all of it": ({}, True),
    "Flower's own waits": ({FLOWERS_OWN: "1"}, True),
    "and no zygote": ({FLOWERS_OWN: "1"}, False),
}
"""Environment of SuperLink and devices, and whether these have a zygote."""
REST_S = 20.0
"""Seconds of a fleet at rest, before its memory is read, or in which its bytes are counted."""


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
    """Samples the memory of process trees, in MB; keeps the most of each.

    A page that several processes share counts once (proportional set size).
    """

    def __init__(self, roots: dict[str, int]) -> None:
        self._roots = roots
        self.most_mb: dict[str, float] = defaultdict(float)

    def sample(self) -> None:
        """Look at all trees once."""
        for who, processes in trees(self._roots).items():
            now_mb = sum(_pss_mb(process.pid) for process in processes)
            self.most_mb[who] = max(self.most_mb[who], now_mb)


@contextmanager
def regularly(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Look every so many seconds, in the background."""
    done = threading.Event()

    def look_until_done() -> None:
        while not done.wait(every_s):
            look()

    thread = threading.Thread(target=look_until_done)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Process(NamedTuple):
    """A process; CPU seconds are its own, and those of its children that have ended."""

    pid: int
    cpu_s: float


def trees(roots: Mapping[str, int]) -> dict[str, list[Process]]:
    """Return the processes of each tree, by the ids of their roots."""
    children, found = defaultdict(list), {}
    ticks = os.sysconf("SC_CLK_TCK")
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            told = (place / "stat").read_text()
        except OSError:  # it has ended
            continue
        fields, pid = told.rpartition(")")[2].split(), int(place.name)
        children[int(fields[1])].append(pid)
        found[pid] = Process(pid, sum(map(int, fields[11:15])) / ticks)
    processes: dict[str, list[Process]] = {}
    for who, root in roots.items():
        family, processes[who] = [root], []
        while family:
            process = family.pop()
            family += children[process]
            if process in found:
                processes[who].append(found[process])
    return processes


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


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


def seconds_of_rounds(run: Path) -> list[float]:
    """Return the seconds of every round."""
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    return [float(line["seconds"]) for line in lines]


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


@dataclass
class Timed:
    """What was measured on a fleet of one kind."""

    relay_s: list[float] = field(default_factory=list)
    at_once_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rest_mb: float = 0.0
    work_mb: float = 0.0


def timed(fleet: LocalFleet, learns: dict[str, Any], repeats: int, counts: dict[str, int]) -> Timed:
    """Run little but the exchange on a fleet, by relay and at once from device to device."""
    found, roots = Timed(), {name: fleet.pid(name) for name in fleet.devices}
    rest = {who: sum(_pss_mb(p.pid) for p in tree) for who, tree in trees(roots).items()}
    found.rest_mb = max(rest.values())
    memory = Memory(roots)
    with regularly(memory.sample, 1.0):
        for repeat in range(repeats):
            for way, count in counts.items():
                settings = learns | {
                    "run-name": f"{way}-{repeat}", "num-server-rounds": count,
                    "local-iterations": 1, "evaluate-every": count,
                }  # fmt: skip
                before = cpu_seconds(roots)
                seconds = seconds_of_rounds(run(fleet, way, settings))
                if way == RELAY:
                    found.relay_s += seconds
                    used = [cpu_seconds(roots)[who] - before[who] for who in roots]
                    found.cpu_s += [s / (count + 2) for s in used]
                else:
                    found.at_once_s.append(statistics.fmean(seconds))
    found.work_mb = max(memory.most_mb.values())
    return found


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU seconds of each tree so far."""
    return {who: sum(process.cpu_s for process in tree) for who, tree in trees(roots).items()}


def main(
    nodes: Annotated[int, typer.Option(min=3, help="Devices.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the runs that learn.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each kind.")] = 3,
    relayed: Annotated[int, typer.Option(min=2, help="Rounds of a timed run by relay.")] = 8,
    gossip: Annotated[int, typer.Option(min=2, help="Rounds of a timed run, direct.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    method: Annotated[str, typer.Option(help="Method.")] = "dmml-kd",
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure a fleet on this machine against the simulation, and direct against relay."""
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
        equal: dict[str, bool] = {}
        passed: dict[str, int] = {}
        payload: dict[str, int] = {}
        with LocalFleet(folder / "fleet", parts) as fleet, counted(fleet) as counter:
            before, started = counter.bytes, time.monotonic()
            time.sleep(REST_S)
            idle = (counter.bytes - before) / (time.monotonic() - started)
            for way in (RELAY, DIRECT, AT_ONCE):
                before = counter.bytes
                done = run(fleet, way, learns | {"run-name": f"{way}-learns"})
                equal[way], passed[way] = accuracies(done) == simulated, counter.bytes - before
                sent = [n["bytes_sent"] for line in told(done) for n in line["nodes"]]
                payload[way] = sum(sent)
                err.print(f"{way}: equal {equal[way]}, {passed[way]:,} bytes")
        counts, found = {RELAY: relayed, AT_ONCE: gossip}, dict[str, Timed]()
        for kind, (variables, zygote) in KINDS.items():
            own = dict.fromkeys(("superlink", *(f"device-{k}" for k in range(nodes))), variables)
            with LocalFleet(folder / kind, parts, own, zygote=zygote) as fleet:
                time.sleep(REST_S)
                found[kind] = timed(fleet, learns, repeats, counts)
            err.print(f"{kind}: {statistics.median(found[kind].relay_s):.2f} s a round by relay")
    report(equal, passed, payload, idle, found, rounds, to_json)


def report(
    equal: dict[str, bool],
    passed: dict[str, int],
    payload: dict[str, int],
    idle: float,
    found: dict[str, Timed],
    rounds: int,
    to_json: Path | None,
) -> None:
    """Print the figures, and write them."""
    console = Console(width=120)
    table = Table("", "accuracies are", "payloads, bytes", "with the SuperLink, bytes", "of relay")
    for way, count in passed.items():
        same = "the simulation's" if equal[way] else "others"
        table.add_row(way, same, f"{payload[way]:,}", f"{count:,}", f"{count / passed[RELAY]:.2%}")
    console.print(table)
    console.print(f"an idle fleet: {idle:,.0f} bytes a second through the SuperLink")
    table = Table("", "relay, s a round", "CPU s a message", "at once, s a round", "MB, at rest")
    table.add_column("MB, most")
    for kind, one in found.items():
        table.add_row(
            kind, _spread(one.relay_s), _spread(one.cpu_s), _spread(one.at_once_s, 3),
            f"{one.rest_mb:.0f}", f"{one.work_mb:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"messages to each device: {rounds + 2} in {rounds} rounds by relay")
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    console.print(f"load of the machine in the last 1, 5 and 15 minutes: {load}")
    if to_json is not None:
        figures = {
            "equal": equal, "bytes": passed, "payload_bytes": payload, "idle_bytes_per_s": idle,
            "fleets": {kind: asdict(one) for kind, one in found.items()}, "load": os.getloadavg(),
        }  # fmt: skip
        to_json.write_text(json.dumps(figures, indent=2) + "\n")


def _spread(values: Sequence[float], digits: int = 2) -> str:
    median = statistics.median(values)
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    typer.run(main)
