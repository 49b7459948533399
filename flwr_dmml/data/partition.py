"""Which node gets which samples and modalities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from ..base.seeding import numpy_generator
from .assignment import AUTO, assign_modalities
from .division import Scheme, partition_indices, split_validation
from .missing import draw_present, drop
from .options import MissingOptions
from .registry import LoadOptions, find_dataset, load_source
from .samples import DataError, Modality, Samples


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
    scheme : {"dirichlet", "iid", "natural", "own"}
        See :func:`~flwr_dmml.data.partition_indices`.
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
        The test samples that have one of the node's modalities at least, with these only; without
        regard to ``missing``.
    test_present : mapping of str to torch.Tensor, optional
        Modality to ``[n]`` bool, False where a test sample is to be predicted without it: at most
        one a sample, the same for nodes with the same modalities. None where ``missing.test-share``
        is 0.
    class_names : tuple of str
        Names of the classes, in their order; empty where they have none.
    """

    partition_id: int
    modalities: tuple[str, ...]
    train: Samples
    validation: Samples
    source_modalities: dict[str, Modality]
    num_classes: int
    test: Samples
    test_present: Mapping[str, torch.Tensor] | None = None
    class_names: tuple[str, ...] = ()


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
    if (load_part := find_dataset(options.dataset).load_part) is not None:
        return load_part(options, partition_id)
    source = load_source(options.dataset, options.load)
    indices, modalities = _divide(options)
    train, validation = split_validation(
        indices[partition_id],
        options.validation_fraction,
        numpy_generator(options.seed, "validation", partition_id),
    )
    own = modalities[partition_id]
    samples, test = source.train.restrict(own), source.test.restrict(own).with_any()
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
        class_names=source.class_names,
    )


@lru_cache(maxsize=8)
def _divide(options: PartitionOptions) -> tuple[list[np.ndarray], list[tuple[str, ...]]]:
    """Return the indices and the modalities of every node; what it has nothing of is left out."""
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
    if (present := source.train.present) is None:
        return indices, modalities
    if options.modality_pattern.strip() == AUTO:
        modalities = [
            tuple(m for m, has in present.items() if bool(has[rows].any())) for rows in indices
        ]
    for node, (rows, own) in enumerate(zip(indices, modalities, strict=True)):
        has_any = torch.stack([present[m][rows] for m in own]).any(dim=0).numpy()
        if not has_any.any():
            raise DataError(
                f"modality-pattern: none of the {len(rows)} samples of node {node} has "
                f"{' or '.join(own)}; 'auto' gives nodes the modalities that they have"
            )
        indices[node] = rows[has_any]
    return indices, modalities
