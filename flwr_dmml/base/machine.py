"""The machine: its cores, memory and disk space, and the folders for cache and runs."""

import os
import shutil
import socket
from math import ceil
from pathlib import Path

CACHE = "FLWR_DMML_CACHE"
"""Environment variable: the folder of the cache; ``~/.cache/flwr-dmml`` where it is not set."""
RUNS = "runs"
"""Folder of the run folders, in the one where a run is started."""

CGROUP = Path("/sys/fs/cgroup")
"""Mount point at which a container finds its own limits (cgroup version 2)."""


def cache_folder() -> Path:
    """Return the folder of cached data sets, whether it exists or not."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flwr-dmml"
    return Path(os.environ.get(CACHE) or usual).expanduser()


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
