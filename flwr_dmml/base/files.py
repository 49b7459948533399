"""Files that are written whole or not at all, and one error where they cannot be written."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

PART = ".part"
"""Suffix of a file that is not finished."""
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in your quota on that disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EROFS: "make that disk writable",
    errno.ENOENT: "its folder is gone: put it back",
    errno.EIO: "check that disk",
}


class WriteError(UserError):
    """A file that cannot be written: names it, the reason, and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have whatever keeps the block from writing a file say which file it is.

    Raises
    ------
    WriteError
        Instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        said = f"{path} cannot be written: {error.strerror or error}"
        remedy = _REMEDIES.get(error.errno or 0)
        raise WriteError(f"{said}; {remedy}" if remedy else said) from error


def write_whole(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a file beside its place, have it on the disk, and move it there.

    Parameters
    ----------
    path : Path
        The file; its folder is there.
    content : str or bytes
        A text is written as UTF-8.
    mode : int (default: 0o666)
        Who may read and write it, less the umask.

    Raises
    ------
    WriteError
        It cannot be written; what was there before still is.
    """
    part = path.with_name(path.name + PART)
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        part.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)  # it may be what fills the disk
            raise


def sync_file(path: Path) -> None:
    """Have what was written to a file on the disk."""
    with writing(path), path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can."""
    with writing(folder):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not on this file system
                raise
        finally:
            os.close(handle)


@contextmanager
def whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a new file beside ``path`` to write to; it takes that name when the block has ended.

    If the block raises, nothing is left of it. Only the user may read it.

    Parameters
    ----------
    path : Path
        A file, there already or not, in a folder that exists.
    durable : bool
        Whether the content is on the disk before the name is: a machine that stops then leaves no
        file that is cut.

    Raises
    ------
    OSError
        The folder cannot be written, or the disk is full.
    """
    handle, name = tempfile.mkstemp(PART, f"{path.name}.", path.parent)
    part = Path(name)
    try:
        os.close(handle)
        yield part
        if durable:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
