"""A run's folder in shared memory, which does not outlive the run, however that ends."""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "flwr-dmml-rows-"
_LOCK = "lock"
_NEW_S = 60.0
"""A folder that is younger may belong to a run that is just starting."""


def parent() -> Path:
    """Return where shared memory is: ``/dev/shm`` on Linux, else the folder for temporary files."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def hold(folder: Path) -> int:
    """Make a run's folder where it is missing, and keep it as long as this process lives.

    Returns the descriptor that holds it: the system lets go of it when the process ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def sweep(of: Path, new_s: float = _NEW_S) -> None:
    """Remove folders in ``of`` that no process holds: of runs that were killed.

    Memory that a killed run has left would be lost until the machine restarts.
    """
    for folder in of.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or gone already
            if time.time() - folder.stat().st_mtime < new_s:
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
