"""Checks of this machine and of the libraries, and their findings.

Each library is used in a process of its own, because one that does not suit the machine may crash
or hang instead of raising an error.
"""

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base import machine
from ..base.libraries import LIBRARIES, asked, installed, mend, python_problem, requirement
from .probes import PROBES

TIMEOUT_S = 180.0
"""Seconds that the check of a library may take; on a small board its first import is slow."""
LEAST_MEMORY, LEAST_DISK, LEAST_SHM = 2 << 30, 1 << 30, 256 << 20
"""Bytes that should be free: for a few devices, for run folders, for Ray's shared memory."""
LEAST_FILES = 1024
"""Open files that a process should be allowed."""
PROGRAMS = ("flwr", "flower-superlink", "flower-supernode", "flwr-serverapp", "flwr-clientapp")
"""Programs of Flower, which it starts by name."""

State = Literal["ok", "absent", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes
    ----------
    what : str
        What was checked.
    state : {"ok", "absent", "warning", "error"}
        ``absent`` is an extra that is not installed, ``warning`` something that may not do, and
        ``error`` something that does not work.
    seen : str
        What the check has seen.
    version : str
        Of a library; else empty.
    mend : str
        The command or the step that puts it right; empty where nothing is wrong.
    """

    what: str
    state: State
    seen: str
    version: str = ""
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Yield all findings, those of the machine first."""
    yield python()
    yield cpu()
    yield memory()
    yield shared_memory()
    yield open_files()
    yield programs()
    yield loopback()
    for name, folder, changed_by in folders():
        yield writable(name, folder, changed_by)
    with ThreadPoolExecutor(machine.cores()) as pool:
        yield from pool.map(library, PROBES)


def python() -> Finding:
    """Check the version of Python."""
    problem = python_problem()
    seen = problem or f"{platform.platform()}, {sys.executable}"
    how = "make a virtual environment with such a Python" if problem else ""
    return Finding(
        "Python", "error" if problem else "ok", seen, platform.python_version(), mend=how
    )


def cpu() -> Finding:
    """Count the cores."""
    usable, there = machine.cores(), os.cpu_count() or 1
    of = f" of {there}" if usable < there else ""
    return Finding("cores", "ok", f"{usable}{of}, {platform.machine()}")


def memory() -> Finding:
    """Check how much memory is available."""
    told = machine.memory_bytes()
    if told is None:
        return Finding("memory", "ok", "this system does not tell")
    total, available = told
    seen = f"{_gb(available)} available of {_gb(total)}"
    if available < LEAST_MEMORY:
        return Finding("memory", "warning", seen, mend="end other programs, or use fewer workers")
    return Finding("memory", "ok", seen)


def shared_memory() -> Finding:
    """Check how much memory processes can share: Ray keeps its objects there."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("/dev/shm", "ok", "this system has none, and needs none")
    free = machine.free_bytes(folder)
    seen = f"{_gb(free)} free of {_gb(shutil.disk_usage(folder).total)}"
    if free < LEAST_SHM:
        how = "give a container more (docker run --shm-size=2g), or remount it larger"
        return Finding("/dev/shm", "warning", f"{seen}; Ray needs more", mend=how)
    return Finding("/dev/shm", "ok", seen)


def open_files() -> Finding:
    """Check how many files a process may open."""
    try:
        import resource
    except ImportError:  # there is none on Windows
        return Finding("open files", "ok", "this system sets no limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < LEAST_FILES:
        best = 4096 if hard in (unlimited, -1) else min(hard, 4096)
        return Finding("open files", "warning", f"at most {soft}", mend=f"ulimit -n {best}")
    return Finding("open files", "ok", "no limit" if soft == unlimited else f"at most {soft}")


def programs() -> Finding:
    """Check that Flower's programs are found on the path, and are those of this environment."""
    own = Path(sys.executable).parent
    activate = f". {own / 'activate'}" if (own / "activate").exists() else f"PATH={own}:$PATH"
    found = {name: shutil.which(name) for name in PROGRAMS}
    if missing := [name for name, path in found.items() if path is None]:
        seen = f"not on the path: {', '.join(missing)}; flwr run and SuperNodes start them by name"
        return Finding("programs", "warning", seen, mend=activate)
    foreign = [str(path) for path in found.values() if path and Path(path).parent != own]
    if foreign:
        seen = f"{foreign[0]} is another environment's than {sys.executable}"
        return Finding("programs", "warning", seen, mend=activate)
    return Finding("programs", "ok", f"Flower's are in {own}")


def loopback() -> Finding:
    """Check that processes on this machine reach each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()[:2], timeout=5).close()
    except OSError as error:
        seen = f"processes cannot reach each other at 127.0.0.1: {error}"
        return Finding("loopback", "error", seen, mend="allow connections on the interface lo")
    return Finding("loopback", "ok", "processes reach each other")


def folders() -> tuple[tuple[str, Path, str], ...]:
    """Return the folders that are written to, and what to set for another one."""
    flower = Path(machine.expanded(os.environ.get("FLWR_HOME") or "~/.flwr"))
    return (
        ("run folders", Path(machine.RUNS), "--set run-dir=FOLDER"),
        ("cached data", machine.cache_folder(), f"{machine.CACHE}=FOLDER"),
        ("Flower's folder", flower, "FLWR_HOME=FOLDER"),
        ("temporary files", Path(tempfile.gettempdir()), "TMPDIR=FOLDER"),
    )


def writable(what: str, folder: Path, changed_by: str) -> Finding:
    """Check that a folder can be written to, or made, and that its disk has room."""
    place = machine.existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".flwr-dmml-"):
            pass
    except OSError as error:
        seen = f"{folder} cannot be written: {error.strerror or error}"
        return Finding(what, "error", seen, mend=f"choose another one: {changed_by}")
    free = machine.free_bytes(place)
    seen = f"{folder.absolute()}, {_gb(free)} free"
    if free < LEAST_DISK:
        how = f"make room, or choose another one: {changed_by}"
        return Finding(what, "warning", seen, mend=how)
    return Finding(what, "ok", seen)


def library(module: str) -> Finding:
    """Use a library, in a process of its own.

    Parameters
    ----------
    module : str
        A key of :data:`PROBES`.
    """
    about = LIBRARIES[module]
    version, name = installed(about.name), about.name
    if not version and about.extra:
        return Finding(name, "absent", f"for {about.use}", mend=mend(module))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flwr_dmml.doctor", module],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        seen = f"no answer in {TIMEOUT_S:.0f} s. It is needed for {about.use}"
        return Finding(name, "error", seen, version, mend(module))
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        seen = f"{_crash(done.returncode, done.stderr)}. It is needed for {about.use}"
        return Finding(name, "error", seen, version, mend(module))
    state, seen = told["state"], told["seen"]
    if state != "ok":
        return Finding(name, state, seen, version, told.get("mend") or mend(module))
    if wanted := outside(module, version):
        seen = f"works here ({seen}), but this package asks for {wanted}"
        return Finding(name, "warning", seen, version, mend(module))
    return Finding(name, "ok", seen, version)


def outside(module: str, version: str) -> str:
    """Return what this package asks of a library, if a version is not that; else nothing."""
    library = LIBRARIES[module]
    if library.source:  # which has a say in its version
        return ""
    inside = requirement(library.name, library.extra).specifier.contains(version, prereleases=True)
    return "" if inside else asked(library.name, library.extra)


def _crash(status: int, stderr: str) -> str:
    if status < 0:
        return f"it crashed ({signal.Signals(-status).name})"
    last = stderr.strip().splitlines()[-1:] or ["without a word"]
    return f"it ended with status {status}: {last[0]}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
