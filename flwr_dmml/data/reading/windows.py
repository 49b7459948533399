"""Windows of recordings: resampled by their timestamps, within one activity, devices paired."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..options import SeriesOptions
from ..samples import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ON_THE_GRID = 1e-6  # of a step: rounding of a stretch's length


@dataclass(frozen=True, eq=False)
class Recording:
    """Recording of one device.

    Parameters
    ----------
    times : numpy.ndarray
        ``[rows]`` in seconds, never falling. Devices recorded together share a clock.
    values : numpy.ndarray
        ``[rows, channels]``.
    labels : numpy.ndarray
        ``[rows]``, the activity of each row.
    """

    times: Floats
    values: Floats
    labels: Ints


@dataclass(frozen=True)
class Windowing:
    """Length, step and rate of the windows that recordings are cut into.

    Parameters
    ----------
    steps, hop : int
        Length of a window, and from the start of one to the next, in samples; at least 2 and 1.
    rate_hz : float
        Rate of the samples in a window.
    max_gap_s : float
        A window is dropped if one of its samples lies between two rows that are further apart.
    """

    steps: int
    hop: int
    rate_hz: float
    max_gap_s: float

    @classmethod
    def of(cls, options: SeriesOptions, max_gap_s: float, usual_s: float) -> "Windowing":
        """Return what the options say, rounded to whole samples; ``usual_s`` long by default.

        Raises
        ------
        DataError
            If a window has less than two samples.
        """
        window_s = options.window_s or usual_s
        steps = round(window_s * options.rate_hz)
        if steps < 2:
            raise DataError(
                f"series.window-s = {window_s:g} at series.rate-hz = {options.rate_hz:g} "
                f"is {steps} samples; allowed: at least 2"
            )
        return cls(steps, max(1, round(steps * (1 - options.overlap))), options.rate_hz, max_gap_s)

    @property
    def length_s(self) -> float:
        """Length of a window, s."""
        return self.steps / self.rate_hz


@dataclass(frozen=True)
class Stretch:
    """A time in which all devices agree on the activity: bounds in seconds, rows of each device."""

    label: int
    start: float
    end: float
    rows: tuple[slice, ...]


def runs(labels: Ints) -> list[slice]:
    """Return the longest runs of rows with the same label, in order."""
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    bounds = [0, *changes.tolist(), len(labels)] if len(labels) else []
    return [slice(first, last) for first, last in pairwise(bounds)]


def stretches(recordings: Sequence[Recording]) -> list[Stretch]:
    """Return the times that one run of every recording covers, all of the same label."""
    found = [Stretch(-1, -np.inf, np.inf, ())]
    for recording in recordings:
        own = [
            (int(recording.labels[run.start]), *recording.times[[run.start, run.stop - 1]], run)
            for run in runs(recording.labels)
        ]
        found = [
            Stretch(label, max(s.start, start), min(s.end, end), (*s.rows, run))
            for s in found
            for label, start, end, run in own
            if (label == s.label or not s.rows) and max(s.start, start) <= min(s.end, end)
        ]
    return found


def resample(times: Floats, values: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Interpolate linearly between rows; rows of the same time count as one, their mean.

    Parameters
    ----------
    times, values : numpy.ndarray
        ``[rows]`` never falling, ``[rows, channels]``; at least one row.
    at : numpy.ndarray
        ``[samples]`` times. Before the first and after the last row, these rows are taken.

    Returns
    -------
    values, gaps : numpy.ndarray
        ``[samples, channels]``, and ``[samples]`` seconds between the two rows that a sample lies
        between (0 on a row).

    Notes
    -----
    There is no low-pass filter: what a device records above half of the new rate folds into it.
    """
    distinct, first, repeats = np.unique(times, return_index=True, return_counts=True)
    means = np.add.reduceat(values, first, axis=0) / repeats[:, None]
    sampled = np.stack([np.interp(at, distinct, channel) for channel in means.T], axis=1)
    after = np.searchsorted(distinct, at)  # distinct[after - 1] < at <= distinct[after]
    inside = (after > 0) & (after < len(distinct))
    inside[inside] = distinct[after[inside]] != at[inside]
    gaps = np.zeros(len(at))
    gaps[inside] = np.diff(distinct)[after[inside] - 1]
    return sampled, gaps


def cut(recordings: Sequence[Recording], windowing: Windowing) -> tuple[list[Floats], Ints, Ints]:
    """Cut recordings made together into windows.

    Every :func:`stretch <stretches>` has windows from its start on, as many as fit; values are
    interpolated from its own rows alone.

    Returns
    -------
    values, labels, starts : list of numpy.ndarray, numpy.ndarray, numpy.ndarray
        Of each recording ``[windows, channels, steps]``, and ``[windows]``. Step ``j`` of a window
        is ``j / rate`` after its first, on all devices; ``starts`` counts the steps of all
        stretches, one after another: windows whose steps differ have none in common.
    """
    parts: list[list[Floats]] = [
        [np.empty((0, recording.values.shape[1], windowing.steps))] for recording in recordings
    ]
    labels: list[int] = []
    starts: list[int] = []
    behind = 0
    for stretch in stretches(recordings):
        samples = int((stretch.end - stretch.start) * windowing.rate_hz + _ON_THE_GRID) + 1
        if samples < windowing.steps:
            continue
        begin, behind = behind, behind + samples
        at = stretch.start + np.arange(samples) / windowing.rate_hz
        tables, bridged = [], np.zeros(samples, dtype=bool)
        for recording, rows in zip(recordings, stretch.rows, strict=True):
            values, gaps = resample(recording.times[rows], recording.values[rows], at)
            tables.append(values)
            bridged |= gaps > windowing.max_gap_s
        kept = ~_sliding(bridged, windowing).any(axis=-1)
        for part, table in zip(parts, tables, strict=True):
            part.append(_sliding(table, windowing)[kept])
        labels += [stretch.label] * int(kept.sum())
        starts += (begin + windowing.hop * np.flatnonzero(kept)).tolist()
    whole = [np.concatenate(part) for part in parts]
    return whole, np.array(labels, dtype=np.int64), np.array(starts, dtype=np.int64)


def _sliding(values: NDArray, windowing: Windowing) -> NDArray:  # type: ignore[type-arg]
    """Return ``[windows, ..., steps]`` of ``[samples, ...]``."""
    sliding = np.lib.stride_tricks.sliding_window_view(values, windowing.steps, axis=0)
    return sliding[:: windowing.hop]


def spans(starts: Iterable[Ints], steps: int) -> Tensor:
    """Return where the windows of some recordings lie, for :class:`~flwr_dmml.data.Source`."""
    parts = [
        np.stack([np.full_like(first, k), first, first + steps], axis=1)
        for k, first in enumerate(starts)
    ]
    return torch.from_numpy(np.concatenate([np.empty((0, 3), np.int64), *parts]))


def check_classes(
    train: Tensor, test: Tensor, names: Sequence[str], windowing: Windowing, allowed: str
) -> None:
    """Go on if training and test subjects have a window of every class.

    Parameters
    ----------
    train, test : torch.Tensor
        ``[windows]``, indices of ``names``.
    allowed : str
        What to do, e.g. "shorter ones".

    Raises
    ------
    DataError
        If a class has none.
    """
    for labels, who in ((train, "training"), (test, "test")):
        there = set(labels.tolist())
        if none := [name for k, name in enumerate(names) if k not in there]:
            raise DataError(
                f"series.window-s = {windowing.length_s:g}: the {who} subjects have no window "
                f"of {', '.join(none)}, a window lies within one activity; allowed: {allowed}"
            )
