"""Partition of a data set: the samples and modalities of each node."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from ..base.seeding import numpy_generator
from .assignment import AUTO, assign_modalities
from .division import partition_indices, split_validation
from .missing import draw_present, drop, lost_by, without
from .options import PartitionOptions
from .registry import find_dataset, load_source
from .samples import DataError, Partition


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
    indices, modalities = divide(options)
    train, validation = split_validation(
        indices[partition_id],
        options.validation_fraction,
        numpy_generator(options.seed, "validation", partition_id),
        source,
    )
    own = modalities[partition_id]
    samples, test = source.train.restrict(own), source.test.restrict(own).with_any()
    missing, may_miss = options.missing, options.missing.among(own)
    rng = numpy_generator(options.seed, "missing", partition_id)
    lost = lost_by(partition_id, own, may_miss, missing.device_rate, options.seed)
    learned = without(samples.subset(train), lost)
    if lost and not len(learned):
        raise DataError(
            f"missing.device-rate: node {partition_id} loses {', '.join(lost)}, and its training "
            "samples have nothing else; name in missing.modalities what may be lost"
        )
    test_present: Mapping[str, torch.Tensor] | None = None
    if missing.test_share:  # the same draw on every node
        test_rng = numpy_generator(options.seed, "missing", "test")
        test_present = draw_present(test, missing.test_share, may_miss, test_rng)
    return Partition(
        partition_id=partition_id,
        modalities=own,
        train=drop(learned, missing.train_share, may_miss, rng),
        validation=samples.subset(validation),
        source_modalities=source.modalities,
        num_classes=source.num_classes,
        test=test,
        test_present=test_present,
        class_names=source.class_names,
        scales=source.scales,
    )


@lru_cache(maxsize=8)
def divide(options: PartitionOptions) -> tuple[list[np.ndarray], list[tuple[str, ...]]]:
    """Return every node's indices and modalities, without samples that lack all of these."""
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
