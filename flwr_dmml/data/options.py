"""Options of the data: loading, partitioning, missing modalities, and the public set."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from ..base.options import Group

Standardise = Literal["off", "auto"]
Scheme = Literal["dirichlet", "iid", "natural", "natural-dirichlet", "own"]


class AudioOptions(Group):
    """Conversion of sound files to log-mel spectrograms, in data sets that say so."""

    rate_hz: int = Field(16_000, ge=1000, le=192_000, description="sound is resampled to this, Hz")
    seconds: float = Field(
        1.0, gt=0, le=600, description="length: longer is cropped, shorter padded, s"
    )
    mels: int = Field(32, ge=4, le=256, description="mel bands")
    window_ms: float = Field(32.0, gt=0, le=1000, description="window of a spectrum, ms")
    hop_ms: float = Field(16.0, gt=0, le=1000, description="from one spectrum to the next, ms")


class ImageOptions(Group):
    """Conversion of image files to tensors, in data sets that say so."""

    side: int = Field(32, ge=4, le=1024, description="images are resized to this square, pixels")
    colour: bool = Field(True, description="three channels; off: one of grey")


class SeriesOptions(Group):
    """Conversion of recordings to windows, in data sets that say so."""

    window_s: float = Field(
        0.0, ge=0, le=600, description="length of a window, s; 0 is what suits the data set"
    )
    overlap: float = Field(
        0.5, ge=0, lt=1, description="share of a window that overlaps the last one"
    )
    rate_hz: float = Field(50.0, gt=0, le=100_000, description="common sampling rate, Hz")
    steps: int = Field(
        0, ge=0, description="steps of a sequence: longer is cut, shorter masked; 0: the longest's"
    )


class MissingOptions(Group):
    """Samples that lack one of their device's modalities; a device with one never lacks it."""

    train_share: float = Field(
        0.0, ge=0, lt=1, description="share of a device's training samples that lack a modality"
    )
    test_share: float = Field(
        0.0, ge=0, le=1, description="share of the test samples that lack one, in separate metrics"
    )
    device_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability with which a device has lost each of its modalities in training, "
        "but never the last",
    )
    modalities: str = Field(
        "", description="those that may be missing, one per sample: 'audio,image'; empty: any"
    )

    def among(self, available: Iterable[str]) -> tuple[str, ...]:
        """Return those of the ``available`` modalities that may be missing, in their order."""
        return tuple(m for m in available if m in self._named or not self._named)

    def unknown(self, available: Container[str]) -> list[str]:
        """Return what ``modalities`` names besides the ``available`` ones."""
        return [m for m in self._named if m not in available]

    @property
    def _named(self) -> list[str]:
        return [name.strip() for name in self.modalities.split(",")] if self.modalities else []


class PublicOptions(Group):
    """The public set of methods that label one: the same unlabelled samples on every device."""

    dataset: str = Field(
        "", description="data set, without its labels; empty: what no device got of the run's own"
    )
    samples: int = Field(0, ge=0, description="number of public samples; 0: all")
    outside: str = Field(
        "", description="mix in this data set, whose samples are out of distribution"
    )
    outside_share: float = Field(0.5, gt=0, lt=1, description="their share, where outside is set")
    convert_images: bool = Field(False, description="convert images to the run's size and colour")


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a data set; hashable, so that a loaded source can be cached.

    Parameters
    ----------
    path : str
        Folder of the data (run-config key ``data-path``); unused where nothing is read.
    snr_db : float
        Signal-to-noise ratio of the audio, in dB; each data set says what is meant by 0 dB.
    image_visible : float
        Share of the rows of every image, from the top, that is not blacked out, in (0, 1].
    audio, image, series : Options
        How files become tensors; each data set says which of these have an influence.
    seed : int
        Seed of everything drawn while loading (pairs, offsets, noise).
    cache : bool
        Whether what has been read is kept for the next process (:mod:`~flwr_dmml.data.cache`).
    standardise : {"off", "auto"}
        "auto" gives vectors, series and sequences zero mean and unit variance by channel, by the
        training samples (:func:`~flwr_dmml.data.standard.standardised`).
    own : Group, optional
        The options of the data set's own (:attr:`.Dataset.options_type`).
    """

    path: str = ""
    snr_db: float = 0.0
    image_visible: float = 1.0
    audio: AudioOptions = field(default_factory=AudioOptions)
    image: ImageOptions = field(default_factory=ImageOptions)
    series: SeriesOptions = field(default_factory=SeriesOptions)
    seed: int = 0
    cache: bool = True
    standardise: Standardise = "off"
    own: Group | None = None


@dataclass(frozen=True)
class PartitionOptions:
    """Options for dividing a data set over the nodes; hashable, the same for every node of a run.

    Parameters
    ----------
    dataset : str
        Name of a registered data set.
    num_nodes : int
        Number of nodes, at least 1.
    load : LoadOptions
        How to load the data set. Its ``snr_db`` has no influence on who gets which sample.
    scheme : {"dirichlet", "iid", "natural", "natural-dirichlet", "own"}
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
