"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""Suffix of a file that is not finished."""


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
