"""Digests of files, remembered, so that a file that has not changed need not be read again."""

import os
import stat
import time
from collections.abc import Sequence
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..base.files import whole
from ..base.tensors import TensorsError, read_tensors
from .samples import DataError

SUFFIX = ".files"
"""Of a file of remembered digests."""

Known = tuple[int, int, int, int]
"""How a file is recognised: bytes; times of the last change of content and of all else, ns; inode.

Four times -1 where there is no regular file, or no access to it.
"""

_MISSING = (-1, -1, -1, -1)
_NEVER = -2
_BYTES = 16  # of a digest
_TICK_NS = 2 * 10**9  # the coarsest clock of a file system
_INT64 = 2**63 - 1  # some file systems have larger inodes and times


def known_by(path: Path | str) -> Known:
    """Return how a file is recognised."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return _MISSING
    if not stat.S_ISREG(found.st_mode):
        return _MISSING
    return (
        found.st_size,
        found.st_mtime_ns & _INT64,
        found.st_ctime_ns & _INT64,
        found.st_ino & _INT64,
    )


def digest_of(path: Path | str) -> bytes:
    """Return the digest of a file's content, 16 bytes.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with open(path, "rb") as opened:
        return file_digest(opened, lambda: blake2b(digest_size=_BYTES)).digest()


class KnownFiles:
    """Digests of some files; each is read only if it is not known.

    A file is known by its size, times and inode. One that had just been changed when it was read
    is read again the next time: it may have been changed once more within a tick of the clock.

    Parameters
    ----------
    folder : Path
        Where digests are remembered.
    name : str
        Of the data set.
    root : Path
        Folder of the data.
    files : sequence of Path or str
        One that is missing or cannot be read counts as such.

    Attributes
    ----------
    digest : bytes
        Of all places under ``root`` and contents: where ``root`` is makes no difference.
    news : bool
        Whether there is something to remember.
    problem : str
        What is wrong with what was remembered, if anything; names the file.
    """

    def __init__(self, folder: Path, name: str, root: Path, files: Sequence[Path | str]) -> None:
        self._paths = [str(path) for path in files]
        base = str(root)
        inside = os.path.join(base, "")
        places = [
            path.removeprefix(inside) if path.startswith(inside) else os.path.relpath(path, base)
            for path in self._paths
        ]
        listed = "\0".join(places).encode(errors="surrogatepass")
        of = blake2b(os.path.abspath(root).encode(errors="surrogatepass"), digest_size=_BYTES)
        of.update(b"\0\0" + listed)
        self.file = folder / f"{name}-{of.hexdigest()}{SUFFIX}"
        self._digest(*self._remembered(), time.time_ns())
        self.digest = blake2b(listed + self._digests.tobytes(), digest_size=_BYTES).digest()

    def changed(self) -> str:
        """Return one of the files that are not what they were when they were read, if any is."""
        different = (self._look() != self._found).any(axis=1)
        return self._paths[int(different.argmax())] if different.any() else ""

    def save(self) -> None:
        """Remember the digests.

        Raises
        ------
        OSError
            They cannot be written.
        """
        with whole(self.file) as part:
            try:
                save_file({"known": self._known, "digests": self._digests}, part)
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def _look(self) -> NDArray[np.int64]:
        rows = [known_by(path) for path in self._paths]
        return np.array(rows, np.int64).reshape(-1, len(_MISSING))

    def _digest(self, known: NDArray[np.int64], digests: NDArray[np.uint8], now_ns: int) -> None:
        """Take the digests that are known, and make the others."""
        self._found = self._look()
        self._known = np.where(self._found[:, [2]] > now_ns - _TICK_NS, _NEVER, self._found)
        self._digests = np.where((known == self._found).all(axis=1, keepdims=True), digests, 0)
        unknown = (known != self._found).any(axis=1) & (self._found[:, 0] >= 0)
        for k in np.flatnonzero(unknown).tolist():
            try:
                self._digests[k] = np.frombuffer(digest_of(self._paths[k]), np.uint8)
            except OSError:  # as if it were missing: who loads it says what is wrong
                self._known[k] = _NEVER
        self.news = bool((known != self._known).any())

    def _remembered(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return what is known, ``[files, 4]``, and the digests, ``[files, 16]``."""
        self.problem = ""
        try:
            return read_known(self.file, len(self._paths))
        except DataError as error:
            self.problem = str(error)
        except OSError:  # there is none yet, or the cache cannot be read: writing it will tell
            pass
        nothing = np.full((len(self._paths), len(_MISSING)), _NEVER, np.int64)
        return nothing, np.zeros((len(self._paths), _BYTES), np.uint8)


def read_known(file: Path, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read what :meth:`KnownFiles.save` wrote.

    Parameters
    ----------
    file : Path
        What was written.
    count : int
        Number of files.

    Returns
    -------
    known : numpy.ndarray
        ``[count, 4]`` int64: size, times and inode.
    digests : numpy.ndarray
        ``[count, 16]`` uint8.

    Raises
    ------
    DataError
        It is something else: names the file.
    OSError
        It is not there, or cannot be read.
    """
    try:
        tensors = read_tensors(Path(file).read_bytes())
    except TensorsError as error:
        raise DataError(f"'{file}' is damaged: {error}") from error
    found = {key: (x.shape, x.dtype.name) for key, x in tensors.items()}
    known, digests = (count, len(_MISSING)), (count, _BYTES)
    if found != {"known": (known, "int64"), "digests": (digests, "uint8")}:
        raise DataError(f"'{file}' is damaged: it does not hold {count} digests")
    return tensors["known"], tensors["digests"]
