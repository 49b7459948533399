"""The machine: its cores, memory and disk space, and the folders for cache and runs."""

import os
import shutil
import socket
import tempfile
from logging import WARNING
from math import ceil
from pathlib import Path
from stat import S_IMODE, S_ISDIR

from .log import log

CACHE = "FLWR_DMML_CACHE"
"""Environment variable: the folder of the cache; ``~/.cache/flwr-dmml`` where it is not set."""
RUNS = "runs"
"""Folder of the run folders, in the one where a run is started."""

POWER = Path("/sys/class/power_supply")
"""Where the kernel shows batteries."""
CGROUP = Path("/sys/fs/cgroup")
"""Mount point at which a container finds its own limits (cgroup version 2)."""


def provide_home() -> None:
    """Make sure that there is a home folder: a private one in the temporary folder, if need be.

    A container often runs under a user id that has no name, and without ``HOME``. Several libraries
    do not load then. ``HOME`` is set for this process and those that it starts, and the log says
    so.
    """
    if os.path.expanduser("~") != "~":
        return
    place = Path(tempfile.gettempdir()) / f"flwr-dmml-{os.geteuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
        private = S_ISDIR(found.st_mode) and not S_IMODE(found.st_mode) & 0o077
        own = private and found.st_uid == os.geteuid()
    except OSError:  # a file of that name
        own = False
    os.environ["HOME"] = str(place if own else tempfile.mkdtemp(prefix="flwr-dmml-"))
    log(
        WARNING,
        "HOME is not set, and user %d has no name here: the home folder is %s; set HOME for "
        "another one",
        os.getuid(),
        os.environ["HOME"],
    )


def expanded(path: str) -> str:
    """Return a path with the home folder in the place of ``~`` at its beginning."""
    if path.startswith("~"):
        provide_home()
    return os.path.expanduser(path)


def cache_folder() -> Path:
    """Return the folder of cached data sets, whether it exists or not."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flwr-dmml")
    return Path(expanded(os.environ.get(CACHE) or usual))


def boot_id() -> str:
    """Return what tells this machine, since its last start, from others."""
    boot = Path("/proc/sys/kernel/random/boot_id")  # Linux
    return boot.read_text(encoding="ascii").strip() if boot.exists() else socket.gethostname()


def cores() -> int:
    """Return how many cores this process may use, by its affinity and a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(allowed, max(1, ceil(int(quota) / int(period)))) if quota.isdigit() else allowed


def battery_charge() -> float | None:
    """Return the share of its charge that this machine's battery has; None where there is none.

    Of several batteries, that of the emptiest.
    """
    shares = []
    for supply in sorted(POWER.glob("*")):
        try:
            if (supply / "type").read_text(encoding="ascii").strip() == "Battery":
                shares.append(int((supply / "capacity").read_text(encoding="ascii")) / 100)
        except (OSError, ValueError):  # it does not tell
            continue
    return min(shares, default=None)


def memory_bytes() -> tuple[int, int] | None:
    """Return total and available memory; None where the system does not tell.

    In a container they are those of its limit.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    total, available = (kilobytes[name] * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        available = min(available, max(0, total - int(used or 0)))
    return total, available


def free_bytes(folder: Path) -> int:
    """Return the free disk space where a folder is, or would be made."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _cgroup(name: str) -> str:
    """Return what a file of :data:`CGROUP` says; nothing outside of a container."""
    try:
        return (CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
