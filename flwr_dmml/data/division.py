"""Division of samples over nodes, and of each node's samples into training and validation."""

from typing import get_args

import numpy as np
import torch

from ..base.seeding import derive_seed, numpy_generator
from . import partitioners
from .options import Scheme
from .samples import DataError, Source


def partition_indices(
    labels: torch.Tensor,
    groups: torch.Tensor | None,
    *,
    num_nodes: int,
    scheme: Scheme,
    alpha: float,
    samples_per_node: int,
    seed: int,
) -> list[np.ndarray]:
    """Divide samples over nodes; no sample goes to two nodes (but see "own").

    Parameters
    ----------
    labels, groups : torch.Tensor
        ``[n]`` int64; only the scheme "natural" needs ``groups``.
    num_nodes : int
        Number of nodes, at least 1.
    scheme : {"dirichlet", "iid", "natural", "natural-dirichlet", "own"}
        "dirichlet": nodes of equal size, the class shares of each drawn from Dirichlet(alpha);
        where a class runs out, the shares of the others grow. "iid": nodes of equal size, drawn
        uniformly. "natural": the sorted natural ids are dealt to the nodes in turn, so sizes
        differ; ``samples_per_node`` then keeps that many of each node's samples at random.
        "natural-dirichlet": the samples of each natural id are divided as by "dirichlet" over nodes
        of its own, as many for each id; ``num_nodes`` is a multiple of the number of ids. "own":
        nothing is divided, all samples are the node's own, as where every device has its own files.
    alpha : float
        Concentration of the Dirichlet distributions, above 0; unused by the other schemes.
    samples_per_node : int
        Samples of each node; 0 means all there are (in equal parts, less than ``num_nodes`` are
        left over).
    seed : int
        Seed of the division.

    Returns
    -------
    list of numpy.ndarray
        For each node the indices of its samples, ``[samples]`` int64, in random order.

    Raises
    ------
    DataError
        If there are too few samples, ids or natural ids, or the classes run out at a small alpha.
    LibraryError
        If the scheme is "natural" and flwr-datasets is missing or does not load.

    References
    ----------
    InnerDirichletPartitioner, IidPartitioner and NaturalIdPartitioner of flwr-datasets; the first
    follows Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021.
    """
    if num_nodes < 1 or samples_per_node < 0:
        raise DataError(
            f"num-nodes is {num_nodes} and samples-per-node is {samples_per_node}; "
            "allowed: at least 1 node, at least 0 samples (0 divides all)"
        )
    if scheme == "natural":
        return _natural(groups, num_nodes, samples_per_node, seed)
    if scheme == "natural-dirichlet":
        return _within_natural(labels.numpy(), groups, num_nodes, alpha, samples_per_node, seed)
    if scheme not in get_args(Scheme):
        allowed = ", ".join(get_args(Scheme))
        raise DataError(f"partition: '{scheme}' is unknown; allowed: {allowed}")

    if scheme == "own":
        return _own(len(labels), num_nodes, samples_per_node, seed)
    if num_nodes > len(labels):
        raise DataError(
            f"num-nodes: {num_nodes} nodes are more than the {len(labels)} training samples; "
            f"allowed: up to {len(labels)}"
        )
    size = samples_per_node or len(labels) // num_nodes
    if size * num_nodes > len(labels):
        raise DataError(
            f"samples-per-node: {num_nodes} nodes of {size} samples need more than the "
            f"{len(labels)} training samples available; allowed: up to {len(labels) // num_nodes}"
        )
    order = numpy_generator(seed, "partition").permutation(len(labels))
    if scheme == "iid":
        return partitioners.iid(order[: num_nodes * size], num_nodes)
    return partitioners.dirichlet(
        labels.numpy()[order],
        order,
        num_nodes=num_nodes,
        size=size,
        alpha=alpha,
        seed=derive_seed(seed, "partition", "dirichlet"),
    )


def split_validation(
    indices: np.ndarray,
    fraction: float,
    generator: np.random.Generator,
    source: Source | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``indices`` shuffled and divided into training and validation.

    At least one sample is for validation if ``fraction`` is above 0, and one always for training.
    Where samples are windows of recordings, whole recordings are held out, as far as they go, with
    the class shares of all; windows that overlap what is held out are in neither part.

    Parameters
    ----------
    indices : numpy.ndarray
        A node's samples.
    fraction : float
        Share that is held out.
    generator : numpy.random.Generator
        Draws which.
    source : Source, optional
        What these are training samples of. It matters only if it has ``windows``.

    Raises
    ------
    DataError
        If the fraction is not in ``[0, 1)``, or there are too few samples for both.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation-fraction: {fraction} is not allowed; from 0 to below 1 is")
    if fraction == 0:
        return generator.permutation(indices), indices[:0]
    if len(indices) < 2:
        raise DataError(
            f"validation-fraction: a node with {len(indices)} samples has none left to train on; "
            "set it to 0, or give the nodes more samples"
        )
    shuffled = generator.permutation(indices)
    count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
    if source is None or source.windows is None:
        return shuffled[count:], shuffled[:count]
    labels, windows = source.train.labels[shuffled].numpy(), source.windows[shuffled].numpy()
    held, apart = _hold_out(labels, windows, count, generator)
    if not apart.any():
        raise DataError(
            f"validation-fraction: of the {len(indices)} windows of a node none is left to train "
            "on, all overlap what is held out; set it to 0, or series.overlap"
        )
    return shuffled[apart], shuffled[held]


def _hold_out(
    labels: np.ndarray, windows: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return which ``count`` windows are held out, and which have no step in common with these.

    Recordings are put one behind the other in a drawn order; of each class the first windows are
    taken.
    """
    recording, first, behind = windows.T
    _, recording = np.unique(recording, return_inverse=True)
    shift = generator.permutation(recording.max() + 1)[recording] * behind.max()
    first, behind = first + shift, behind + shift
    order = np.argsort(first, kind="stable")
    _, classes, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    held = np.zeros(len(order), dtype=bool)
    for k, share in enumerate(_rounded_shares(counts, count, generator)):
        held[np.flatnonzero(classes == k)[:share]] = True
    first, behind = first[order], behind[order]
    until = np.maximum.accumulate(np.where(held, behind, 0))
    after = np.minimum.accumulate(np.where(held, first, behind.max())[::-1])[::-1]
    apart = ~held & (until <= first) & (behind <= after)
    back = np.argsort(order)
    return held[back], apart[back]


def stratified_split(
    labels: np.ndarray, test: int, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training and of test samples, both with the class shares of all.

    The same draws as in scikit-learn's ``train_test_split(..., test_size=test, stratify=labels)``,
    whose import takes a second.

    Parameters
    ----------
    labels : numpy.ndarray
        ``[n]``, with two samples of each class at least.
    test : int
        Number of test samples, at least one a class, and so many left for training.
    random_state : int
        Seed of the draws, at least 0.
    """
    rng = np.random.RandomState(random_state)
    classes, counts = np.unique_inverse(labels)[1], np.unique_counts(labels)[1]
    rows = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    of_training = _rounded_shares(counts, len(labels) - test, rng)
    of_test = _rounded_shares(counts - of_training, test, rng)
    shuffled = [row[rng.permutation(len(row))] for row in rows]
    training = [row[:a] for row, a in zip(shuffled, of_training, strict=True)]
    tested = [row[a : a + b] for row, a, b in zip(shuffled, of_training, of_test, strict=True)]
    return rng.permutation(np.concatenate(training)), rng.permutation(np.concatenate(tested))


def _rounded_shares(
    counts: np.ndarray, total: int, rng: np.random.RandomState | np.random.Generator
) -> np.ndarray:
    """Return integers of sum ``total`` in the ratio of ``counts``; equal remainders by lot."""
    shares = counts / counts.sum() * total
    rounded = np.floor(shares)
    remainders, lacking = shares - rounded, total - int(rounded.sum())
    for remainder in np.unique(remainders)[::-1]:
        if lacking <= 0:
            break
        (tied,) = np.nonzero(remainders == remainder)
        chosen = rng.choice(tied, size=min(len(tied), lacking), replace=False)
        rounded[chosen] += 1
        lacking -= len(chosen)
    integers: np.ndarray = rounded.astype(np.int64)
    return integers


def _own(total: int, num_nodes: int, samples_per_node: int, seed: int) -> list[np.ndarray]:
    """Give every node all samples, or a given number of them; see :func:`partition_indices`."""
    if samples_per_node > total:
        raise DataError(
            f"samples-per-node: {samples_per_node} is more than the {total} training samples that "
            f"this device has; allowed: up to {total}"
        )
    return [
        numpy_generator(seed, "partition", node).permutation(total)[: samples_per_node or None]
        for node in range(num_nodes)
    ]


def _by_id(groups: torch.Tensor | None, scheme: str) -> list[np.ndarray]:
    """Return the samples of each natural id."""
    if groups is None:
        raise DataError(
            f"partition: '{scheme}' needs natural ids, this data set has none; "
            "allowed: dirichlet, iid"
        )
    return partitioners.natural(groups.numpy())


def _within_natural(
    labels: np.ndarray,
    groups: torch.Tensor | None,
    num_nodes: int,
    alpha: float,
    samples_per_node: int,
    seed: int,
) -> list[np.ndarray]:
    """Divide each natural id's samples over nodes of its own; see :func:`partition_indices`."""
    by_id = _by_id(groups, "natural-dirichlet")
    each, left = divmod(num_nodes, len(by_id))
    if left or not each:
        raise DataError(
            f"num-nodes: {num_nodes} is no multiple of the {len(by_id)} natural ids that training "
            f"samples have; allowed: {len(by_id)}, {2 * len(by_id)}, ..."
        )
    smallest = min(map(len, by_id)) // each
    if not smallest or samples_per_node > smallest:
        raise DataError(
            f"num-nodes: {num_nodes} nodes, {each} for each natural id, with samples-per-node = "
            f"{samples_per_node}: the smallest id has {min(map(len, by_id))} training samples"
        )
    nodes = []
    for k, rows in enumerate(by_id):
        order = numpy_generator(seed, "partition", k).permutation(rows)
        nodes += partitioners.dirichlet(
            labels[order],
            order,
            num_nodes=each,
            size=samples_per_node or len(rows) // each,
            alpha=alpha,
            seed=derive_seed(seed, "partition", "dirichlet", k),
        )
    return nodes


def _natural(
    groups: torch.Tensor | None, num_nodes: int, samples_per_node: int, seed: int
) -> list[np.ndarray]:
    """Deal the natural ids to the nodes in turn; see :func:`partition_indices`."""
    by_id = _by_id(groups, "natural")
    if len(by_id) < num_nodes:
        raise DataError(
            f"num-nodes: {num_nodes} nodes are more than the {len(by_id)} natural ids (people, "
            "stations, ...) that training samples have, those of test samples train nobody; "
            f"allowed: up to {len(by_id)}"
        )
    nodes = [np.concatenate(by_id[node::num_nodes]) for node in range(num_nodes)]
    smallest = min(len(indices) for indices in nodes)
    if samples_per_node > smallest:
        raise DataError(
            f"samples-per-node: {samples_per_node} is more than the {smallest} training samples "
            f"available to the smallest node; allowed: up to {smallest}"
        )
    return [
        numpy_generator(seed, "partition", node).permutation(indices)[: samples_per_node or None]
        for node, indices in enumerate(nodes)
    ]
