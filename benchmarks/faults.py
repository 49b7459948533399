"""Faults that must cost no more than themselves: lies, damage, signals, ``kill -9``.

    python benchmarks/faults.py --quick
    python benchmarks/faults.py --only kills --kills 20

What each row tries:

- *lies*: one device of six lies in its replies, one lie a run. The others' figures must be those of
  a run in which it is silent, it must be named with the reason, and the run may take 200 MB more.
- *SuperNodes*: the same lies, told by one of three real SuperNodes, and lies in its letters to the
  others.
- *fuzzing*: damaged inputs for each parser (``tests/fuzz``), for some seconds each: nothing but the
  documented errors.
- *SIGTERM*: sent to a run on each engine, which is then resumed: the same metrics, byte for byte.
- *kills*: ``kill -9`` of the driver, a worker, or a SuperNode, at times that the seed draws. A
  resumed run must write the same metrics, byte for byte, or be refused with a reason; one whose
  SuperNode was killed may differ if it names the device.
- *serve*: ``kill -9`` of the coordinator, at times that the seed draws, of a run that ``fleet
  serve`` brings to its end. Each must end without help, with the same metrics, byte for byte.
- *second process*: ``--resume`` of a run that lives must be refused by name.

Ends with status 1 where a row falls short. The lies and the helpers are those of the tests.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "integration")]

from fleet_helpers import FLEET, cut_parts  # noqa: E402
from flwr_helpers import family_of, processes_of, superlink  # noqa: E402
from helpers_liars import LETTERS, LIAR, LIES, Lying, lines_of, of_others, run_four  # noqa: E402
from helpers_signals import SETTINGS, metrics, run_here, start, wait_for  # noqa: E402

from flwr_dmml.cli import app  # noqa: E402
from flwr_dmml.fleet.local import LocalFleet  # noqa: E402
from flwr_dmml.tracking.lock import owner_of  # noqa: E402

DEVICES, SUPERNODES = 6, 3
MOST_MB = 200.0
QUICK_LIES = "accuracy NaN", "payload no array"
QUICK_LETTERS = ("letter of NaN",)
ENGINES = {"in process": 0, "workers": 2}
LONGEST_S = 1200
"""No run here takes so long."""
ERR = Console(stderr=True)


class Part(StrEnum):
    LIES = "lies"
    SUPERNODES = "supernodes"
    FUZZING = "fuzzing"
    SIGTERM = "sigterm"
    KILLS = "kills"
    SERVE = "serve"
    SECOND = "second"


@dataclass
class Row:
    """What a row of the table says; it falls short where there are problems."""

    what: str
    tried: str = ""
    found: str = ""
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


# ---- lies ---------------------------------------------------------------------------------------


@contextmanager
def peak_mb() -> Iterator[list[float]]:
    """Yield a list that gets this process's largest resident memory while the block runs."""
    Path("/proc/self/clear_refs").write_text("5")
    found: list[float] = []
    yield found
    text = Path("/proc/self/status").read_text()
    found.append(int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024)  # type: ignore[index]


@contextmanager
def peak_of_others_mb(mark: str, liar: str) -> Iterator[list[float]]:
    """Yield a list that gets the largest resident memory of any process while the block runs.

    Of those whose command line or environment carries ``mark``, but not ``liar``; they come and go.
    """
    found, most, done = list[float](), 0.0, Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.2):
            for process in set(processes_of(mark)) - set(processes_of(liar)):
                with suppress(OSError):
                    text = Path(f"/proc/{process}/status").read_text()
                    if peak := re.search(r"VmHWM:\s+(\d+)", text):
                        most = max(most, int(peak[1]) / 1024)

    looking = Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()
    found.append(most)


def of_liar(method: Path, kind: str, words: str, silent: Path, row: Row, name: str) -> None:
    """Check a run with a liar against one in which that device is silent."""
    equal = figures(method) == figures(silent)
    row.check(equal, f"{name}: the others have other figures than without the device")
    log = (method.parent / "log.txt").read_text()
    row.check(words in log, f"{name}: the log does not say: {words}")
    failed = {k for line in lines_of(method) for k in line["failed"]}
    row.check(failed <= {str(LIAR)}, f"{name}: {failed} have failed")
    row.check(kind not in ("train", "closing") or bool(failed), f"{name}: nobody has failed")


def figures(method: Path) -> list[list[dict[str, Any]]]:
    """Return what stands of the others, but what they refuse of the liar, and how much of it.

    Of a letter of NaN that is every block, of one that does not come the letter.
    """
    return [
        [{k: v for k, v in node.items() if k not in ("claims", "rejected")} for node in nodes]
        for nodes in of_others(lines_of(method))
    ]


def lies(folder: Path) -> list[Row]:
    row, most, silent = Row(f"lies, 1 of {DEVICES} devices, in process"), 0.0, dict[str, Any]()
    for name, (kind, change, words) in LIES.items():
        if kind not in silent:
            run_four(folder / f"warm {kind}", Lying(kind, None), num_nodes=DEVICES)
            with peak_mb() as before:
                run = run_four(folder / f"silent {kind}", Lying(kind, None), num_nodes=DEVICES)
            silent[kind] = run, before[0]
        honest, mb = silent[kind]
        try:
            with peak_mb() as peak:
                method = run_four(folder / name, Lying(kind, change), num_nodes=DEVICES)
        except Exception as error:
            row.problems.append(f"{name}: the run ended: {type(error).__name__}: {error}")
            continue
        of_liar(method, kind, words, honest, row, name)
        most = max(most, peak[0] - mb)
        row.check(peak[0] - mb < MOST_MB, f"{name}: {peak[0] - mb:.0f} MB more")
    row.tried, row.found = f"{len(LIES)} lies", f"at most {most:.0f} MB more"
    return [row]


LYING_APP = """
import os
import sys
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr_dmml.clients import make_client_app

told = os.environ.get("DMML_LIE")
kind, _, name = Path(told).read_text().partition(": ") if told else ("none", "", "")
app = make_client_app()

if kind != "none":
    sys.path.append({tests!r})
    from helpers_liars import LETTERS, LIES, Lying, kind_of, longer

    class Liar(Lying):
        def is_liar(self, context):
            return True

        def __call__(self, message, context):
            reply = super().__call__(message, context)
            if self.kind == "letter" and kind_of(message) == "hello":
                longer(reply.content)  # so that it says what its letters may hold
            return reply

    class Device(ClientApp):
        def __call__(self, message, context):
            change = LIES[name][1] if name in LIES else None
            return Liar(kind, change)(message, context)

    app = Device()

if kind == "letter":  # of any length, whatever is asked for
    from dataclasses import replace

    from flwr_dmml.transport.direct import answers, link

    write, send = link.write_letter, answers.Answers._send

    def lying(letter):
        data = write(letter)
        return data if letter.server_round < 2 else LETTERS[name][0](data) if name else b""

    link.write_letter = lying
    answers.Answers._send = lambda self, query, question, *letter: send(
        self, query, replace(question, limit=1 << 30), *letter
    )
"""


def lying_app(folder: Path) -> Path:
    """Write the fleet's app in which a device lies as the file says that ``DMML_LIE`` names."""
    app = shutil.copytree(FLEET, folder / "app")
    (app / "fleet" / "client_app.py").write_text(LYING_APP.format(tests=str(ROOT / "tests")))
    return app


def supernodes(folder: Path, quick: bool) -> list[Row]:
    """Lie on a SuperNode: in its replies, then in its letters to the others."""
    lie = folder / "lie"
    lie.write_text("none")
    liar = lying_app(folder)
    kinds = {name: (kind, words) for name, (kind, _, words) in LIES.items()}
    kinds |= {name: ("letter", words) for name, (_, words) in LETTERS.items()}
    rows, silent = list[Row](), dict[str, tuple[Path, float]]()
    variables = {f"device-{LIAR}": {"DMML_LIE": str(lie)}}
    with fleet_of(folder, variables=variables) as fleet:

        def run(kind: str, name: str, row: Row) -> tuple[Path, float] | None:
            lie.write_text(f"{kind}: {name}")
            given = OF_FLEET | {"run-name": re.sub(r"\W", "-", name) or f"silent-{kind}"}
            if kind == "letter":
                given |= {"exchange.transport": "direct", "exchange.timeout-s": 60.0}
                given |= {"wait-timeout": 150.0}
            with peak_of_others_mb(str(folder), "DMML_LIE") as peak:
                said = fleet.submit(liar, given).communicate(timeout=LONGEST_S)[0]
            method = fleet.runs / str(given["run-name"]) / "dpsgd"
            if (method / "end.json").exists():
                return method, peak[0]
            row.problems.append(f"{name or kind}: the run ended: {said[-1000:]}")
            return None

        for what, lies, few in (("lies", LIES, QUICK_LIES), ("letters", LETTERS, QUICK_LETTERS)):
            names = few if quick else tuple(lies)
            row, most = Row(f"{what}, 1 of {SUPERNODES} SuperNodes", f"{len(names)} lies"), 0.0
            for name in names:
                kind, words = kinds[name]
                if kind not in silent and (done := run(kind, "", row)):
                    silent[kind] = done
                if kind in silent and (done := run(kind, name, row)):
                    (honest, before), (method, peak) = silent[kind], done
                    of_liar(method, kind, words, honest, row, name)
                    most = max(most, peak - before)
                    row.check(peak - before < MOST_MB, f"{name}: {peak - before:.0f} MB more")
                ERR.print(f"{row.what}: {name}")
            row.found = f"at most {most:.0f} MB more in any other process"
            rows.append(row)
    return rows


OF_FLEET: dict[str, Any] = {
    "method": "dpsgd",
    "num-server-rounds": 3,
    "local-iterations": 4,
    "evaluate-every": 1,
    "checkpoint-every": 1,
    "wait-timeout": 60.0,
}


def fleet_of(folder: Path, **options: Any) -> LocalFleet:
    """Return a fleet of SuperNodes, not yet started; the options are those of the fleet."""
    cut_parts(folder / "parts", SUPERNODES)
    return LocalFleet(folder, sorted((folder / "parts").iterdir()), **options)


# ---- parsers ------------------------------------------------------------------------------------


def fuzzing(seconds: float) -> list[Row]:
    """Run tests/fuzz, a process a file; a row for each."""
    rows = []
    for file in sorted((ROOT / "tests" / "fuzz").glob("test_*.py")):
        if file.name == "test_fuzzing.py":  # of the fuzzing itself
            continue
        command = [sys.executable, "-m", "pytest", "-v", "-s", "-n", "0", "-p", "no:cacheprovider"]
        command += [str(file), "--fuzz-seconds", str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        counts = [int(n) for n in re.findall(r"^.*?(\d+) inputs, \d+ refused", done.stdout, re.M)]
        row = Row(f"fuzzing, {file.name}", f"{len(counts)} parsers, {seconds:g} s each")
        row.found = f"{sum(counts):,} inputs" + (f", {min(counts):,} at least" if counts else "")
        for text in re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M):
            row.problems.append(text)
        row.check(done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-1500:]}")
        ERR.print(f"{row.what}: {row.found}")
        rows.append(row)
    return rows


# ---- signals and kills --------------------------------------------------------------------------


def undisturbed(folder: Path) -> bytes:
    """Return the metrics of the run that nobody disturbs."""
    folder.mkdir()
    run_here(folder, "--workers", "0", **SETTINGS, **{"run-name": "whole"})
    return metrics(folder / "whole")


def resumed(folder: Path, workers: int) -> tuple[int, str]:
    """Go on with the run ``r`` in a folder; return exit status and output."""
    command = ["simulate", str(ROOT / "examples" / "quickstart"), "--workers", str(workers)]
    command += ["--resume", "r", "--set", f"run-dir={folder}"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
    return done.exit_code, " ".join(done.output.split())


def sigterm(folder: Path) -> Iterator[Row]:
    whole = undisturbed(folder / "whole")
    for engine, workers in ENGINES.items():
        row, own = Row(f"SIGTERM, {engine}", "1 run"), folder / engine
        own.mkdir()
        given = {**SETTINGS, "checkpoint-every": 0, "run-name": "r"}
        process = start(own, "--workers", str(workers), **given)
        wait_for(process, own / "r", 2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=LONGEST_S)[0]
        row.check(process.returncode == 143, f"exit status {process.returncode}: {said[-1000:]}")
        code, said = resumed(own, workers)
        row.check(code == 0, said[-1000:])
        yield compared(row, metrics(own / "r"), whole)
    yield from sigterm_under_flower(folder, whole)


def compared(row: Row, found: bytes, whole: bytes) -> Row:
    row.found = "equal bytes when resumed" if found == whole else "other bytes"
    row.check(found == whole, "the resumed run has other metrics")
    ERR.print(f"{row.what}: {row.found}")
    return row


def sigterm_under_flower(folder: Path, whole: bytes) -> Iterator[Row]:
    row, own = Row("SIGTERM, flwr run", "1 run"), folder / "flwr run"
    own.mkdir()
    given = {**SETTINGS, "checkpoint-every": 10, "run-dir": str(own), "run-name": "r"}
    with superlink(folder / "home") as flwr_run:
        _, log = flwr_run(
            SETTINGS["num-nodes"],
            when=lambda: metrics(own / "r").count(b"\n") >= 2,
            number=signal.SIGTERM,
            **given,
        )
        row.check("Stopped after round" in log, log[-1000:])
        status, log = flwr_run(SETTINGS["num-nodes"], **given, resume="r")
        row.check(status == "finished:completed", log[-1000:])
    yield compared(row, metrics(own / "r"), whole)

    row, own = Row("SIGTERM, SuperNodes", "1 run"), folder / "supernodes"
    with fleet_of(own) as fleet:
        given = OF_FLEET | {"num-server-rounds": 5, "checkpoint-every": 10, "run-name": "r"}
        file = fleet.runs / "r" / "dpsgd" / "metrics.jsonl"
        run = fleet.submit(FLEET, given)
        while not file.exists() and run.poll() is None:
            time.sleep(0.1)
        for process in processes_of(str(own), command="flwr-serverapp"):
            os.kill(process, signal.SIGTERM)
        said = run.communicate(timeout=LONGEST_S)[0]
        row.check("Stopped after round" in said, said[-1000:])
        said = fleet.submit(FLEET, given | {"resume": "r"}).communicate(timeout=LONGEST_S)[0]
        row.check("Resumed after round" in said, said[-1000:])
    yield compared(row, file.read_bytes(), on_parts(own, given))


def on_parts(folder: Path, settings: dict[str, Any]) -> bytes:
    """Return the metrics of a run of a fleet's parts in this process."""
    given = settings | {"run-dir": str(folder / "here"), "num-nodes": SUPERNODES}
    given |= {"data-path": str(folder / "parts")}
    sets = [part for k, v in given.items() for part in ("--set", f"{k}={v}")]
    done = CliRunner().invoke(app, ["simulate", str(FLEET), "--workers", "0", *sets])
    if done.exit_code:
        raise SystemExit(f"{done.output}{done.exception!r}")
    run = folder / "here" / str(settings["run-name"])
    return (run / str(settings["method"]) / "metrics.jsonl").read_bytes()


@dataclass
class Kills:
    """``kill -9`` of a process of a run, so many times, at times that a seed draws."""

    folder: Path
    whole: bytes
    draw: random.Random

    def of_driver(self, engine: str, times: int) -> Row:
        """Kill all of a run with its driver, and resume it."""
        workers, taken = ENGINES[engine], self._seconds(engine)
        row, ends = Row(f"kill -9, driver, {engine}", f"{times} kills"), list[str]()
        for number in range(times):
            own, process = self._started(f"{engine} {number}", workers)
            time.sleep(self.draw.uniform(0, taken))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done = metrics(own / "r").count(b"\n")
            code, said = resumed(own, workers)
            if metrics(own / "r") == self.whole:
                ends.append("equal")
            elif code and "Error:" in said and "Traceback" not in said:
                ends.append("refused")
                reason = said[said.rindex("Error:") :]
                ERR.print(f"{row.what} {number}: after {done} rounds: {reason}", markup=False)
            else:
                row.problems.append(f"{number}: killed after {done} rounds: {said[-1000:]}")
            ERR.print(f"{row.what} {number}: after {done} rounds")
        row.found = f"{ends.count('equal')} equal bytes, {ends.count('refused')} refused"
        return row

    def of_worker(self, times: int) -> Row:
        """Kill a worker: the run goes on by itself."""
        taken, row = self._seconds("workers"), Row("kill -9, worker", f"{times} kills")
        equal = hit = 0
        for number in range(times):
            own, process = self._started(f"worker {number}", ENGINES["workers"])
            wait, killed = self.draw.uniform(0, taken), 0
            begun = time.monotonic()
            while not killed and process.poll() is None:
                there = family_of(process.pid, "ray::Shard")
                if there and time.monotonic() - begun > wait:
                    killed = there[0]
                    os.kill(killed, signal.SIGKILL)
                time.sleep(0.05)
            said = process.communicate(timeout=LONGEST_S)[0]
            row.check(metrics(own / "r") == self.whole, f"{number}: {said[-1000:]}")
            equal += metrics(own / "r") == self.whole
            hit += bool(killed)
            ERR.print(f"{row.what} {number}: process {killed}")
        row.found = f"{equal} equal bytes; {hit} killed, {times - hit} runs were over before"
        return row

    def of_device(self, times: int) -> Row:
        """Kill a SuperNode and start it again: the run goes on, and names it if it is missed."""
        row, ends = Row("kill -9, SuperNode", f"{times} kills"), list[str]()
        own = self.folder / "devices"
        given = OF_FLEET | {"num-server-rounds": 5, "round-timeout": 120.0, "run-name": "whole"}
        given |= {"wait-timeout": 150.0}  # a killed device is sent away for up to a minute
        with fleet_of(own, again=True) as fleet:
            whole, begun = on_parts(own, given), time.monotonic()
            fleet.submit(FLEET, given).communicate(timeout=LONGEST_S)
            taken = time.monotonic() - begun
            for number in range(times):
                name = f"killed-{number}"
                victim = self.draw.randrange(SUPERNODES)
                run = fleet.submit(FLEET, given | {"run-name": name})
                time.sleep(self.draw.uniform(0, taken))
                fleet.kill(f"device-{victim}")
                fleet.start(f"device-{victim}")
                said = run.communicate(timeout=2 * LONGEST_S)[0]
                method = fleet.runs / name / "dpsgd"
                text = f"{number}: device {victim} killed"
                if not (method / "end.json").exists():
                    row.problems.append(f"{text}: the run ended: {said[-1000:]}")
                    continue
                missed = {k for line in lines_of(method) for k in line["failed"]}
                log = (method.parent / "log.txt").read_text()
                if (method / "metrics.jsonl").read_bytes() == whole:
                    ends.append("equal")
                elif missed == {str(victim)} or (not missed and "Left out of the run" in log):
                    ends.append("named")
                else:
                    row.problems.append(f"{text}: {missed} have failed: {log[-1000:]}")
                ERR.print(f"{row.what} {text}: {ends[-1:]}", markup=False)
        row.found = f"{ends.count('equal')} equal bytes, {ends.count('named')} named"
        return row

    def _started(self, name: str, workers: int) -> tuple[Path, "subprocess.Popen[str]"]:
        own = self.folder / name
        own.mkdir()
        given = {**SETTINGS, "run-name": "r"}
        return own, start(own, "--workers", str(workers), **given)

    def _seconds(self, engine: str) -> float:
        """Return how long an undisturbed run takes."""
        own, process = self._started(f"undisturbed {time.monotonic()}", ENGINES[engine])
        begun = time.monotonic()
        said = process.communicate(timeout=LONGEST_S)[0]
        if metrics(own / "r") != self.whole:
            raise SystemExit(f"an undisturbed run ({engine}) has other metrics: {said[-2000:]}")
        return time.monotonic() - begun


def kills(folder: Path, times: int, seed: int) -> Iterator[Row]:
    """Kill drivers, workers and SuperNodes, shared out as 6, 5, 5 and 4 of 20."""
    made = Kills(folder, undisturbed(folder / "whole"), random.Random(seed))
    of_workers, of_devices = max(1, times // 4), max(1, times // 5)
    yield made.of_driver("in process", max(1, times - 2 * of_workers - of_devices))
    yield made.of_driver("workers", of_workers)
    yield made.of_worker(of_workers)
    yield made.of_device(of_devices)


def serve(folder: Path, times: int, seed: int) -> list[Row]:
    """Kill coordinators under ``fleet serve``, one a run."""
    draw, row = random.Random(seed), Row("kill -9, coordinator, fleet serve", f"{times} kills")
    given = OF_FLEET | {"num-server-rounds": 12}
    with fleet_of(folder) as fleet:

        def run(name: str, wait_s: float | None) -> tuple[str, bytes]:
            """Bring a run to its end, its coordinator killed after some seconds."""
            served, killed = fleet.serve(FLEET, name, given), False
            while wait_s is not None and not killed and served.poll() is None:
                if (owner := owner_of(fleet.runs / name)) is None:
                    time.sleep(0.05)
                    continue
                time.sleep(wait_s)
                with suppress(ProcessLookupError):
                    os.kill(owner.pid, signal.SIGKILL)
                    killed = True
            said = served.communicate(timeout=LONGEST_S)[0]
            row.check(served.returncode == 0, f"{name}: {said[-1000:]}")
            starts = said.count("as Flower's run")
            row.check(starts == 1 + killed, f"{name}: {starts} starts: {said[-1000:]}")
            row.check(killed or wait_s is None, f"{name}: it had ended by itself")
            return said, (fleet.runs / name / "dpsgd" / "metrics.jsonl").read_bytes()

        _, whole = run("whole", None)
        timing = fleet.runs / "whole" / "dpsgd" / "timing.jsonl"
        taken = sum(json.loads(line)["seconds"] for line in timing.read_text().splitlines())
        equal, times_s = 0, sorted(draw.uniform(0, taken) for _ in range(times))
        for number, wait_s in enumerate(times_s):
            said, found = run(f"killed-{number}", wait_s)
            row.check(found == whole, f"{number}: other bytes: {said[-1000:]}")
            equal += found == whole
            so_far = re.findall(r"(\d+) rounds? so far", said)
            ERR.print(f"{row.what}: after {wait_s:.1f} of {taken:.1f} s, {so_far} rounds")
    row.found = f"{equal} equal bytes"
    return [row]


def second(folder: Path) -> list[Row]:
    row = Row("a second process on a live run", "1 run")
    process = start(folder, "--workers", "0", **{**SETTINGS, "run-name": "r"})
    wait_for(process, folder / "r", 1)
    process.send_signal(signal.SIGSTOP)  # so that it lives while the other one starts
    code, said = resumed(folder, 0)
    process.send_signal(signal.SIGCONT)
    words = f"is in use by process {process.pid} on"
    row.check(code == 1 and words in said, f"exit status {code}: {said[-1000:]}")
    process.communicate(timeout=LONGEST_S)
    row.found = "refused by name" if not row.problems else ""
    whole = undisturbed(folder / "whole")
    row.check(metrics(folder / "r") == whole, "the run that lives has other metrics")
    return [row]


# ---- the table ----------------------------------------------------------------------------------


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few of everything: ten minutes.")] = False,
    only: Annotated[list[Part] | None, typer.Option(help="These parts; again for more.")] = None,
    fuzz_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds a parser; default 600, 1 with --quick.")
    ] = None,
    times: Annotated[
        int | None, typer.Option("--kills", min=4, help="Kills; default 20, 4 with --quick.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws when processes are killed.")] = 0,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Try what fails, on each engine, and print what came of it."""
    if fuzz_seconds is None:
        fuzz_seconds = 1.0 if quick else 600.0
    if times is None:
        times = 4 if quick else 20
    parts: dict[Part, Callable[[Path], Iterable[Row]]] = {
        Part.LIES: lies,
        Part.SECOND: second,
        Part.SIGTERM: sigterm,
        Part.KILLS: lambda folder: kills(folder, times, seed),
        Part.SERVE: lambda folder: serve(folder, max(1, times // 4), seed),
        Part.SUPERNODES: lambda folder: supernodes(folder, quick),
        Part.FUZZING: lambda folder: fuzzing(fuzz_seconds),
    }
    table = Table("", "tried", "found", "s", "")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        for handler in logging.getLogger("flwr").handlers:
            handler.setLevel(logging.CRITICAL)  # what runs say is in their own logs
        os.environ["FLWR_DMML_CACHE"] = str(Path(temporary) / "cache")
        for part, try_it in parts.items():
            if only and part not in only:
                continue
            folder, begun = Path(temporary) / part, time.monotonic()
            folder.mkdir()
            own: list[Row] = []
            try:
                own += try_it(folder)
            except Exception as error:  # the other parts go on
                ERR.print_exception()
                own.append(Row(part, problems=[f"{type(error).__name__}: {error}"]))
            for row in own:
                seconds = f"{time.monotonic() - begun:.0f}" if row is own[-1] else ""
                verdict = "[red]falls short" if row.problems else "holds"
                table.add_row(row.what, row.tried, row.found, seconds, verdict)
            rows += own
    console = Console(width=120)
    console.print(table)
    for row in rows:
        for problem in row.problems:
            console.print(f"{row.what}: {problem}", markup=False)
    if to_json is not None:
        to_json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if any(row.problems for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
