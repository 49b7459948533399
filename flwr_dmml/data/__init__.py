"""Data sets, their division over the nodes, and who owns which sensor."""

from .assignment import assign_modalities
from .division import partition_indices, split_validation
from .options import LoadOptions, PartitionOptions, Scheme
from .partition import load_partition
from .public import PublicSet, load_public, public_problems
from .reading.audio import add_noise, log_mel, place
from .registry import Dataset, available_datasets, find_dataset, load_source
from .samples import DataError, Modality, Partition, Samples, Scale, Source
from .sets.dtmf import KEY_FREQUENCIES_HZ, dtmf_tones

__all__ = [
    "KEY_FREQUENCIES_HZ",
    "DataError",
    "Dataset",
    "LoadOptions",
    "Modality",
    "Partition",
    "PartitionOptions",
    "PublicSet",
    "Samples",
    "Scale",
    "Scheme",
    "Source",
    "add_noise",
    "assign_modalities",
    "available_datasets",
    "dtmf_tones",
    "find_dataset",
    "load_partition",
    "load_public",
    "load_source",
    "log_mel",
    "partition_indices",
    "place",
    "public_problems",
    "split_validation",
]
