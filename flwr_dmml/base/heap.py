"""Freed memory stays with a process that computes the same every round."""

import ctypes

# <malloc.h> of the GNU C library
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30
"""Bytes of a tensor that is kept for the next one at most."""


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed from now on, and to give back what was before.

    By default it gives large tensors back as soon as they are freed, or does not, as their sizes
    happen to fall. The next round is given them again, page by page: of 1,024 devices on two
    workers that takes a third of a round. Does nothing where the C library is not GNU's.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.malloc_trim(0)  # what loading data and building models took
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST - 1)
