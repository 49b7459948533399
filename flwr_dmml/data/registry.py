"""Data sets by name: installed ones (entry-point group ``flwr_dmml.datasets``) and an app's own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from logging import WARNING
from pathlib import Path

from ..base.log import log
from ..base.options import Group
from ..base.registry import installed
from .cache import cached
from .options import LoadOptions, PartitionOptions
from .samples import DataError, Partition, Source, hide_rows
from .standard import standardised
from .store import shared

ENTRY_POINT_GROUP = "flwr_dmml.datasets"


@dataclass(frozen=True)
class Dataset:
    """A data set that can be loaded; an entry point of ``flwr_dmml.datasets`` names one.

    Parameters
    ----------
    name : str
        The entry point's name.
    modalities : tuple of str, or callable
        What ``load(...).modalities`` will list, in that order; a callable reads it from the folder.
    needs_path : bool
        Whether ``LoadOptions.path`` must be given.
    natural_ids : bool
        Whether the training samples (may) carry groups, as the partition scheme "natural" needs.
    load : callable, optional
        Makes the source. The same options must give the same source in every process. Where there
        is none, there is ``load_part``.
    description : str
        One line for people.
    files : callable, optional
        Lists the files that ``load`` reads, whose contents are then part of what the cache goes by.
        Without it nothing is cached.
    load_part : callable, optional
        Makes a single device's partition, where the data set is divided already: ``load`` and all
        settings that divide are then not asked. The test samples are those of the part.
    uses : tuple of str
        Fields of the options besides the path that ``load`` reads: no other makes it load anew.
    options_type : type[Group], optional
        Options of its own: read from the run config as ``<name>.<option>``, and handed to ``load``
        as ``LoadOptions.own``.
    """

    name: str
    modalities: tuple[str, ...] | Callable[[LoadOptions], tuple[str, ...]]
    needs_path: bool = False
    natural_ids: bool = False
    load: Callable[[LoadOptions], Source] | None = None
    description: str = ""
    files: Callable[[LoadOptions], Sequence[Path | str]] | None = None
    load_part: Callable[[PartitionOptions, int], Partition] | None = None
    uses: tuple[str, ...] = ("snr_db", "audio", "image", "series", "seed")
    options_type: type[Group] | None = None

    def __post_init__(self) -> None:
        if self.load is None and self.load_part is None:
            raise DataError(f"Dataset {self.name!r}: needs load, or load_part")

    def modalities_of(self, options: LoadOptions) -> tuple[str, ...] | None:
        """Return the modalities; None where only a device's folder tells, and it is not here.

        Raises
        ------
        DataError
            If the folder does not hold the data set.
        """
        if self.load_part is not None:
            return None
        if not callable(self.modalities):
            return self.modalities
        if not options.path or not Path(options.path).is_dir():
            return None
        return self.modalities(self.with_own(options))

    @property
    def loader(self) -> Callable[[LoadOptions], Source]:
        """What makes the source.

        Raises
        ------
        DataError
            Each device has its own part only.
        """
        if self.load is None:
            raise DataError(
                f"dataset = {self.name!r}: a device has its own part only, there is no set that "
                "all have (idkd and kd need one: set public.dataset)"
            )
        return self.load

    def with_own(self, options: LoadOptions) -> LoadOptions:
        """Return the options with defaults in place of what is not the data set's own."""
        if isinstance(options.own, self.options_type or type(None)):
            return options
        return replace(options, own=self.options_type() if self.options_type else None)


def folder_of(options: LoadOptions, name: str) -> Path:
    """Return the folder ``name`` under ``options.path`` if there is one, else ``options.path``."""
    path = Path(options.path)
    return path / name if (path / name).is_dir() else path


_of_apps: dict[str, Dataset] = {}
"""What apps bring along, in this process."""


def add_datasets(datasets: Iterable[Dataset]) -> None:
    """Make an app's own data sets known in this process, by their names.

    Raises
    ------
    DataError
        One is no :class:`Dataset`, or has the name of an installed one.
    """
    for dataset in datasets:
        if not isinstance(dataset, Dataset):
            raise DataError(f"datasets: {dataset!r} is not a flwr_dmml.data.Dataset")
        if dataset.name in installed(ENTRY_POINT_GROUP):
            raise DataError(f"datasets: '{dataset.name}' is the name of an installed data set")
        _of_apps[dataset.name] = dataset


def available_datasets() -> list[str]:
    """Return the names of all known data sets, sorted."""
    return sorted(installed(ENTRY_POINT_GROUP).keys() | _of_apps.keys())


def find_dataset(name: str) -> Dataset:
    """Return the data set registered as ``name``.

    Raises
    ------
    DataError
        If there is none, or if the entry point is not a :class:`Dataset`.
    """
    if name in _of_apps:
        return _of_apps[name]
    entry = installed(ENTRY_POINT_GROUP).get(name)
    if entry is None:
        allowed = ", ".join(available_datasets())
        raise DataError(f"dataset: there is no data set '{name}'; allowed: {allowed}")
    dataset = entry.load()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"dataset: the entry point '{name}' ({entry.value}) is a "
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
    options, whole = dataset.with_own(options), dataset.loader

    def load() -> Source:
        if dataset.files is None or not options.cache:
            return whole(options)
        used = {key: getattr(options, key) for key in dataset.uses}
        used |= {"own": options.own} if options.own is not None else {}
        root, files = Path(options.path), dataset.files(options)
        return cached(name, used, root, files, whole, lambda: whole(options))

    def changed() -> Source:
        source = load()
        source = standardised(source) if options.standardise == "auto" else source
        return hide_rows(source, options.image_visible) if options.image_visible != 1 else source

    kept = dataset.files is not None and options.cache
    if options.image_visible != 1 or options.standardise == "auto" or not kept:
        source = shared(f"{name} {options}", changed)
    else:
        source = load()
    for doubt in source.doubts:
        log(WARNING, "%s: %s", name, doubt.text)
    return source
