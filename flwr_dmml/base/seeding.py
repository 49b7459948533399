"""One seed for everything: a generator for each (run seed, node, round, purpose).

There is no global random state in this package. Two draws with different purposes are independent,
and the same purpose gives the same numbers in every process and on every engine.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and every part of ``purpose``.

    Parameters
    ----------
    seed : int
        The seed of the run.
    *purpose : int or str
        What the numbers are for, e.g. ``("batches", partition_id, server_round)``.

    Returns
    -------
    int
        In ``[0, 2**63)``; stable across processes and Python versions (BLAKE2b).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Return a CPU ``torch.Generator`` seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """Return a NumPy ``Generator`` seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *purpose))


@contextmanager
def global_generator(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generator while the block runs, for code that draws from it.

    Afterwards it is as it was. On a GPU that of the ``device`` as well.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    # Not torch.manual_seed: without a GPU it notes every call, with its stack, for a later one.
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        yield
