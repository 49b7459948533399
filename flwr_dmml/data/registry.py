"""Data sets by name, found through the entry-point group ``flwr_dmml.datasets``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points

from .samples import DataError, Source, hide_rows
from .store import shared

ENTRY_POINT_GROUP = "flwr_dmml.datasets"


@dataclass(frozen=True)
class LoadOptions:
    """How to load a data set; hashable, so that a loaded source can be cached.

    Parameters
    ----------
    path : str
        Folder of the data (run-config key ``data-path``); unused where nothing is read.
    snr_db : float
        Signal-to-noise ratio of the audio, in dB; each data set says what is meant by 0 dB.
    image_visible : float
        Share of the rows of every image, from the top, that is not blacked out, in (0, 1].
    seed : int
        Seed of everything drawn while loading (pairs, offsets, noise).
    """

    path: str = ""
    snr_db: float = 0.0
    image_visible: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Dataset:
    """A data set that can be loaded; an entry point of ``flwr_dmml.datasets`` names one.

    Parameters
    ----------
    name : str
        The entry point's name.
    modalities : tuple of str
        What ``load(...).modalities`` will list, in that order.
    needs_path : bool
        Whether ``LoadOptions.path`` must be given.
    natural_ids : bool
        Whether the training samples carry groups, as the partition scheme "natural" needs.
    load : callable
        Makes the source. The same options must give the same source in every process.
    description : str
        One line for people.
    """

    name: str
    modalities: tuple[str, ...]
    needs_path: bool
    natural_ids: bool
    load: Callable[[LoadOptions], Source]
    description: str


def available_datasets() -> list[str]:
    """Return the names of all registered data sets, sorted."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def find_dataset(name: str) -> Dataset:
    """Return the data set registered as ``name``.

    Raises
    ------
    DataError
        If there is none, or if the entry point is not a :class:`Dataset`.
    """
    entries = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not entries:
        allowed = ", ".join(available_datasets())
        raise DataError(f"dataset: there is no data set '{name}'; allowed: {allowed}")
    dataset = entries[0].load()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"dataset: the entry point '{name}' ({entries[0].value}) is a "
            f"{type(dataset).__name__}, it must be a flwr_dmml.data.Dataset"
        )
    return dataset


@lru_cache(maxsize=4)
def load_source(name: str, options: LoadOptions) -> Source:
    """Load the data set ``name``; the last few sources are kept, so each process loads once.

    Raises
    ------
    DataError
        If the name is unknown, the path is missing, or the data cannot be read.
    """
    dataset = find_dataset(name)
    if dataset.needs_path and not options.path:
        raise DataError(f"data-path: the data set '{name}' reads a folder; set its path")

    def load() -> Source:
        source = dataset.load(options)
        return source if options.image_visible == 1 else hide_rows(source, options.image_visible)

    return shared(f"{name} {options}", load)
