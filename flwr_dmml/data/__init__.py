"""Data sets, their division over the nodes, and who owns which sensor."""

from .audio import add_noise, log_mel, place
from .dtmf import KEY_FREQUENCIES_HZ, dtmf_tones
from .partition import (
    Partition,
    PartitionOptions,
    Scheme,
    assign_modalities,
    load_partition,
    partition_indices,
    split_validation,
)
from .registry import (
    Dataset,
    LoadOptions,
    available_datasets,
    find_dataset,
    load_source,
)
from .samples import DataError, Modality, Samples, Source

__all__ = [
    "KEY_FREQUENCIES_HZ",
    "DataError",
    "Dataset",
    "LoadOptions",
    "Modality",
    "Partition",
    "PartitionOptions",
    "Samples",
    "Scheme",
    "Source",
    "add_noise",
    "assign_modalities",
    "available_datasets",
    "dtmf_tones",
    "find_dataset",
    "load_partition",
    "load_source",
    "log_mel",
    "partition_indices",
    "place",
    "split_validation",
]
