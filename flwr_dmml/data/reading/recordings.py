"""Long recordings of a folder, cut into windows of one activity each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..options import SeriesOptions
from ..samples import DataError, Modality, Samples
from .cells import is_missing, read_numbers
from .decoding import file_in
from .manifest import Column, Manifest, Recordings
from .problems import Problems
from .tables import by_name, distinct, read_npy
from .windows import Floats, Ints, Recording, Windowing, cut

_IN_A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a row of a manifest.

    Parameters
    ----------
    row : int
        Of the manifest.
    values : mapping of str to numpy.ndarray
        Of each modality that the row has, ``[windows, channels, steps]``.
    labels : list of str
        Of each window.
    starts : numpy.ndarray
        Of each window, see :func:`~.windows.cut`.
    names : mapping of str to tuple of str
        Of the channels of each modality, in the order of the first file that can name them; empty
        where it has none.
    """

    row: int
    values: Mapping[str, Floats]
    labels: list[str]
    starts: Ints
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Track:
    """A file: its times in s, ``[rows]``, values ``[rows, channels]``, and labels of the rows.

    The names are those of the channels; None where they cannot have any.
    """

    times: Floats
    values: Floats
    labels: Sequence[str]
    names: tuple[str, ...] | None


def read_recordings(
    root: Path,
    manifest: Manifest,
    rows: Sequence[int],
    about: Recordings,
    series: SeriesOptions,
    problems: Problems,
) -> list[Windows]:
    """Read the recordings of some rows, and cut them into windows.

    The modalities of a row are recordings of one time: a window is the same span of all of them,
    within one activity. Values are interpolated at ``series.rate-hz``; a window that would bridge
    more than ``max-gap-s`` without a row is dropped, and so is what has no label.

    Raises
    ------
    DataError
        If the options give no windows; what is wrong with files goes to ``problems``.
    """
    if not series.window_s:
        raise DataError("series.window-s = 0: [recordings] need a length of their windows, in s")
    windowing = Windowing.of(series, about.max_gap_s, series.window_s)
    found = []
    first: dict[str, tuple[tuple[str, ...], str]] = {}  # names of channels, and of their file
    for row in rows:
        tracks: dict[str, _Track] = {}
        for name, column in manifest.columns.items():
            cell = column.cells[row]
            if cell is None:
                continue
            where = f"{manifest.where[row]}, {name} '{cell}'"
            with problems.at(where):
                label = manifest.labels[row] if manifest.labels else ""
                track = _read(root, cell, column, about, label)
                if track.names is not None:
                    wanted, other = first.setdefault(name, (track.names, where))
                    values = by_name(track.values, track.names, wanted, other)
                    track = replace(track, values=values, names=wanted)
                tracks[name] = track
        if not tracks:
            problems.add(manifest.where[row], "it has no modality that can be read")
            continue
        found.append(_cut(row, tracks, about, windowing))
    return found


def _read(root: Path, cell: object, column: Column, about: Recordings, label: str) -> _Track:
    if not isinstance(cell, str):
        raise DataError("there are numbers, or a file's content, where a path is expected")
    path = file_in(root, cell)
    if path.suffix.lower() == ".npy":
        if about.label or about.time or column.channels:
            raise DataError("a .npy file has no names of columns; write it as CSV")
        values = np.asarray(read_npy(path), np.float64)
        if values.ndim != 2 or not values.size:
            raise DataError(
                f"it holds an array of shape {values.shape}, expected [steps, channels]"
            )
        times, labels = np.arange(len(values)) / _rate(about), [label] * len(values)
        names: tuple[str, ...] | None = None
    else:
        columns = (*([about.time] if about.time else []), *column.channels)
        chosen = columns if column.channels else ()
        numbers = read_numbers(path, chosen, text=about.label, gaps=True)
        values, names = numbers.table, numbers.names
        if values.ndim != 2 or not values.size:
            raise DataError("it has no rows")
        labels = list(numbers.texts) if about.label else [label] * len(values)
        if about.time:
            if about.time not in names:
                raise DataError(f"there is no column '{about.time}'; there are {', '.join(names)}")
            place = names.index(about.time)
            times = _seconds(values[:, place], about)
            values = np.delete(values, place, axis=1)
            names = (*names[:place], *names[place + 1 :])
            _check_times(times, numbers.lines)
        else:
            times = np.arange(len(values)) / _rate(about)
        names = distinct(names)
    whole = np.asarray(np.isfinite(values).all(axis=1))
    if not whole.any():
        raise DataError("every row lacks a value")
    kept = [x for x, there in zip(labels, whole.tolist(), strict=True) if there]
    return _Track(times[whole], values[whole], kept, names)


def recorded_times(path: Path, about: Recordings) -> Floats:
    """Return the times of a file's rows, ``[rows]`` in s.

    Raises
    ------
    DataError
        If it has no such column, or something else in it.
    """
    return _seconds(read_numbers(path, (about.time,)).table[:, 0], about)


def _seconds(times: Floats, about: Recordings) -> Floats:
    return times / _IN_A_SECOND[about.unit]


def _rate(about: Recordings) -> float:
    if about.rate_hz is None:
        raise DataError("[recordings] say neither time nor rate-hz of the files")
    return about.rate_hz


def _check_times(times: Floats, lines: Sequence[int]) -> None:
    if not np.isfinite(times).all():
        line = lines[int(np.argmin(np.isfinite(times)))]
        raise DataError(f"line {line}: its time is missing")
    if len(back := np.flatnonzero(np.diff(times) < 0)):
        by = times[back[0]] - times[back[0] + 1]
        raise DataError(
            f"line {lines[int(back[0]) + 1]}: its time is {by:g} s before the line above"
        )


def _cut(
    row: int, tracks: Mapping[str, _Track], about: Recordings, windowing: Windowing
) -> Windows:
    labels = sorted({label for track in tracks.values() for label in track.labels})
    left_out = {label for label in labels if is_missing(label) or label in about.leave_out}
    index = {label: -1 if label in left_out else k for k, label in enumerate(labels)}
    recordings = {
        name: Recording(track.times, track.values, np.array([index[x] for x in track.labels]))
        for name, track in tracks.items()
    }
    values, of, starts = cut_together(recordings, windowing)
    kept = of >= 0
    return Windows(
        row,
        {name: v[kept] for name, v in values.items()},
        [labels[k] for k in of[kept].tolist()],
        starts[kept],
        {name: track.names for name, track in tracks.items() if track.names is not None},
    )


def cut_together(
    recordings: Mapping[str, Recording], windowing: Windowing
) -> tuple[dict[str, Floats], Ints, Ints]:
    """Cut recordings of one clock into windows, by name (:func:`~.windows.cut`)."""
    start = min(recording.times[0] for recording in recordings.values())
    moved = [Recording(r.times - start, r.values, r.labels) for r in recordings.values()]
    values, labels, starts = cut(moved, windowing)
    return dict(zip(recordings, values, strict=True)), labels, starts


def joined(
    found: Sequence[Windows],
    modalities: Mapping[str, Modality],
    classes: Sequence[str],
    groups: Sequence[str] = (),
    nodes: Sequence[str] = (),
) -> Samples:
    """Join the windows of some rows; what a row has no recording of is missing.

    Parameters
    ----------
    found : sequence of Windows
        Of the rows, in the order of the samples.
    modalities : mapping of str to Modality
        All there are.
    classes, groups : sequence of str
        Which labels and groups are counted by.
    nodes : sequence of str
        Group of each row of the manifest; without them, or one that is missing, there are none.
    """
    counts = [len(windows.labels) for windows in found]
    inputs, present = {}, {}
    for name, form in modalities.items():
        inputs[name] = torch.zeros(sum(counts), *form.shape)
        present[name] = torch.zeros(sum(counts), dtype=torch.bool)
        start = 0
        for windows, count in zip(found, counts, strict=True):
            if name in windows.values:
                here = slice(start, start + count)
                inputs[name][here] = torch.from_numpy(windows.values[name])
                present[name][here] = True
            start += count
    of = [nodes[windows.row] for windows in found for _ in windows.labels] if nodes else []
    return Samples(
        inputs=inputs,
        labels=indices([label for windows in found for label in windows.labels], classes),
        groups=indices(of, groups) if of and not any(map(is_missing, of)) else None,
        present=None if all(bool(has.all()) for has in present.values()) else present,
    )


def indices(names: Sequence[str], among: Sequence[str]) -> torch.Tensor:
    """Return the places of names among others, ``[names]`` int64."""
    places = {name: place for place, name in enumerate(among)}
    return torch.tensor([places[name] for name in names], dtype=torch.int64)
