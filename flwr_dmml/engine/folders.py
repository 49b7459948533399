"""Folders of a run for data sets and rows, which do not outlive the run, however that ends."""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

PREFIX = "flwr-dmml-run-"
_LOCK = "lock"
_NEW_S = 60.0
"""A folder that is younger may belong to a run that is just starting."""


def new_folder(of: Path) -> Path:
    """Return a folder of a run's own in ``of``, which is still to be made: see :func:`hold`."""
    return of / f"{PREFIX}{uuid4().hex}"


def temporary() -> Path:
    """Return where temporary files are."""
    return Path(tempfile.gettempdir())


def shared_memory() -> Path:
    """Return where shared memory is: ``/dev/shm`` on Linux, else the folder for temporary files."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else temporary()


def hold(folder: Path) -> int:
    """Make a run's folder where it is missing, and keep it as long as this process lives.

    What runs that were killed have left beside it is removed. Returns the descriptor that holds
    the folder: the system lets go of it when the process ends.
    """
    sweep(folder.parent, besides=folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def let_go(folder: Path, descriptor: int) -> None:
    """Remove a folder at the end of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def sweep(of: Path, new_s: float = _NEW_S, besides: Path | None = None) -> None:
    """Remove folders in ``of`` that no process holds, but ``besides``: of runs that were killed.

    Disk and memory that a killed run has left would be lost until the machine restarts.
    """
    for folder in of.glob(f"{PREFIX}*"):
        if folder == besides:
            continue
        with suppress(OSError):  # another user's, or gone already
            if time.time() - folder.stat().st_mtime < new_s:
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
