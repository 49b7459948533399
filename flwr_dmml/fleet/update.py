"""Updates a device, on the device: ``python update.py DEVICE.json [--rollback | --status]``.

:mod:`~flwr_dmml.fleet.push` sends this file, with what is to be installed. The Python of the
device's virtual environment runs it, and it uses nothing of this package: what is installed there
may be old or broken.

A version is a folder over the virtual environment, first on ``PYTHONPATH``: this package, and what
it requires that the environment lacks. Two links say which one runs (``current``) and which one ran
before (``previous``); where one is missing, it is what the environment holds.
"""

import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = "flwr-dmml"
VERSIONS, CURRENT, PREVIOUS = "versions", "current", "previous"
"""The folder of the versions in that of a device, and the links in it."""
PID = "state/pid"
"""The file in which start.sh leaves its process id, that of the SuperNode."""
WHEELS = "wheels"
"""The folder beside this file with what is to be installed."""
TEST_S, STOP_S = 1800.0, 60.0
"""Seconds that a step before the switch may take, and the SuperNode to end."""
READY_S, SETTLE_S = 240.0, 15.0
"""Seconds that the device is given to come back, and for which it must then stay."""
STARTS = 3
"""Starts that end before the SuperNode listens, after which a version does not start."""


class UpdateError(Exception):
    """Why a device is not updated, in one line."""


class Board:
    """A device that is to be updated.

    Parameters
    ----------
    about : mapping
        Its ``folder``, ``unit``, ``user``, ``port`` (of the SuperNode, on the loopback) and
        ``config`` (for the dry round).
    wheels : Path
        Folder of what is to be installed.
    """

    def __init__(self, about: Mapping[str, Any], wheels: Path) -> None:
        self.folder = Path(about["folder"])
        self.unit, self.port = str(about["unit"]), int(about["port"])
        self.config, self.wheels = dict(about["config"]), wheels
        self.versions = self.folder / VERSIONS
        self._as_user = _user(str(about["user"]))

    def linked(self, name: str) -> str:
        """Return the version that a link names; nothing for what the environment holds."""
        link = self.versions / name
        return os.readlink(link) if link.is_symlink() else ""

    def said(self, label: str) -> str:
        """Return a version as it is shown."""
        return label or f"{_installed()} (venv)"

    def update(self, label: str) -> str:
        """Install a version, test it, and switch to it; return what is worth saying.

        Raises
        ------
        UpdateError
            The device runs what it ran before.
        """
        self._check_scripts()
        if label == self.linked(CURRENT):
            return "is there already" if self.is_up else self._start(*[self.linked(PREVIOUS)] * 2)
        kept = label == self.linked(PREVIOUS)
        place = self.versions / label
        try:
            if not kept:
                self._install(label)
            self._test(place)
            said = self._switch(label, self.linked(CURRENT))
        except UpdateError:
            if not kept:
                shutil.rmtree(place, ignore_errors=True)
            raise
        self._tidy()
        return said

    def roll_back(self, leaving: str) -> str:
        """Switch to the version that ran before; return what is worth saying.

        After that there is no way back any more, and no way to the version that was left but to
        install it again: a second call must not undo the first.

        Parameters
        ----------
        leaving : str
            The version that it is to run no longer; nothing for whichever runs.

        Raises
        ------
        UpdateError
            It runs another, there is none before, or that does not start: the device runs what it
            ran.
        """
        current, before = self.linked(CURRENT), self.linked(PREVIOUS)
        if leaving and current != leaving:
            raise UpdateError(f"it runs {self.said(current)}: there is nothing to take back")
        if current == before:
            raise UpdateError("there is no version to go back to")
        said = self._switch(before, before)
        self._tidy()
        return said

    @property
    def is_up(self) -> bool:
        """Whether the SuperNode runs and listens."""
        return self._runs(self._noted()) and self._listens()

    def _tidy(self) -> None:
        """Remove the versions that no link names."""
        kept = self.linked(CURRENT), self.linked(PREVIOUS)
        for other in self.versions.iterdir():
            if other.is_dir() and not other.is_symlink() and other.name not in kept:
                shutil.rmtree(other)

    def _check_scripts(self) -> None:
        environment = self.folder / "environment"
        try:
            known = f"{VERSIONS}/{CURRENT}" in environment.read_text(encoding="utf-8")
        except OSError as error:
            raise UpdateError(f"{environment} cannot be read: {error.strerror}") from error
        if not known:
            raise UpdateError(
                f"{environment} knows no versions: run flwr-dmml fleet init again, copy the "
                "folder, and run install.sh"
            )

    def _install(self, label: str) -> None:
        """Install the wheel of this package, and what it requires that is not there."""
        part = self.versions / f"{label}.part"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
        pip += ["--disable-pip-version-check", "--root-user-action", "ignore"]
        pip += ["--target", str(part), "--find-links", str(self.wheels)]
        wanted = lacking = [str(wheel) for wheel in self.wheels.glob("flwr_dmml-*.whl")]
        try:
            while lacking:
                shutil.rmtree(part, ignore_errors=True)
                _run([*pip, *wanted], f"{Path(lacking[0]).name} cannot be installed")
                lacking = [one for one in _lacking(part) if one not in wanted]
                wanted = wanted + lacking
            shutil.rmtree(self.versions / label, ignore_errors=True)
            part.rename(self.versions / label)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _test(self, place: Path) -> None:
        """Use a version before anything runs it: import it, ``doctor``, and one dry round.

        Raises
        ------
        UpdateError
            It fails where the version that runs does not.
        """
        with self._scratch() as scratch:
            python = [sys.executable, "-P", "-m"]
            how = {"env": self._environment(place, scratch), "cwd": scratch, **self._as_user}
            _run([*python, "flwr_dmml.cli", "--version"], "it does not start", **how)
            if wrong := _doctor(python, **how):
                running = self.versions / CURRENT
                how["env"] = self._environment(running, scratch)
                before = _doctor(python, **how)
                if new := [text for what, text in wrong.items() if what not in before]:
                    raise UpdateError(f"doctor: {new[0]}")
                how["env"] = self._environment(place, scratch)
            dry = [*python, "flwr_dmml.fleet.dry_round", json.dumps(self.config)]
            _run(dry, "the dry round fails", **how)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Give a folder of the service's user for what a test writes."""
        with tempfile.TemporaryDirectory() as folder:
            if self._as_user:
                os.chown(folder, self._as_user["user"], self._as_user["group"])
            yield Path(folder)

    def _environment(self, place: Path, scratch: Path) -> dict[str, str]:
        """Return the environment in which a version runs, whatever it writes in ``scratch``."""
        paths = {
            "PATH": [f"{place}/bin", str(Path(sys.executable).parent), os.environ.get("PATH", "")],
            "PYTHONPATH": [str(place), os.environ.get("PYTHONPATH", "")],
        }
        own = {key: os.pathsep.join(filter(None, some)) for key, some in paths.items()}
        homes = dict.fromkeys(("HOME", "TMPDIR", "FLWR_HOME", "FLWR_DMML_CACHE"), str(scratch))
        flower = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return os.environ | own | homes | flower

    def _switch(self, label: str, previous: str) -> str:
        """Have the device run a version; if it does not come back, what it ran before.

        ``previous`` is what that link then names.

        Raises
        ------
        UpdateError
            It does not come back.
        """
        before, earlier = self.linked(CURRENT), self.linked(PREVIOUS)
        self._link(PREVIOUS, previous)
        self._link(CURRENT, label)
        return self._start(before, earlier)

    def _start(self, before: str, earlier: str) -> str:
        """Start the device anew; if it does not come back, go back to what the links named.

        Raises
        ------
        UpdateError
            It does not come back.
        """
        if not _systemd_has(self.unit) and not self._runs(self._noted()):
            return "does not run: start it"
        try:
            self._restart()
            return ""
        except UpdateError as error:
            self._link(CURRENT, before)
            self._link(PREVIOUS, earlier)
            try:
                self._restart()
            except UpdateError as again:
                raise UpdateError(
                    f"{error}; {self.said(before)} is back, and does not start either: {again}"
                ) from error
            raise UpdateError(f"{error}; {self.said(before)} runs again") from error

    def _link(self, name: str, label: str) -> None:
        """Have a link name a version, at once; without one there is no link."""
        link, part = self.versions / name, self.versions / f"{name}.part"
        part.unlink(missing_ok=True)
        if label:
            part.symlink_to(label)
            part.replace(link)
        else:
            link.unlink(missing_ok=True)

    def _restart(self) -> None:
        """Have the device started anew, and wait until it stays.

        Raises
        ------
        UpdateError
            It does not.
        """
        old = self._noted()
        if _systemd_has(self.unit):
            _run(["systemctl", "restart", self.unit], f"{self.unit} cannot be started anew")
        else:
            self._end(old)
        up, ended = dict[int, float](), set[int]()
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            pid = self._noted()
            if pid not in (0, old):
                if not self._runs(pid):
                    ended |= {pid} - up.keys()
                elif self._listens() and time.monotonic() > SETTLE_S + up.setdefault(
                    pid, time.monotonic()
                ):
                    return
            if len(ended) == STARTS:
                raise UpdateError(f"it does not start: it ended {STARTS} times; read its log")
            time.sleep(0.2)
        raise UpdateError(f"it is not up after {READY_S:g} s: read its log")

    def _end(self, pid: int) -> None:
        """End the device's process, by force if it does not by itself: it is started again."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_S
            if self._runs(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while self._runs(pid) and time.monotonic() < deadline:
                time.sleep(0.1)

    def _noted(self) -> int:
        """Return the process that start.sh has become when it last ran; 0 if it never did."""
        try:
            return int((self.folder / PID).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _runs(self, pid: int) -> bool:
        """Return whether a process is there, and of this device."""
        try:
            return os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(self.folder)
        except OSError:
            return False

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def _user(name: str) -> dict[str, Any]:
    """Return how a process runs as the service's user, if this one may start it."""
    if os.getuid():
        return {}
    try:
        who = pwd.getpwnam(name)
    except KeyError:
        return {}
    groups = os.getgrouplist(name, who.pw_gid)
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": groups}


def _installed() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "nothing"


def _lacking(place: Path) -> list[str]:
    """Return what the packages in a folder require and neither it nor the environment holds."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    new = list(metadata.distributions(path=[str(place)]))
    there: dict[str, str] = {}
    for one in (*new, *metadata.distributions()):
        there.setdefault(canonicalize_name(one.metadata["Name"]), one.version)
    found = []
    for text in [text for one in new for text in one.requires or ()]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        held = there.get(canonicalize_name(wanted.name))
        if held is None or not wanted.specifier.contains(held, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier}")
    return sorted(set(found))


def _run(command: Sequence[str], failed: str, **how: Any) -> str:
    """Run a program and return what it prints.

    Raises
    ------
    UpdateError
        It does not end well.
    """
    done = _done(command, **how)
    if done.returncode:
        raise UpdateError(f"{failed}: {_last(done)}")
    return done.stdout


def _done(command: Sequence[str], **how: Any) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TEST_S,
            check=False,
            **how,
        )
    except subprocess.TimeoutExpired as error:
        raise UpdateError(f"{Path(command[0]).name} did not end in {TEST_S:g} s") from error
    except OSError as error:
        raise UpdateError(f"{command[0]} cannot be run: {error.strerror}") from error


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"exit status {done.returncode}"])[-1].strip()


def _doctor(python: Sequence[str], **how: Any) -> dict[str, str]:
    """Return what does not work, by what was checked."""
    done = _done([*python, "flwr_dmml.cli", "doctor", "--json"], **how)
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError):
        return {"doctor": _last(done)}
    wrong = [one for one in findings if one["state"] == "error"]
    return {one["what"]: f"{one['what']}: {one['seen']}" for one in wrong}


def _systemd_has(unit: str) -> bool:
    if not shutil.which("systemctl"):
        return False
    return _done(["systemctl", "cat", unit]).returncode == 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second update of the device out.

    Raises
    ------
    UpdateError
        One is going on, or the folder cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise UpdateError("another update is going on") from error


def main() -> None:
    """Update, go back, or only look; print what came of it as JSON in one line."""
    file, *options = sys.argv[1:]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the connection may break: go on to the end
    os.umask(0o022)  # the service's user reads the versions
    about = json.loads(Path(file).read_text(encoding="utf-8"))
    board = Board(about, Path(__file__).resolve().with_name(WHEELS))
    was, why, done = board.linked(CURRENT), "", False
    try:
        if "--status" not in options:
            with _alone(board.versions):
                if "--rollback" in options:
                    why = board.roll_back(str(about["leaving"]))
                else:
                    why = board.update(str(about["label"]))
        done = True
    except UpdateError as error:
        why = str(error)
    except OSError as error:
        why = f"{error.filename or 'the device'}: {error.strerror}"
    now = board.linked(CURRENT)
    said = {"was": board.said(was), "now": board.said(now)}
    told = {**said, "done": done, "up": board.is_up, "why": why}
    print(json.dumps(told), flush=True)
    sys.exit(not done)


if __name__ == "__main__":
    main()
