"""Arrays as a data set: one pair of inputs and labels to divide, or a pair for each device."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..base.seeding import numpy_generator
from ..data import DataError, Dataset
from ..data.forms import RawNumbers
from ..data.options import LoadOptions
from ..data.reading.cells import is_missing
from ..data.samples import Kind, Modality, Samples, Source
from ..data.store import all_tensors

Arrays = Any
"""What NumPy makes an array of: arrays, tensors, lists of numbers."""
Pair = tuple[Arrays | Mapping[str, Arrays], Arrays]
"""Inputs (one array, or an array for each modality) and labels."""
HELD_OUT = 0.2
"""Share of each device's samples that tests the models, where no test samples are given."""
ALONE = "input"
"""Name of the modality of inputs that come without a name."""
KINDS: dict[int, Kind] = {1: "vector", 2: "series", 3: "image"}
"""What a sample is, by its number of dimensions."""


@dataclass(frozen=True)
class OwnData:
    """Arrays as a data set, and the settings that follow from them."""

    dataset: Dataset
    settings: dict[str, Any]


def read_data(data: Dataset | Source | Pair | Sequence[Pair], test: Pair | None = None) -> OwnData:
    """Return a data set made of what somebody has in memory.

    Parameters
    ----------
    data : Dataset, Source, pair or sequence of pairs
        A pair is ``(inputs, labels)``: inputs ``[n, ...]``, or a mapping from modality to such, and
        labels ``[n]``: whole numbers or text. A single pair is divided over the devices by the
        setting ``partition``; of a sequence, device k gets pair k, with the modalities that it has.
        A sample of one dimension is a vector, of two a series ``[channels, steps]``, of three an
        image ``[channels, height, width]``; other kinds come as a Source.
    test : pair, optional
        Test samples. By default a fifth of each pair is held out, the same for every seed.

    Raises
    ------
    DataError
        Lengths, shapes or modalities do not agree, a number is not finite, or a label is no class.
    """
    if isinstance(data, Dataset | Source):
        if test is not None:
            raise DataError("test: goes with pairs of inputs and labels; a data set has its own")
        dataset = data if isinstance(data, Dataset) else _dataset(data)
        return OwnData(dataset, {"dataset": dataset.name})
    one = isinstance(data, tuple)
    pairs = [data] if one else list(data)
    if not pairs:
        raise DataError("data: an empty list; give a pair (inputs, labels) for each device")
    devices = [_read_pair(f"data[{k}]" if not one else "data", p) for k, p in enumerate(pairs)]
    tests = [_read_pair("test", test)] if test is not None else []
    dataset = _dataset(_source(devices, tests))
    settings: dict[str, Any] = {"dataset": dataset.name, "samples-per-node": 0}
    settings["modality-pattern"] = "auto"
    if not one:
        settings |= {"partition": "natural", "num-nodes": len(pairs)}
    return OwnData(dataset, settings)


@dataclass(frozen=True)
class _Pair:
    """Inputs by modality, ``[n, ...]`` float32, and labels ``[n]``."""

    inputs: dict[str, np.ndarray]
    labels: np.ndarray


def _read_pair(where: str, pair: Any) -> _Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{where}: must be a pair (inputs, labels), not {type(pair).__name__}")
    given, labels = pair
    named = given if isinstance(given, Mapping) else {ALONE: given}
    if not named:
        raise DataError(f"{where}: has no modality")
    inputs = {str(name): _numbers(f"{where}, {name}", values) for name, values in named.items()}
    classes = _labels(where, labels)
    for name, values in inputs.items():
        if len(values) != len(classes):
            raise DataError(f"{where}: {len(values)} samples of {name}, {len(classes)} labels")
        if set(name) & set("+,. "):
            raise DataError(f"{where}: a modality cannot be named {name!r}: no '+', ',', '.', ' '")
    if not len(classes):
        raise DataError(f"{where}: has no sample")
    return _Pair(inputs, classes)


def _numbers(where: str, values: Any) -> np.ndarray:
    array = _array(where, values)
    if array.ndim < 2:
        raise DataError(f"{where}: of shape {array.shape}; samples x features at least are needed")
    if array.ndim - 1 not in KINDS:
        raise DataError(f"{where}: samples of {array.ndim - 1} dimensions; allowed: 1, 2 and 3")
    try:
        numbers = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: not numbers ({error})") from error
    if not np.isfinite(numbers).all():
        row = int(np.argwhere(~np.isfinite(numbers))[0][0])
        raise DataError(f"{where}: sample {row} has a number that is not finite")
    return numbers


def _labels(where: str, values: Any) -> np.ndarray:
    labels = _array(f"{where}, labels", values)
    if labels.ndim != 1:
        raise DataError(f"{where}, labels: of shape {labels.shape}; one label a sample is needed")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, errors="replace")
    if labels.dtype.kind in "OUf":
        _check_none_missing(where, labels)
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels) & (labels == np.round(labels))).all():
            raise DataError(f"{where}, labels: real numbers; classes are whole numbers or text")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "O":
        labels = np.array([str(value) for value in labels])
    if labels.dtype.kind not in "iubU":
        raise DataError(f"{where}, labels: {labels.dtype}; classes are whole numbers or text")
    return labels


def _check_none_missing(where: str, labels: np.ndarray) -> None:
    for row, label in enumerate(map(str, labels)):
        if is_missing(label):
            told = f": '{label}' is a missing value" if label.strip() else ""
            raise DataError(f"{where}: sample {row} has no label{told} (give one, or leave it out)")


def _array(where: str, values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: no array can be made of it ({error})") from error


def _source(devices: Sequence[_Pair], tests: Sequence[_Pair]) -> Source:
    """Return all samples in one source: those of device k have the natural id k."""
    kinds = {str(p.labels.dtype.kind == "U") for p in (*devices, *tests)}
    if len(kinds) > 1:
        raise DataError("data: some labels are text and some are numbers; allowed: one of the two")
    modalities: dict[str, Modality] = {}
    for pair in devices:
        for name, values in pair.inputs.items():
            kind = KINDS[values.ndim - 1]
            found = Modality(kind, values.shape[1:], None if kind == "image" else RawNumbers())
            if modalities.setdefault(name, found) != found:
                raise DataError(
                    f"data: samples of {name} are of shape {modalities[name].shape} and of "
                    f"{found.shape}; allowed: one shape a modality"
                )
    for pair in tests:
        for name, known in modalities.items():
            if name not in pair.inputs or pair.inputs[name].shape[1:] != known.shape:
                raise DataError(f"test: needs {name}, samples of shape {known.shape}")
    names = np.unique(np.concatenate([p.labels for p in devices]))
    training, testing = [], [(0, pair, np.arange(len(pair.labels))) for pair in tests]
    for k, pair in enumerate(devices):
        rows = np.arange(len(pair.labels))
        if not tests:
            rows, held_out = _divided(k, len(rows))
            testing.append((k, pair, held_out))
        training.append((k, pair, rows))
    train = _joined(training, modalities, names)
    test = _joined(testing, modalities, names)
    return Source(
        name="arrays",
        modalities=modalities,
        num_classes=len(names),
        train=train,
        test=test,
        class_names=tuple(str(name) for name in names),
    )


def _divided(device: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a device's samples are for training, and which are held out for the test."""
    if count < 2:
        raise DataError(f"data[{device}]: one sample; two are needed, or test samples (test=)")
    order = numpy_generator(0, "held-out", device).permutation(count)
    cut = max(round(HELD_OUT * count), 1)
    return np.sort(order[cut:]), np.sort(order[:cut])


def _joined(
    parts: Sequence[tuple[int, _Pair, np.ndarray]],
    modalities: Mapping[str, Modality],
    names: np.ndarray,
) -> Samples:
    given = np.concatenate([pair.labels[rows] for _, pair, rows in parts])
    if odd := set(given.tolist()) - set(names.tolist()):
        raise DataError(f"test: no training sample has the label {min(map(str, odd))!r}")
    inputs, present = {}, {}
    for name, modality in modalities.items():
        empty = np.zeros((0, *modality.shape), np.float32)
        filled = [
            pair.inputs[name][rows] if name in pair.inputs
            else np.broadcast_to(np.float32(0), (len(rows), *empty.shape[1:]))
            for _, pair, rows in parts
        ]  # fmt: skip
        inputs[name] = torch.from_numpy(np.concatenate([empty, *filled]))
        has = [np.full(len(rows), name in pair.inputs) for _, pair, rows in parts]
        present[name] = torch.from_numpy(np.concatenate(has))
    whole = all(bool(has.all()) for has in present.values())
    groups = np.concatenate([np.full(len(rows), k, np.int64) for k, _, rows in parts])
    labels = torch.from_numpy(np.searchsorted(names, given).astype(np.int64))
    return Samples(inputs, labels, torch.from_numpy(groups), None if whole else present)


def _digest(source: Source) -> str:
    """Return what tells a source from others: it goes by its name in run folders."""
    about = (source.modalities, source.num_classes, source.class_names, source.group_names)
    found = hashlib.sha256(repr((about, source.scales)).encode())
    for name, x in all_tensors(source).items():
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.numpy().tobytes())
    return found.hexdigest()[:12]


def _dataset(source: Source) -> Dataset:
    def load(options: LoadOptions) -> Source:
        return source

    return Dataset(
        name=f"{source.name}-{_digest(source)}",
        modalities=tuple(source.modalities),
        needs_path=False,
        natural_ids=source.train.groups is not None,
        load=load,
        description="arrays in memory",
        uses=(),
    )
