"""Which node gets which samples and modalities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from ..options import MissingOptions
from ..seeding import derive_seed, numpy_generator
from . import partitioners
from .assignment import assign_modalities
from .missing import draw_present, drop
from .registry import LoadOptions, load_source
from .samples import DataError, Modality, Samples

Scheme = Literal["dirichlet", "iid", "natural"]

__all__ = [
    "Partition",
    "PartitionOptions",
    "Scheme",
    "assign_modalities",
    "load_partition",
    "partition_indices",
    "split_validation",
]


@dataclass(frozen=True)
class PartitionOptions:
    """How a data set is divided over the nodes; hashable, the same for every node of a run.

    Parameters
    ----------
    dataset : str
        Name of a registered data set.
    num_nodes : int
        Number of nodes, at least 1.
    load : LoadOptions
        How to load the data set. Its ``snr_db`` has no influence on who gets which sample.
    scheme : {"dirichlet", "iid", "natural"}
        See :func:`partition_indices`.
    alpha : float
        Concentration of the Dirichlet distribution, above 0; small is skewed.
    samples_per_node : int
        Samples of each node, validation included; 0 divides all there are.
    validation_fraction : float
        Share of a node's samples kept for validation, in ``[0, 1)``.
    modality_pattern, modality_shares : str
        See :func:`assign_modalities`; exactly one is given.
    missing : MissingOptions
        What training and test samples lack. It has no influence on who gets which sample.
    seed : int
        Seed of everything drawn here.
    """

    dataset: str
    num_nodes: int
    load: LoadOptions = field(default_factory=LoadOptions)
    scheme: Scheme = "dirichlet"
    alpha: float = 0.3
    samples_per_node: int = 0
    validation_fraction: float = 0.0
    modality_pattern: str = ""
    modality_shares: str = ""
    missing: MissingOptions = field(default_factory=MissingOptions)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Partition:
    """What one node sees.

    Parameters
    ----------
    partition_id : int
        In ``[0, num_nodes)``.
    modalities : tuple of str
        The node's own, in the order of the data set.
    train, validation : Samples
        The node's own samples, with its modalities only.
    source_modalities : dict of str to Modality
        Every modality of the data set, also those of other nodes.
    num_classes : int
        Number of classes of the whole data set.
    test : Samples
        The whole test set, with the node's modalities only; complete, whatever is missing.
    test_present : mapping of str to torch.Tensor, optional
        Modality to ``[n]`` bool, False where a test sample is to be predicted without it: at most
        one a sample, the same for nodes with the same modalities. None where ``missing.test-share``
        is 0.
    """

    partition_id: int
    modalities: tuple[str, ...]
    train: Samples
    validation: Samples
    source_modalities: dict[str, Modality]
    num_classes: int
    test: Samples
    test_present: Mapping[str, torch.Tensor] | None = None


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
    """Divide samples over nodes; no sample goes to two nodes.

    Parameters
    ----------
    labels, groups : torch.Tensor
        ``[n]`` int64; only the scheme "natural" needs ``groups``.
    num_nodes : int
        Number of nodes, at least 1.
    scheme : {"dirichlet", "iid", "natural"}
        "dirichlet": nodes of equal size, the class shares of each drawn from Dirichlet(alpha);
        where a class runs out, the shares of the others grow. "iid": nodes of equal size, drawn
        uniformly. "natural": the sorted natural ids are dealt to the nodes in turn, so sizes
        differ; ``samples_per_node`` then keeps that many of each node's samples at random.
    alpha : float
        Concentration of the Dirichlet distribution, above 0; unused by the other schemes.
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
        If there are too few samples, ids or natural ids, the classes run out at a small alpha,
        or flwr-datasets is not installed.

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
    if scheme not in ("dirichlet", "iid"):
        raise DataError(f"partition: '{scheme}' is unknown; allowed: dirichlet, iid, natural")

    size = samples_per_node or len(labels) // num_nodes
    if size == 0 or size * num_nodes > len(labels):
        raise DataError(
            f"samples-per-node: {num_nodes} nodes of {max(size, 1)} samples need more than the "
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
    indices: np.ndarray, fraction: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``indices`` shuffled and divided into training and validation.

    At least one sample is for validation if ``fraction`` is above 0, and one always for training.

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
    return shuffled[count:], shuffled[:count]


def _natural(
    groups: torch.Tensor | None, num_nodes: int, samples_per_node: int, seed: int
) -> list[np.ndarray]:
    """Deal the natural ids to the nodes in turn; see :func:`partition_indices`."""
    if groups is None:
        raise DataError(
            "partition: 'natural' needs natural ids, this data set has none; "
            "allowed: dirichlet, iid"
        )
    by_id = partitioners.natural(groups.numpy())
    if len(by_id) < num_nodes:
        raise DataError(
            f"num-nodes: {num_nodes} nodes are more than the {len(by_id)} natural ids of the data "
            f"set; allowed: up to {len(by_id)}"
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


def load_partition(options: PartitionOptions, partition_id: int) -> Partition:
    """Return what node ``partition_id`` sees; the data and the division are computed once.

    Raises
    ------
    DataError
        If the id is not in ``[0, num_nodes)``, or anything in ``options`` cannot work.
    """
    if not 0 <= partition_id < options.num_nodes:
        raise DataError(
            f"partition-id: {partition_id} is not allowed; from 0 to {options.num_nodes - 1} is"
        )
    source = load_source(options.dataset, options.load)
    indices, modalities = _divide(options)
    train, validation = split_validation(
        indices[partition_id],
        options.validation_fraction,
        numpy_generator(options.seed, "validation", partition_id),
    )
    own = modalities[partition_id]
    samples, test = source.train.restrict(own), source.test.restrict(own)
    missing, may_miss = options.missing, options.missing.among(own)
    rng = numpy_generator(options.seed, "missing", partition_id)
    test_present: Mapping[str, torch.Tensor] | None = None
    if missing.test_share:  # the same draw on every node
        test_rng = numpy_generator(options.seed, "missing", "test")
        test_present = draw_present(test, missing.test_share, may_miss, test_rng)
    return Partition(
        partition_id=partition_id,
        modalities=own,
        train=drop(samples.subset(train), missing.train_share, may_miss, rng),
        validation=samples.subset(validation),
        source_modalities=source.modalities,
        num_classes=source.num_classes,
        test=test,
        test_present=test_present,
    )


@lru_cache(maxsize=8)
def _divide(options: PartitionOptions) -> tuple[list[np.ndarray], list[tuple[str, ...]]]:
    """Return the indices and the modalities of every node."""
    source = load_source(options.dataset, options.load)
    modalities = assign_modalities(
        options.num_nodes,
        pattern=options.modality_pattern,
        shares=options.modality_shares,
        available=tuple(source.modalities),
        seed=options.seed,
    )
    indices = partition_indices(
        source.train.labels,
        source.train.groups,
        num_nodes=options.num_nodes,
        scheme=options.scheme,
        alpha=options.alpha,
        samples_per_node=options.samples_per_node,
        seed=options.seed,
    )
    return indices, modalities
