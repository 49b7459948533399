"""The partitioners of flwr-datasets on plain arrays, to the sample.

Its Dirichlet and IID partitions are drawn here in NumPy: importing the library takes more than a
second in every process. The one for natural ids is used as it is, and imported where it is used.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.libraries import needed
from .samples import DataError

_SUM = float(np.sqrt(np.finfo(float).eps))
"""Probabilities whose sum is further from 1 are refused, as ``numpy.random.Generator.choice``
does."""


def iid(order: np.ndarray, num_nodes: int) -> list[np.ndarray]:
    """Cut ``order``, ``[n]``, into ``num_nodes`` parts whose sizes differ by one at most.

    As the IidPartitioner of flwr-datasets does.
    """
    return np.array_split(order, num_nodes)


def dirichlet(
    labels: np.ndarray,
    order: np.ndarray,
    *,
    num_nodes: int,
    size: int,
    alpha: float,
    seed: int,
) -> list[np.ndarray]:
    """Draw ``size`` samples a node, with class shares from Dirichlet(alpha).

    The same draws of the same generator as in the InnerDirichletPartitioner of flwr-datasets 0.6.

    Parameters
    ----------
    labels, order : numpy.ndarray
        ``[n]``: classes and indices of the samples. Of each class the last ones are taken first,
        so shuffle both before.
    num_nodes, size : int
        ``num_nodes * size <= n``.
    alpha : float
        Concentration, above 0.
    seed : int
        Seed of the draws, at least 0.

    Raises
    ------
    DataError
        If ``alpha`` is not allowed, or so small that a node's classes are all used up.
    """
    if not (0 < alpha < np.inf):
        raise DataError(f"alpha: {alpha} is not allowed; a number above 0 is")
    classes = np.unique(labels, return_inverse=True)[1]  # [n] in 0 .. C-1
    left = [np.flatnonzero(classes == c).tolist() for c in range(int(classes.max()) + 1)]
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(left), float(alpha)), size=num_nodes)  # [node, class]
    cumulative: dict[int, NDArray[np.float64]] = {}  # of the nodes' shares, as they are now
    open_nodes, missing = list(range(num_nodes)), [size] * num_nodes
    parts = [np.zeros(size, dtype=np.int64) for _ in range(num_nodes)]
    for _ in range(num_nodes * size):
        while not missing[node := open_nodes[position := int(rng.integers(len(open_nodes)))]]:
            del open_nodes[position]
        missing[node] -= 1
        while True:
            if node not in cumulative:
                cumulative[node] = _cumulative(shares[node], alpha, size)
            drawn = int(cumulative[node].searchsorted(rng.random(), side="right"))
            if left[drawn]:
                break
            shares[:, drawn] = 0  # used up: the shares of the others grow
            with np.errstate(invalid="ignore"):  # 0/0 where a node drew from this class alone
                shares /= shares.sum(axis=1, keepdims=True)
            cumulative.clear()
        parts[node][missing[node]] = left[drawn].pop()
    for part in parts:
        rng.shuffle(part)
    return [order[part] for part in parts]


def natural(groups: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each natural id in ``groups``, ``[n]``, in the order of the ids.

    Raises
    ------
    LibraryError
        If flwr-datasets is missing or does not load.
    """
    with needed("flwr_datasets"), _quiet():  # in a notebook its progress bars warn
        from datasets import Dataset
        from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner: Any = NaturalIdPartitioner(partition_by="group")
    with _quiet():
        partitioner.dataset = Dataset.from_dict({"index": np.arange(len(groups)), "group": groups})
        parts = [partitioner.load_partition(i)[:] for i in range(partitioner.num_partitions)]
    return [np.asarray(part["index"], dtype=np.int64) for part in parts]


def _cumulative(shares: NDArray[np.float64], alpha: float, size: int) -> NDArray[np.float64]:
    """Return the cumulative class shares of a node, ``[class]``, as ``Generator.choice`` does.

    Raises
    ------
    DataError
        They are 0/0: all classes that the node draws from are used up.
    """
    if not abs(shares.sum() - 1) <= _SUM:
        raise DataError(
            f"alpha: with alpha {alpha} and {size} samples a node, the classes that a node draws "
            "from run out of samples; raise alpha or lower samples-per-node"
        )
    summed = shares.cumsum()
    cumulative: NDArray[np.float64] = summed / summed[-1]
    return cumulative


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide a progress bar and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
