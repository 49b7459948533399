"""A lock on a folder: one process at a time writes into it, and another is told which one."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging import INFO
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ValidationError

from ..base.errors import UserError
from ..base.files import writing
from ..base.log import log
from ..base.machine import boot_id

NAME = "in-use.json"
"""The lock's file: says who writes into the folder, and is there for as long as that goes on."""
_UNSUPPORTED = errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK


class InUseError(UserError, RuntimeError):
    """A folder that another process writes into: names the process."""


class Owner(BaseModel):
    """A process that writes into a folder.

    Attributes
    ----------
    pid, host : int, str
        The process, and the name of its machine.
    boot : str
        Which start of the machine it lives in.
    ticks : int
        When it started, in clock ticks since then: a later process with its number has others.
    since : str
        When it took the folder, UTC.
    """

    pid: int
    host: str
    boot: str
    ticks: int
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Return the process that asks."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(
            pid=pid,
            host=socket.gethostname(),
            boot=boot_id(),
            ticks=started_ticks(pid) or 0,
            since=now,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @property
    def has_ended(self) -> bool:
        """Whether it is certain that the process is gone; of another machine it never is."""
        if self.host != socket.gethostname():
            return False
        return self.boot != boot_id() or started_ticks(self.pid) != self.ticks


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keep others out of a folder while the block runs.

    The system lets go of the lock when the process ends, however that happens. Where the file
    system knows no locks, a process that has ended is recognised by its start.

    Parameters
    ----------
    folder : Path
        It exists.
    wait_s : float, >= 0
        Seconds in which another process may still let go of the folder.

    Raises
    ------
    InUseError
        Another process has the folder, and keeps it.
    WriteError
        The lock's file cannot be written.
    """
    path = folder / NAME
    with writing(path):
        file = _take_within(wait_s, folder, path)
        try:
            if left := _owner(file):
                log(INFO, "%s was left by %s, which has ended", path, left)
            file.seek(0)
            file.truncate()
            file.write(Owner.this_process().model_dump_json() + "\n")
            file.flush()
        except OSError:
            file.close()
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: nobody can have taken it by then
        file.close()


def _take_within(wait_s: float, folder: Path, path: Path) -> TextIO:
    """Return the lock's file, opened and locked; wait some seconds for it if need be."""
    deadline = time.monotonic() + wait_s
    waits = False
    while True:
        try:
            return _take(folder, path)
        except InUseError as error:
            if time.monotonic() >= deadline:
                raise
            if not waits:
                log(INFO, "%s; up to %.0f s", error, wait_s)
            waits = True
            time.sleep(0.2)


def _take(folder: Path, path: Path) -> TextIO:
    """Return the lock's file, opened and locked."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = str(_owner(file) or "another process")
            file.close()
            raise InUseError(f"{folder} is in use by {told}: wait until it ends") from error
        except OSError as error:
            owner = _owner(file)
            if error.errno in _UNSUPPORTED and (owner is None or owner.has_ended):
                return file
            file.close()
            if error.errno not in _UNSUPPORTED:
                raise
            raise InUseError(
                f"{folder} is in use by {owner}: wait until it ends; if it has, delete {path}"
            ) from error
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # its owner has just removed it: once more
        file.close()


def is_in_use(folder: Path) -> bool:
    """Return whether a process writes into a folder, or may do so.

    Of an owner on another machine only the lock itself tells: that may be this machine, under the
    name that it had before.
    """
    owner = owner_of(folder)
    if owner is None or owner.has_ended:
        return False
    if owner.host == socket.gethostname():
        return True
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:  # locked, or the file system knows no locks
        if not isinstance(error, BlockingIOError) and error.errno not in _UNSUPPORTED:
            raise
        return True
    return False


def owner_of(folder: Path) -> Owner | None:
    """Return the process that writes into a folder, or was killed while it did; None without."""
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            return _owner(file)
    except FileNotFoundError:
        return None


def _owner(file: TextIO) -> Owner | None:
    """Return who is written in a lock's file; None where nobody is, or not yet."""
    file.seek(0)
    try:
        return Owner.model_validate_json(file.read())
    except (ValidationError, UnicodeDecodeError):
        return None


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where none runs.

    One that has ended, and for which its parent has not waited yet, does not run.
    """
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = told.rpartition(")")[2].split()  # field 3; the name before may have spaces
    return None if state in "ZX" else int(fields[18])  # field 22
