"""Types of a data set: modalities, samples, the source, and the partition of a node."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from ..base.errors import UserError
from .forms import Raw, RawImage

Kind = Literal["image", "audio", "vector", "series", "sequence"]


class DataError(UserError, ValueError):
    """A data set, partition or modality setting that cannot work; the message says what can."""


@dataclass(frozen=True)
class Modality:
    """Data of one sensor: its kind, and the shape of a sample.

    Parameters
    ----------
    kind : {"image", "audio", "vector", "series", "sequence"}
        Decides which encoder reads it.
    shape : tuple of int
        Shape of one sample: ``[channels, height, width]`` of an image, ``[channels, mel bands,
        frames]`` of audio, ``[features]`` of a vector, ``[channels, steps]`` of a time series,
        ``[features + 1, steps]`` of a sequence of features: its last channel is 1 where there is a
        step, and behind its end all are 0.
    raw : RawSound, RawImage or RawNumbers, optional
        What a sample is made of, so that a trained model can be given the same; two modalities are
        equal whatever they are made of. None where the data set does not say.
    """

    kind: Kind
    shape: tuple[int, ...]
    raw: Raw | None = field(default=None, compare=False)


def name_problem(name: str) -> str:
    """Return why a modality cannot have this name, or nothing."""
    if not name or name != name.strip() or set(name) & set("+,=./"):
        return (
            f"a modality cannot be named {name!r}; allowed: a name without + , = . / and without "
            "blanks around it"
        )
    if name in _RESERVED:
        return f"a modality cannot be named {name!r}, {_RESERVED[name]}; give it another name"
    return ""


_RESERVED = {
    "auto": "which modality-pattern takes for all that a device has",
    "common": "which is the head of what all modalities share",
}


class Rows(Mapping[str, torch.Tensor]):
    """Some rows of tensors, gathered anew each time that one is asked for: a view, not a copy.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        ``[n, ...]`` each.
    index : torch.Tensor
        ``[rows]`` int64, in ``[0, n)``.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], index: torch.Tensor) -> None:
        self._tensors: Mapping[str, torch.Tensor] = tensors
        self._index = index
        if isinstance(tensors, Rows):
            self._tensors, self._index = tensors._tensors, tensors._index[index]

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor.index_select(0, self._index.to(tensor.device))  # faster than indexing

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def only(self, names: Iterable[str]) -> "Rows":
        """Return the same rows of these tensors alone."""
        return Rows({name: self._tensors[name] for name in names}, self._index)

    @property
    def source(self) -> Mapping[str, torch.Tensor]:
        """What these are rows of."""
        return self._tensors

    @property
    def index(self) -> torch.Tensor:
        """Which rows of it, ``[rows]`` int64."""
        return self._index

    def same_source(self, other: "Rows") -> bool:
        """Return whether both are rows of the very same tensors."""
        mine, theirs = self._tensors, other._tensors
        return mine.keys() == theirs.keys() and all(mine[k] is theirs[k] for k in mine)

    @property
    def lengths(self) -> dict[str, int]:
        """The number of rows of each."""
        return dict.fromkeys(self._tensors, len(self._index))


@dataclass(frozen=True, eq=False)
class Samples:
    """Aligned samples of one or several modalities.

    Parameters
    ----------
    inputs : mapping of str to torch.Tensor
        Modality to ``[n, *shape]`` float32; of a :meth:`subset`, gathered when asked for.
    labels : torch.Tensor
        ``[n]`` int64, in ``[0, num_classes)``.
    groups : torch.Tensor, optional
        ``[n]`` int64: the natural id (speaker, subject, ...) of each sample.
    present : mapping of str to torch.Tensor, optional
        Modality to ``[n]`` bool: False for samples that lack it, whose input is then zero. Every
        sample has one modality at least. None where no sample lacks any.

    Raises
    ------
    DataError
        If the lengths differ.

    Notes
    -----
    Tensors are shared, not copied, between a source and its partitions: never write into them.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    groups: torch.Tensor | None = None
    present: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        inputs = self.inputs
        lengths = inputs.lengths if isinstance(inputs, Rows) else _lengths(inputs)
        lengths["labels"] = len(self.labels)
        if self.groups is not None:
            lengths["groups"] = len(self.groups)
        if len(set(lengths.values())) > 1:
            raise DataError(f"samples of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray | torch.Tensor) -> "Samples":
        """Return the samples at ``indices`` (integers), in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Samples(
            inputs=Rows(self.inputs, index.cpu()),
            labels=self.labels[index],
            groups=None if self.groups is None else self.groups[index],
            present=self.present and {name: has[index] for name, has in self.present.items()},
        )

    def with_any(self) -> "Samples":
        """Return the samples that have one of the modalities at least."""
        if self.present is None:
            return self
        has = torch.stack([*self.present.values()]).any(dim=0)
        return self if bool(has.all()) else self.subset(torch.nonzero(has).flatten())

    def gathered(self) -> "Samples":
        """Return the same samples with inputs of their own, for what is read often and whole."""
        return replace(self, inputs=dict(self.inputs))

    def restrict(self, modalities: Iterable[str]) -> "Samples":
        """Return the same samples with only ``modalities``, in the order given.

        Raises
        ------
        DataError
            If a modality is not among the inputs.
        """
        names = tuple(modalities)
        unknown = [name for name in names if name not in self.inputs]
        if unknown:
            raise DataError(f"no modality {unknown} in these samples; they have {[*self.inputs]}")
        present = self.present and {name: self.present[name] for name in names}
        given = self.inputs
        inputs = given.only(names) if isinstance(given, Rows) else {n: given[n] for n in names}
        return Samples(inputs, self.labels, self.groups, present)


def _lengths(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {name: len(tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Scale:
    """How numbers were standardised, by channel: ``(x - mean) / deviation``.

    Parameters
    ----------
    mean, deviation : tuple of float
        ``[channels]``, of the training samples before; a deviation is never 0.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def applied(self, values: torch.Tensor) -> torch.Tensor:
        """Return values ``[n, channels, ...]`` standardised, as float32."""
        shape = (-1, *[1] * (values.ndim - 2))
        mean, deviation = (
            torch.tensor(x, dtype=torch.float64, device=values.device).reshape(shape)
            for x in (self.mean, self.deviation)
        )
        return ((values.double() - mean) / deviation).float()


@dataclass(frozen=True)
class Doubt:
    """Something about data that may be wrong, and what to do.

    Parameters
    ----------
    topic : {"channel", "scale", "class", "sample", "file"}
        What it is about: of "scale" standardising is the remedy.
    text : str
        For people.
    """

    topic: Literal["channel", "scale", "class", "sample", "file"]
    text: str


@dataclass(frozen=True, eq=False)
class Source:
    """A data set ready to be partitioned.

    Parameters
    ----------
    name : str
        The name it is registered under.
    modalities : dict of str to Modality
        Every modality, in the order that nodes list theirs.
    num_classes : int
        Number of classes.
    train, test : Samples
        With all modalities. Only ``train`` is divided over the nodes.
    class_names, group_names : tuple of str
        Names of the classes and of the natural ids, in their order; empty where they have none.
    scales : mapping of str to Scale
        How modalities were standardised; empty where none was.
    doubts : tuple of Doubt
        What may be wrong with the data; the log shows it.
    windows : torch.Tensor, optional
        ``[n, 3]`` int64, where training samples are windows of recordings: the recording of each,
        its first step there and the one behind its last. What is held out for validation then
        has no step of a recording in common with what is trained on.

    Raises
    ------
    DataError
        If a modality has a name that cannot be, or there are more or fewer windows than samples.
    """

    name: str
    modalities: dict[str, Modality]
    num_classes: int
    train: Samples
    test: Samples
    class_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    windows: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.windows is not None and self.windows.shape != (len(self.train), 3):
            shape = tuple(self.windows.shape)
            raise DataError(f"windows of shape {shape} of {len(self.train)} training samples")
        if problems := [*filter(None, map(name_problem, self.modalities))]:
            raise DataError("; ".join(problems))


def hide_rows(source: Source, visible: float) -> Source:
    """Return the source with all images black below their upper part.

    Parameters
    ----------
    source : Source
        Modalities of a kind other than "image" stay as they are.
    visible : float
        Share of the rows that is kept, in (0, 1], rounded to whole rows.
    """
    images = {name for name, modality in source.modalities.items() if modality.kind == "image"}

    def hidden(samples: Samples) -> Samples:
        own = {m: upper(x, visible) if m in images else x for m, x in samples.inputs.items()}
        return replace(samples, inputs=own)

    def told(modality: Modality) -> Modality:
        raw = modality.raw
        if not isinstance(raw, RawImage):
            return modality
        return replace(modality, raw=raw.model_copy(update={"visible": visible}))

    forms = {name: told(modality) for name, modality in source.modalities.items()}
    return replace(source, modalities=forms, train=hidden(source.train), test=hidden(source.test))


def upper(images: torch.Tensor, visible: float) -> torch.Tensor:
    """Return images ``[..., height, width]``, black below a share of the rows, in (0, 1]."""
    if visible == 1:
        return images
    shown = images.clone()
    shown[..., round(visible * shown.shape[-2]) :, :] = 0
    return shown


@dataclass(frozen=True, eq=False)
class Partition:
    """Data of one node.

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
    scales : mapping of str to Scale
        How modalities were standardised, see :class:`Source`; also those of other nodes.
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
    scales: Mapping[str, Scale] = field(default_factory=dict)
