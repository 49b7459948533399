"""One seed for everything: a generator for each (run seed, node, round, purpose).

There is no global random state in this package. Two draws with different purposes are independent,
and the same purpose gives the same numbers in every process and on every engine.
"""

import hashlib

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
