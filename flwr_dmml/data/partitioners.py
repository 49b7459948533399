"""The partitioners of flwr-datasets on plain arrays; imported only where one is used."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..base.libraries import needed
from .samples import DataError


def iid(order: np.ndarray, num_nodes: int) -> list[np.ndarray]:
    """Cut ``order``, ``[n]``, into ``num_nodes`` parts of equal size."""
    return _parts(_import().IidPartitioner(num_partitions=num_nodes), index=order)


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
    partitioner = _import().InnerDirichletPartitioner(
        partition_sizes=[size] * num_nodes,
        partition_by="label",
        alpha=float(alpha),
        seed=seed,
    )
    classes = np.unique(labels, return_inverse=True)[1]  # it wants 0 to C-1 without gaps
    try:
        return _parts(partitioner, index=order, label=classes)
    except ValueError as error:  # class shares become 0/0: "Probabilities contain NaN"
        raise DataError(
            f"alpha: with alpha {alpha} and {size} samples a node, the classes that a node draws "
            "from run out of samples; raise alpha or lower samples-per-node"
        ) from error


def natural(groups: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each natural id in ``groups``, ``[n]``, in the order of the ids."""
    partitioner = _import().NaturalIdPartitioner(partition_by="group")
    return _parts(partitioner, index=np.arange(len(groups)), group=groups)


def _import() -> Any:
    with needed("flwr_datasets"):
        import flwr_datasets.partitioner
    return flwr_datasets.partitioner


def _parts(partitioner: Any, **columns: np.ndarray) -> list[np.ndarray]:
    """Return the column ``index`` of each partition of a table with ``columns``."""
    with needed("flwr_datasets"):
        from datasets import Dataset

    with _quiet():
        partitioner.dataset = Dataset.from_dict(columns)
        parts = [partitioner.load_partition(i)[:] for i in range(partitioner.num_partitions)]
    return [np.asarray(part["index"], dtype=np.int64) for part in parts]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide a progress bar, and the warnings that not all samples are used and of 0/0."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
