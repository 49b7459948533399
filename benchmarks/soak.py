"""A rehearsal: a fleet on a poor network, in which something breaks all the time.

    python benchmarks/soak.py --devices 5 --minutes 10
    python benchmarks/soak.py --devices 3 --minutes 0.8 --gap 12
    python benchmarks/soak.py --devices 20 --minutes 30

SuperLink and SuperNodes are real processes with TLS and node keys, each in a network namespace of
its own, on links with a delay, a loss and a bandwidth (``tests/integration/lan.py``, which needs
nothing of the kernel but TUN). ``fleet serve`` brings the run forward. The seed draws what breaks,
when, whose, and for how long (``soak_plan.py``):

- *kill -9* of a device, the coordinator (Flower's ServerApp), the SuperLink;
- *partition*: a device is cut off from all others;
- *full disk*: that of a device's state, a tmpfs, is filled to the last byte;
- *clock jump*: the clock that a device's processes read is moved, and back (``soak_clock.c``);
- *reboot*: a device is killed, and started with a monotonic clock that begins anew;
- *liar*: a device's replies are false (``tests/helpers_liars.py``);
- *update*: a device is ended (SIGTERM), and started with the package in another folder.

When the plan is over, nothing breaks any more until everybody is back for five rounds. Then the run
is stopped, and compared with an undisturbed one of as many rounds in one process. Ends with status
1 where a bar is not met. Needs Linux and root; what cannot be had is said, and left out.
"""

import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from faults import ERR, ROOT, lying_app
from fleet import flwr_dmml, regularly
from fleet_helpers import FLEET
from flwr_helpers import processes_of
from lan import Lan, why_not
from rich.console import Console
from rich.table import Table
from soak_bars import (
    MOST_FILES,
    MOST_LESS,
    MOST_MB,
    QUIET_ROUNDS,
    Happened,
    Process,
    Recovery,
    growths,
    impossible,
    last_accuracy,
    recovery,
    unexplained,
    wrong_lines,
)
from soak_plan import Event, Kind, plan

from flwr_dmml.base.stopping import sigterm_exits
from flwr_dmml.fleet.config import SUPERLINK
from flwr_dmml.fleet.local import LocalFleet, Loopback, Network
from flwr_dmml.tracking.checkpoints import CHECKPOINTS, Checkpoints
from flwr_dmml.tracking.lock import owner_of, started_ticks

RUN = "rehearsal"
LINK = {"delay_s": 0.02, "loss": 0.005, "bytes_per_s": 2.5e6}
"""Of every link, in each direction: 20 ms, 0.5 %, 20 Mbit/s."""
DISK_MB = 64
SETTINGS: dict[str, Any] = {
    "local-iterations": 4,
    "evaluate-every": 1,
    "checkpoint-every": 1,
    "wait-timeout": 300.0,
}
METHOD = "dmml-kd"
ENDLESS = 100_000
"""Rounds: the run is stopped."""
PATIENCE_S = 300.0
"""Seconds that all are given to come back when nothing breaks any more."""
PROGRAMS = {
    "flower-superlink": "SuperLink",
    "flwr-serverapp": "coordinator",
    "flower-superexec": "SuperExec",
    "supernode.superexec": "SuperExec",
    "supernode.zygote": "zygote",
    "fleet\0device": "SuperNode",
    "fleet\0serve": "fleet serve",
}
"""What a process is, by its command line."""


class Site:
    """A network, and the environments in which the members of the fleet start."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.variables: dict[str, dict[str, str]] = {}
        self.before: dict[str, list[str]] = {}

    def address(self, name: str) -> str:
        return self._network.address(name)

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        given = [f"{key}={value}" for key, value in self.variables.get(name, {}).items()]
        words = [*(["env", *given] if given else []), *self.before.get(name, [])]
        return self._network.command(name, [*words, *argv])

    def inside(self, name: str) -> AbstractContextManager[None]:
        return self._network.inside(name)


# ---- what can be had here -----------------------------------------------------------------------


def left_out(folder: Path) -> dict[Kind, str]:
    """Return what cannot be tried here, and why; make the library that moves clocks."""
    why: dict[Kind, str] = {}
    if problem := why_not():
        why[Kind.PARTITION] = f"{problem}; the fleet is on the loopback"
    source, made = Path(__file__).with_name("soak_clock.c"), folder / "clock.so"
    tries = {
        Kind.DISK: ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)],
        Kind.REBOOT: [*reboot(), "true"],
        Kind.CLOCK: ["cc", "-shared", "-fPIC", "-O2", "-o", str(made), str(source), "-ldl"],
    }
    for kind, command in tries.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            why[kind] = f"{command[0]} is not installed"
            continue
        if done.returncode:
            why[kind] = done.stderr.strip()
        elif kind is Kind.DISK:
            subprocess.run(["umount", str(folder)], check=True)
    return why


def reboot() -> list[str]:
    """Return what starts a program with clocks that began to count a minute ago."""
    passed = int(float(Path("/proc/uptime").read_text().split()[0])) - 60
    return ["unshare", "--time", "--fork", f"--monotonic=-{passed}", f"--boottime=-{passed}"]


@contextmanager
def disk(place: Path) -> Iterator[None]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "none", str(place)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """Fill a disk to the last byte."""
    size = 1 << 20
    with place.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


# ---- what is looked at --------------------------------------------------------------------------


@dataclass
class Monitor:
    """Looks at all processes of a fleet every few seconds; these carry a mark."""

    mark: str
    processes: dict[tuple[int, int | None], Process] = field(default_factory=dict)
    """By their ids and when they began: an id is given to another process again."""
    most: int = 0

    def look(self) -> None:
        there = processes_of(self.mark)
        self.most = max(self.most, len(there))
        for pid in there:
            with suppress(OSError):  # it has ended
                self._look_at(pid)

    def _look_at(self, pid: int) -> None:
        place = Path(f"/proc/{pid}")
        line = (place / "cmdline").read_bytes().decode(errors="replace")
        what = next((name for words, name in PROGRAMS.items() if words in line), None)
        if what is None:
            return
        mb = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        files = len(os.listdir(place / "fd"))
        known = self.processes.setdefault((pid, started_ticks(pid)), Process(what))
        known.seen.append((time.monotonic(), mb, files))


# ---- the rehearsal ------------------------------------------------------------------------------


@dataclass
class Rehearsal:
    """A run that is being disturbed.

    Attributes
    ----------
    lan : Lan or None
        The network; None if all are on the loopback.
    folder : Path
        Of files that this writes.
    """

    fleet: LocalFleet
    site: Site
    lan: Lan | None
    folder: Path
    served: "subprocess.Popen[str]"
    happened: list[Happened] = field(default_factory=list)
    reached_s: list[float] = field(default_factory=list)
    """When each round was complete, in seconds since the start."""
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def run(self) -> Path:
        return self.fleet.runs / RUN

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.begun_s

    def text(self) -> bytes:
        """Return the rounds that are complete."""
        file = self.run / METHOD / "metrics.jsonl"
        text = file.read_bytes() if file.exists() else b""
        return text[: text.rfind(b"\n") + 1]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def note(self) -> int:
        """Note the rounds that have become complete; return their number."""
        if self.served.poll() is not None:
            raise SystemExit(f"fleet serve has ended:\n{self.served.communicate()[0]}")
        count = self.text().count(b"\n")
        del self.reached_s[count:]  # a resumed run begins after its checkpoint
        self.reached_s += [self.now_s] * (count - len(self.reached_s))
        return count

    def wait_for_rounds(self, count: int, most_s: float = 600.0) -> None:
        deadline = time.monotonic() + most_s
        while self.note() < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"not {count} rounds in {most_s:g} s")
            time.sleep(0.2)

    def disturb(self, events: Sequence[Event]) -> None:
        """Have everything happen, and mend it."""
        self.begun_s = time.monotonic()
        steps = [(event.at_s, False, event) for event in events]
        steps += [(event.at_s + event.lasts_s, True, event) for event in events]
        begun: dict[Event, int] = {}
        for at_s, mends, event in sorted(steps, key=lambda step: step[:2]):
            while self.now_s < at_s:
                self.note()
                time.sleep(0.2)
            count = self.note()
            if not mends:
                begun[event] = count
                whose = f", device {event.device}" if event.device is not None else ""
                ERR.print(f"{self.now_s:.0f} s, {count} rounds: {event.kind}{whose} {event.how}")
                self.begin(event)
            else:
                self.end(event)
                self.happened.append(Happened(event, begun[event], self.note(), self.now_s))

    def wait_for_all(self) -> None:
        """Wait until all that was disturbed has gone on for some rounds."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            count, lines = self.note(), self.lines()
            found = [recovery(one, lines).round for one in self.happened]
            if None not in found and count >= max(filter(None, found), default=0) + QUIET_ROUNDS:
                return
            time.sleep(2.0)

    def stop(self) -> str:
        """Stop watching, then the run after its round; return what the watching has said."""
        self.served.send_signal(signal.SIGTERM)
        said = self.served.communicate(timeout=60)[0]
        owner = owner_of(self.run)
        if owner is not None and not owner.has_ended:
            os.kill(owner.pid, signal.SIGTERM)
            deadline = time.monotonic() + 180
            while not owner.has_ended and time.monotonic() < deadline:
                time.sleep(0.2)
        return said

    def begin(self, event: Event) -> None:
        """Break something."""
        name = f"device-{event.device}"
        match event.kind:
            case Kind.DEVICE | Kind.REBOOT:
                self.fleet.kill(name)
            case Kind.COORDINATOR:
                self._kill_coordinator()
            case Kind.SUPERLINK:
                self.fleet.kill(SUPERLINK)
            case Kind.PARTITION:
                for other in self._others(name):
                    self._lan.cut(name, other)
            case Kind.DISK:
                fill(self._state(name) / "filler")
            case Kind.CLOCK:
                self.set_clock(name, float(event.how))
            case Kind.LIAR:
                self._lie(name).write_text(f"train: {event.how}")
            case Kind.UPDATE:
                os.killpg(self.fleet.pid(name), signal.SIGTERM)

    def end(self, event: Event) -> None:
        """Mend it."""
        name = f"device-{event.device}"
        match event.kind:
            case Kind.DEVICE:
                self.fleet.start(name)
            case Kind.REBOOT:
                self.site.before[name] = reboot()
                self.fleet.start(name)
            case Kind.SUPERLINK:
                self.fleet.start_superlink()
            case Kind.PARTITION:
                for other in self._others(name):
                    self._lan.mend(name, other)
            case Kind.DISK:
                (self._state(name) / "filler").unlink()
            case Kind.CLOCK:
                self.set_clock(name, 0.0)
            case Kind.LIAR:
                self._lie(name).write_text("none")
            case Kind.UPDATE:
                self.fleet.kill(name)  # what has not ended by itself
                found = f"{self._updated()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
                self.site.variables[name]["PYTHONPATH"] = found
                self.fleet.start(name)

    def _kill_coordinator(self) -> None:
        """Kill it, when there is one."""
        deadline = time.monotonic() + 120
        while (owner := owner_of(self.run)) is None or owner.has_ended:
            if time.monotonic() > deadline:
                raise SystemExit("no coordinator in two minutes")
            self.note()
            time.sleep(0.1)
        os.kill(owner.pid, signal.SIGKILL)

    def _updated(self) -> Path:
        """Return a folder with a copy of the package."""
        folder = self.folder / "updated"
        if not folder.exists():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "flwr_dmml", folder / "flwr_dmml", ignore=ignored)
        return folder

    @property
    def _lan(self) -> Lan:
        assert self.lan is not None
        return self.lan

    def _others(self, name: str) -> list[str]:
        return [other for other in self._lan.names if other != name]

    def _state(self, name: str) -> Path:
        return self.fleet.folder / "devices" / name / "state"

    def _lie(self, name: str) -> Path:
        return self.folder / f"{name}.lie"

    def set_clock(self, name: str, seconds: float) -> None:
        with (self.folder / f"{name}.clock").open("r+b") as file:
            file.write(struct.pack("d", seconds))


def rehearse(folder: Path, devices: int, events: Sequence[Event], seed: int) -> "Outcome":
    """Run a fleet, disturb it, and look at what is left."""
    names = [f"device-{k}" for k in range(devices)]
    parts = folder / "parts"
    flwr_dmml(
        "partition", ROOT / "examples" / "quickstart", "-n", devices, "-o", parts,
        "--set", "samples-per-node=60", "--set", f"seed={seed}",
    )  # fmt: skip
    settings = SETTINGS | {"seed": seed, "round-timeout": 20.0 + devices}
    with ExitStack() as stack:
        lan = None if why_not() else stack.enter_context(Lan([SUPERLINK, *names], **LINK))
        site = Site(lan or Loopback())
        for name in names:
            (folder / f"{name}.lie").write_text("none")
            site.variables[name] = {"DMML_LIE": str(folder / f"{name}.lie")}
        for event in events:
            name = f"device-{event.device}"
            if event.kind is Kind.CLOCK:
                (folder / f"{name}.clock").write_bytes(struct.pack("d", 0.0))
                site.variables[name]["LD_PRELOAD"] = str(folder / "clock.so")
                site.variables[name]["SOAK_CLOCK"] = str(folder / f"{name}.clock")
        fleet = LocalFleet(folder, sorted(parts.iterdir()), again=True, network=site)
        for name in sorted({f"device-{e.device}" for e in events if e.kind is Kind.DISK}):
            stack.enter_context(disk(fleet.folder / "devices" / name / "state"))
        app, mark = lying_app(folder), str(fleet.folder)
        monitor = Monitor(mark)
        with fleet:
            given = settings | {"num-server-rounds": ENDLESS}
            served = fleet.serve(app, RUN, given)
            rehearsal = Rehearsal(fleet, site, lan, folder, served)
            rehearsal.wait_for_rounds(2)
            with regularly(monitor.look, 5.0):
                rehearsal.disturb(events)
                rehearsal.wait_for_all()
            said = rehearsal.stop()
            seconds = rehearsal.now_s
        time.sleep(2.0)
        left = [Path(f"/proc/{pid}/cmdline") for pid in processes_of(mark)]
        orphans = [
            file.read_bytes().replace(b"\0", b" ").decode() for file in left if file.exists()
        ]
    (folder / "serve.log").write_text(said)
    here = settings | {"num-nodes": devices, "data-path": parts, "run-dir": folder / "undisturbed"}
    here |= {"num-server-rounds": len(rehearsal.lines()) + 1, "run-name": RUN}
    sets = [word for key, value in here.items() for word in ("--set", f"{key}={value}")]
    flwr_dmml("simulate", FLEET, "--workers", 0, *sets)
    return Outcome(rehearsal, monitor, said, seconds, orphans, folder)


class Bar(NamedTuple):
    what: str
    found: str
    allowed: str
    holds: bool


@dataclass
class Outcome:
    """What has come of it."""

    rehearsal: Rehearsal
    monitor: Monitor
    said: str
    seconds: float
    orphans: list[str]
    folder: Path

    def __post_init__(self) -> None:
        self.text, self.lines = self.rehearsal.text(), self.rehearsal.lines()
        whole = (self.folder / "undisturbed" / RUN / METHOD / "metrics.jsonl").read_bytes()
        expected = [json.loads(line) for line in whole.splitlines()[: len(self.lines)]]
        self.accuracy, self.undisturbed_accuracy = map(last_accuracy, (self.lines, expected))
        self.recoveries = [recovery(one, self.lines) for one in self.rehearsal.happened]
        self.unexplained = unexplained(self.rehearsal.happened, self.lines)
        # the last of them is completed once more if the run is resumed: by a disturbed round
        self.undisturbed = max(0, min(one.begun for one in self.rehearsal.happened) - 1)
        self.wrong = wrong_lines(self.text, whole, self.undisturbed) + impossible(self.lines)
        self.growths = growths(self.monitor.processes.values())
        self.parts = [str(file) for file in self.folder.rglob("*.part")]
        saved = Checkpoints(self.rehearsal.run / METHOD / CHECKPOINTS, keep=1)
        found, newest = saved.latest(), saved.last_round
        self.checkpoint = found is not None and found.server_round == newest == len(self.lines) + 1

    def back_s(self, one: Recovery) -> float:
        """Return the seconds from when an event was mended to the end of the first round after."""
        (mended,) = (h.ended_s for h in self.rehearsal.happened if h.event == one.event)
        assert one.round is not None
        return self.rehearsal.reached_s[one.round - 1] - mended

    def bars(self) -> list[Bar]:
        events = len(self.recoveries)
        back = sum(one.round is not None for one in self.recoveries)
        less = self.undisturbed_accuracy - self.accuracy
        left = len(self.orphans) + len(self.parts)
        told = f"{self.accuracy:.3f}, undisturbed {self.undisturbed_accuracy:.3f}"
        newest = "whole, of the last round" if self.checkpoint else "not that of the last round"
        bars = [
            Bar("events after which all went on", f"{back} of {events}", "all", back == events),
            Bar("accuracy", told, f"{MOST_LESS:g} less", less <= MOST_LESS),
            Bar("wrong rounds", str(self.wrong), "0", self.wrong == 0),
            Bar("last checkpoint", newest, "whole", self.checkpoint),
            Bar("processes and unfinished files left", str(left), "0", left == 0),
        ]
        if grown := self.growths.values():
            mb, files = max(one.mb for one in grown), max(one.files for one in grown)
            bars += [
                Bar("MB a minute, a process", f"{mb:.2f}", f"{MOST_MB:g}", mb <= MOST_MB),
                Bar("open files, the same", f"{files:.2f}", f"{MOST_FILES:g}", files <= MOST_FILES),
            ]
        return bars


# ---- the tables ---------------------------------------------------------------------------------


def report(
    outcome: Outcome, kinds: Sequence[Kind], without: dict[Kind, str], to_json: Path | None
) -> bool:
    """Print what has come of it, and write it; return whether it meets the bars."""
    console = Console(width=120)
    table = Table("", "events", "recovered", "rounds lost", "s until it went on, median (most)")
    for kind in kinds:
        own = [one for one in outcome.recoveries if one.event.kind is kind]
        took = [outcome.back_s(one) for one in own if one.round is not None]
        middle = f"{statistics.median(took):.0f} ({max(took):.0f})" if took else "-"
        lost = str(sum(one.lost for one in own)) if own and own[0].event.device is not None else "-"
        table.add_row(kind, str(len(own)), str(len(took)), lost, middle)
    console.print(table)
    table = Table("processes", "of five minutes", "MB a minute, most", "open files a minute, most")
    for what, one in outcome.growths.items():
        table.add_row(what, str(one.processes), f"{one.mb:.2f}", f"{one.files:.2f}")
    if outcome.growths:
        console.print(table)
    else:
        console.print("growth of processes: not measured, none was there for five minutes")
    rounds, starts = len(outcome.lines), outcome.said.count("as Flower's run")
    console.print(
        f"{rounds} rounds in {outcome.seconds:.0f} s, {starts} starts of the coordinator, at most "
        f"{outcome.monitor.most} processes; {outcome.undisturbed} rounds before any event"
    )
    for reason, count in outcome.unexplained.most_common():
        console.print(f"nothing of its own was broken, {count} times: {reason}", markup=False)
    for kind, why in without.items():
        console.print(f"not tried: {kind}: {why}", markup=False)
    bars, table = outcome.bars(), Table("", "found", "allowed", "")
    for bar in bars:
        verdict = "holds" if bar.holds else "[red]falls short"
        table.add_row(bar.what, bar.found, bar.allowed, verdict)
    console.print(table)
    for line in outcome.orphans + outcome.parts:
        console.print(f"left: {line}", markup=False)
    if to_json is not None:
        happened = zip(outcome.rehearsal.happened, outcome.recoveries, strict=True)
        looked_at = outcome.monitor.processes.values()
        figures = {
            "rounds": rounds, "seconds": outcome.seconds, "starts": starts,
            "events": [asdict(one) | {"back": found.round, "lost": found.lost}
                       for one, found in happened],
            "accuracy": outcome.accuracy, "undisturbed_accuracy": outcome.undisturbed_accuracy,
            "growths": {what: asdict(one) for what, one in outcome.growths.items()},
            "processes": [asdict(one) for one in looked_at if one.growth()],
            "unexplained": outcome.unexplained, "not_tried": without,
            "bars": [bar._asdict() for bar in bars], "load": os.getloadavg(),
        }  # fmt: skip
        to_json.write_text(json.dumps(figures, indent=2) + "\n")
    return all(bar.holds for bar in bars)


def main(
    devices: Annotated[int, typer.Option(min=3, max=200, help="Devices.")] = 5,
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes in which things break.")] = 3.0,
    gap: Annotated[float, typer.Option(min=5, help="Mean seconds between two of them.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Draws what breaks, and when.")] = 0,
    only: Annotated[list[Kind] | None, typer.Option(help="These events; again for more.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep all files there.")] = None,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Rehearse a fleet in which something breaks all the time."""
    if sys.platform != "linux":
        raise SystemExit("soak.py reads /proc: it needs Linux")
    with sigterm_exits(), ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        asked = only or list(Kind)
        without = {kind: why for kind, why in left_out(folder).items() if kind in asked}
        for kind, why in without.items():
            ERR.print(f"left out: {kind}: {why}", markup=False)
        kinds = [kind for kind in asked if kind not in without]
        if not (events := plan(seed, devices, minutes, gap, kinds)):
            raise typer.BadParameter(f"nothing breaks in {minutes:g} minutes with --gap {gap:g}")
        outcome = rehearse(folder, devices, events, seed)
        if not report(outcome, kinds, without, to_json):
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
