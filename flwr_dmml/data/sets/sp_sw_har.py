"""``sp-sw-har``: five activities in the inertial sensors of a phone and a watch, 23 subjects."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import torch

from ..forms import RawNumbers
from ..options import LoadOptions
from ..reading.problems import Problems, refuse
from ..reading.windows import Floats, Ints, Recording, Windowing, check_classes, cut, spans
from ..registry import Dataset
from ..samples import DataError, Modality, Samples, Source

FOLDER = "sp-sw-har"
MODALITIES = ("phone-acc", "phone-gyro", "watch-acc", "watch-gyro")
ACTIVITIES = ("SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN")
TEST_SUBJECTS = ("s02", "s04", "s08", "s09", "s17")
"""Subjects 3, 8, 13, 18 and 23 of all, sorted by gender, then age: 2 women, 3 men, 28 to 63."""

GRAVITY = 9.81  # m/s^2, the unit of acceleration
HALF_TURN = math.pi  # rad/s, the unit of rotation
UNITS = ("9.81 m/s^2", "pi rad/s")
"""Of an accelerometer and a gyroscope."""
MAX_GAP_S = 0.1
WINDOW_S = 0.5  # as its authors use; most activities last about a second

_INDEX = "executions_info.csv"
_HEADER = "x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label"
_EXECUTION = re.compile(r"(?P<subject>s\d+)_\d+")
_DEVICES = ("sp", "sw")  # phone and watch, in file names

Windows = tuple[list[Floats], Ints, Ints]
"""Of phone and watch ``[windows, 6, steps]``; the activity of each window, and its first step."""


def load(options: LoadOptions) -> Source:
    """Load the folder ``sp-sw-har`` under ``options.path`` and cut it into windows.

    Phone and watch of an execution are cut at the same times, which both must cover: the windows
    lie within one activity on both. They are linearly interpolated at the times of the common rate
    (rows of the same time count as one, their mean); where that would bridge more than 0.1 s
    between two rows, the window is dropped. Acceleration, gravity included, is in 9.81 m/s^2 and
    rotation in pi rad/s: constants, nothing is learnt from the data. Groups are indices of
    ``group_names``, the training subjects first.

    Returns
    -------
    Source
        Four modalities ``[3, steps]``, x, y and z; no sample lacks any. The windows of
        :data:`TEST_SUBJECTS` are the test samples.

    Raises
    ------
    DataError
        If files are missing or have lines that cannot be; all are named, with the line and why. If
        windows are so long that an activity has none.

    References
    ----------
    M. Matey-Sanz, S. Casteleyn and C. Granell, "Dataset of inertial measurements of smartphones and
    smartwatches for human activity recognition", Data in Brief 51, 2023, 109809 (CC BY 4.0).
    Windows and division: this project.
    """
    windowing = Windowing.of(options.series, MAX_GAP_S, WINDOW_S)
    root = Path(options.path) / FOLDER
    problems = Problems(f"data-path: '{root}' cannot be used")
    found: dict[str, list[Windows]] = {}
    for execution in _executions(root, problems):
        subject = execution.partition("_")[0]
        pair = _read_pair(root / subject, execution, problems)
        if pair is not None:
            found.setdefault(subject, []).append(cut(pair, windowing))
    problems.check()
    order = sorted(found, key=lambda subject: (subject in TEST_SUBJECTS, subject))
    parts = [
        [
            (order.index(subject), windows)
            for subject in order
            for windows in found[subject]
            if (subject in TEST_SUBJECTS) == is_test
        ]
        for is_test in (False, True)
    ]
    train, test = (_samples(part, windowing.steps) for part in parts)
    check_classes(
        train.labels,
        test.labels,
        ACTIVITIES,
        windowing,
        "shorter ones (most activities last about 1 s, 0.5 s is usual for these data)",
    )
    return Source(
        name="sp-sw-har",
        modalities={
            name: Modality(
                "series", (3, windowing.steps), RawNumbers(unit=unit, rate_hz=windowing.rate_hz)
            )
            for name, unit in zip(MODALITIES, UNITS * 2, strict=True)
        },
        num_classes=len(ACTIVITIES),
        train=train,
        test=test,
        class_names=ACTIVITIES,
        group_names=tuple(order),
        windows=spans((starts for _, (*_, starts) in parts[0]), windowing.steps),
    )


def read_recording(path: Path) -> Recording:
    """Read what one device recorded in one execution.

    Returns
    -------
    Recording
        Times in seconds since 1970; values ``[rows, 6]``: acceleration in 9.81 m/s^2, rotation in
        pi rad/s; labels are indices of :data:`ACTIVITIES`.

    Raises
    ------
    DataError
        If it is missing or has lines that cannot be; the first three are named, with the reason.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError("it is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read: {error}") from error
    if len(lines) < 2 or lines[0] != _HEADER:
        begin = f"'{lines[0]}' and {len(lines) - 1} rows" if lines else "nothing"
        raise DataError(f"it has {begin}, expected '{_HEADER}' and rows")
    rows: list[list[float]] = []
    labels: list[int] = []
    wrong: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            row, label = _parse(line, earliest=rows[-1][6] if rows else -math.inf)
        except DataError as error:
            wrong.append(f"line {number}: {error}")
        else:
            rows.append(row)
            labels.append(label)
    refuse(wrong)
    table = np.array(rows)
    return Recording(
        times=table[:, 6] / 1000,
        values=table[:, :6] / ([GRAVITY] * 3 + [HALF_TURN] * 3),
        labels=np.array(labels),
    )


def _parse(line: str, earliest: float) -> tuple[list[float], int]:
    """Return the seven numbers and the label of a row."""
    *cells, activity = line.split(",")
    if len(cells) != 7:
        raise DataError(f"{len(cells) + 1} columns, expected 8")
    try:
        row = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(str(error)) from error
    if not all(map(math.isfinite, row)):
        raise DataError("a number is not finite")
    if row[6] < earliest:
        raise DataError(f"timestamp {earliest - row[6]:g} ms before that of the row above")
    if activity not in ACTIVITIES:
        raise DataError(f"unknown activity '{activity}', known are {', '.join(ACTIVITIES)}")
    return row, ACTIVITIES.index(activity)


def _executions(root: Path, problems: Problems) -> list[str]:
    """Return the executions that the index lists, e.g. ``s01_01``."""
    try:
        with (root / _INDEX).open(encoding="utf-8-sig", newline="") as file:
            listed = [row.get("execution_id") or "" for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        listed = []
        problems.add(
            _INDEX,
            f"{error}. data-path is the folder that holds {FOLDER}/, which is the folder DATA of "
            "the GitHub repository GeoTecINIT/sp-sw-har-dataset (doi 10.5281/zenodo.8398688)",
        )
    for number, execution in enumerate(listed, start=2):
        if not _EXECUTION.fullmatch(execution):
            problems.add(_INDEX, f"line {number}: '{execution}' is not an id like s01_01")
        elif execution in listed[: number - 2]:
            problems.add(_INDEX, f"line {number}: {execution} is there twice")
    subjects = {e.partition("_")[0] for e in listed}
    if listed and (not subjects & {*TEST_SUBJECTS} or subjects <= {*TEST_SUBJECTS}):
        problems.add(_INDEX, f"no test subject ({', '.join(TEST_SUBJECTS)}), or none but these")
    return [e for e in dict.fromkeys(listed) if _EXECUTION.fullmatch(e)]


def _read_pair(folder: Path, execution: str, problems: Problems) -> list[Recording] | None:
    """Return phone and watch, with times from the start on; None, and why, where they cannot be."""
    pair = []
    for device in _DEVICES:
        with problems.at(f"{folder.name}/{execution}_{device}.csv"):
            pair.append(read_recording(folder / f"{execution}_{device}.csv"))
    if len(pair) < len(_DEVICES):
        return None
    start, end = max(r.times[0] for r in pair), min(r.times[-1] for r in pair)
    if start >= end:
        problems.add(
            f"{folder.name}/{execution}",
            f"phone and watch have no time in common: {start - end:.1f} s apart",
        )
        return None
    return [Recording(r.times - start, r.values, r.labels) for r in pair]


def _samples(parts: list[tuple[int, Windows]], steps: int) -> Samples:
    """Join the windows of subjects."""
    devices = [
        np.concatenate([np.empty((0, 6, steps)), *(values[k] for _, (values, *_) in parts)])
        for k in range(len(_DEVICES))
    ]
    sensors = [half for device in devices for half in (device[:, :3], device[:, 3:])]
    return Samples(
        inputs={
            name: torch.from_numpy(sensor.astype(np.float32))
            for name, sensor in zip(MODALITIES, sensors, strict=True)
        },
        labels=torch.tensor([label for _, (_, labels, _) in parts for label in labels.tolist()]),
        groups=torch.tensor([group for group, (_, labels, _) in parts for _ in labels]),
    )


def _files(options: LoadOptions) -> list[Path]:
    root = Path(options.path) / FOLDER
    return [root / _INDEX, *sorted(root.glob("s*/*.csv"))]


SP_SW_HAR = Dataset(
    name="sp-sw-har",
    modalities=MODALITIES,
    needs_path=True,
    natural_ids=True,
    load=load,
    description="five activities by phone and watch, accelerometer and gyroscope, 23 subjects",
    files=_files,
    uses=("series",),
)
