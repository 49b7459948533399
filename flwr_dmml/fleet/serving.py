"""A run that goes on by itself: started, watched, and resumed after a crash.

The truth about a run is in its folder, which is on this machine: its end (``end.json``), and the
process that writes it (:mod:`flwr_dmml.tracking.lock`). Flower itself resumes nothing.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..tracking.checkpoints import CHECKPOINTS, Checkpoints
from ..tracking.ending import Ending, read_ending
from ..tracking.lock import Owner, is_in_use, owner_of
from ..tracking.run_folder import END
from .config import Fleet, FleetError
from .quoting import node_config, unit_word
from .scripts import RUNS
from .superlink import error_of, flower, handshake, last_error

POLL_S = 1.0
"""Seconds between two looks at the run folder."""
ASK_S = 15.0
"""Seconds without news from the run folder after which Flower is asked about the run."""
LONGEST_PAUSE_S = 60.0
STOPPED = "finished:stopped"
OURS = "run-name", "run-dir", "resume"
"""Settings that :func:`serve` gives itself."""

UNIT = """\
# Made by flwr-dmml fleet serve --unit.
[Unit]
Description=Run {name} of the fleet {fleet}
Wants=network-online.target
After=network-online.target flwr-dmml-superlink.service
StartLimitIntervalSec=0

[Service]
User={user}
ExecStart={command}
Restart=on-failure
RestartPreventExitStatus=2 {gave_up}
RestartSec=10
NoNewPrivileges=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


class GaveUpError(FleetError):
    """A run that is not started again: it was stopped by hand, or does not get any further."""

    exit_status = 3


@dataclass(frozen=True)
class Task:
    """A run to bring to its end.

    Attributes
    ----------
    fleet : Fleet
        Who takes part.
    folder : Path
        What ``fleet init`` has made, on the SuperLink's machine.
    app : Path
        The Flower app.
    name : str
        The run's, ``run-name``.
    settings : sequence of str
        Settings other than the app's, as ``flwr run -c`` takes them.
    runs : Path, optional
        Where its run folder is or will be; by default where the SuperLink's own are.
    """

    fleet: Fleet
    folder: Path
    app: Path
    name: str
    settings: tuple[str, ...] = ()
    runs: Path | None = None

    @property
    def run(self) -> Path:
        """The run folder."""
        return (self.runs or self.folder / "superlink" / RUNS).resolve() / self.name

    def config(self, resume: bool) -> str:
        """Return what ``flwr run -c`` is given.

        Raises
        ------
        FleetError
            A setting is one that the run is given here anyway, or the run cannot be resumed.
        """
        own: dict[str, Any] = {"run-dir": str(self.run.parent), "run-name": self.name}
        given = " ".join(self.settings)
        pairs = [word.partition("=") for word in given.split() if "=" in word]
        keys = [key for key, _, _ in pairs]
        if taken := [key for key in keys if key in OURS]:
            raise FleetError(
                f"{', '.join(taken)}: fleet serve sets this itself; use --name, --runs"
            )
        if any(key == "rounds" and value.strip("'\"") == "async" for key, _, value in pairs):
            raise FleetError(
                "rounds = 'async': real devices leave no checkpoints, so that fleet serve could "
                "not resume the run; start it with flwr run"
            )
        if "num-nodes" not in keys:
            own["num-nodes"] = len(self.fleet.devices)
        if resume:
            own["resume"] = str(self.run)
        return f"{node_config(own)} {given}".strip()


@dataclass
class Supervisor:
    """Starts a run, and resumes it until it has finished.

    Parameters
    ----------
    task : Task
        The run.
    tell : callable
        Called with a line for everything that happens.
    tries : int, >= 1
        Starts in a row without a new round after which it gives up.
    pause_s : float
        Seconds before the second start; four times as many each time up to a minute, drawn between
        half of it and the whole, so that many supervisors do not come at once.
    """

    task: Task
    tell: Callable[[str], None]
    tries: int
    pause_s: float = 1.0
    _run_id: str = field(default="", init=False)

    def serve(self) -> Ending:
        """Bring the run to its end; return how it ended: "finished".

        A run of that name that is there already is watched if it is going, resumed if it is not,
        and left alone if it has finished.

        Raises
        ------
        GaveUpError
            It was stopped by hand (``flwr stop``), or does not get any further.
        FleetError
            The task cannot be done.
        """
        task = self.task
        task.config(resume=False)
        failures, most = 0, rounds_written(task.run)
        while True:
            ending, why = self._attempt()
            if ending is not None and ending.ended == "finished":
                return ending
            rounds = rounds_written(task.run)
            failures = 0 if rounds > most else failures + 1
            most = max(most, rounds)
            self.tell(f"{task.name}: {why}; {_count(most, 'round')} so far")
            if failures >= self.tries:
                tries = _count(failures, "start")
                raise GaveUpError(f"{task.name}: gave up after {tries} without a new round: {why}")
            longest = min(LONGEST_PAUSE_S, self.pause_s * 4 ** max(failures - 1, 0))
            time.sleep(longest * random.uniform(0.5, 1.0))

    def _attempt(self) -> tuple[Ending | None, str]:
        """Start or resume the run, or find it going; return how it ended, and why not well."""
        task = self.task
        there = (task.run / "config.json").exists()
        before = _Seen.of(task.run)
        if before.ending is not None and before.ending.ended == "finished":
            self.tell(f"{task.name}: has finished already")
            return before.ending, ""
        if before.owner is not None and before.in_use:
            self.tell(f"{task.name}: is going on in {before.owner}; watching it")
            return self._watch(_Seen())
        self._wait_for_superlink()
        self._stop_what_is_left()
        command = ["run", str(task.app), task.fleet.name, "-c", task.config(resume=there)]
        try:
            started = flower(task.fleet, task.folder, command)
        except FleetError as error:
            return None, f"cannot be started: {error}"
        if not started.get("success"):
            return None, f"cannot be started: {error_of(started)}"
        self._run_id = str(started["run-id"])
        self.tell(
            f"{task.name}: {'resumed' if there else 'started'} as Flower's run {self._run_id}"
        )
        return self._watch(before)

    def _watch(self, before: "_Seen") -> tuple[Ending | None, str]:
        """Wait for the end of a run, or of the process that writes it."""
        news = time.monotonic()
        while True:
            now = _Seen.of(self.task.run)
            if now.ending is not None and now.stamp != before.stamp:
                if now.ending.ended == "interrupted":
                    self._check_not_stopped()
                return now.ending, f"{now.ending.ended}: {now.ending.reason or 'no reason given'}"
            if now.owner is not None and now.owner != before.owner:
                if not now.in_use:
                    self._check_not_stopped()
                    return None, f"{now.owner} has died"
                news = time.monotonic()
            elif time.monotonic() - news > ASK_S:
                status, details = self._status()
                if status.startswith("finished"):
                    self._check_not_stopped(status)
                    return None, f"Flower's run {self._run_id} is {status}: {details}"
                news = time.monotonic()
            time.sleep(POLL_S)

    def _wait_for_superlink(self) -> None:
        pause_s, told = self.pause_s, False
        while problem := handshake(self.task.fleet, self.task.folder):
            if not told:
                self.tell(f"waiting for the SuperLink: {problem}")
                told = True
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _stop_what_is_left(self) -> None:
        """Stop Flower's run of the start before, so that devices do not work for it any more."""
        task, run = self.task, self._run_id
        if run and not self._status()[0].startswith("finished"):
            try:
                answer = flower(task.fleet, task.folder, ["stop", run, task.fleet.name])
                problem = "" if answer.get("success") else error_of(answer)
            except FleetError as error:
                problem = str(error)
            if problem:
                self.tell(f"Flower's run {run} cannot be stopped: {problem}")
        self._run_id = ""

    def _status(self) -> tuple[str, str]:
        """Return what Flower says of the run, and its last error; nothing where none answers."""
        task, run = self.task, self._run_id
        if not run or handshake(task.fleet, task.folder):
            return "", ""
        status = ""
        try:
            answer = flower(task.fleet, task.folder, ["ls", task.fleet.name, "--run-id", run])
            status = str((answer.get("runs") or [{}])[0].get("status", ""))
            ended = status.startswith("finished")
            return status, last_error(task.fleet, task.folder, run) if ended else ""
        except FleetError as error:
            self.tell(f"Flower's run {run}: {error}")
            return status, str(error)

    def _check_not_stopped(self, status: str | None = None) -> None:
        if (self._status()[0] if status is None else status) == STOPPED:
            raise GaveUpError(
                f"{self.task.name} was stopped by hand (flwr stop); its folder is kept"
            )


@dataclass(frozen=True)
class _Seen:
    """What a run folder says: how the run has ended, when that was written, and who writes.

    ``in_use`` is whether that process may still be there.
    """

    ending: Ending | None = None
    stamp: int = 0
    owner: Owner | None = None
    in_use: bool = False

    @classmethod
    def of(cls, run: Path) -> "_Seen":
        if not (run / "config.json").exists():
            return cls()
        try:
            stamp, ending = (run / END).stat().st_mtime_ns, read_ending(run)
        except FileNotFoundError:  # not yet, or not any more
            stamp, ending = 0, None
        return cls(ending, stamp, owner_of(run), is_in_use(run))


def rounds_written(run: Path) -> int:
    """Return how many rounds of all methods a run has written, be it in a checkpoint only."""
    found = Counter[str]()
    for file in run.glob("*/metrics.jsonl"):
        found[file.parent.name] = file.read_bytes().count(b"\n")
    for folder in run.glob(f"*/{CHECKPOINTS}"):
        method = folder.parent.name
        found[method] = max(found[method], Checkpoints(folder, keep=1).last_round)
    return found.total()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def unit(task: Task, command: list[str], user: str) -> str:
    """Return a systemd unit that runs a command for a task at every start of the machine."""
    words = " ".join(unit_word(word) for word in command)
    about = {"name": task.name, "fleet": task.fleet.name, "user": user, "command": words}
    return UNIT.format(**about, gave_up=GaveUpError.exit_status)
