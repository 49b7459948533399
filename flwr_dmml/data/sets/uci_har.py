"""``uci-har``: six activities of 30 people with a phone at the waist, windows as published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..forms import RawNumbers
from ..options import LoadOptions
from ..reading.problems import Problems, refuse
from ..reading.rows import read_activities, read_rows, read_whole
from ..registry import Dataset, folder_of
from ..samples import Modality, Samples, Source

SIGNALS = {"acc": "total_acc", "gyro": "body_gyro"}
"""The modalities and the signals in the archive that they are read from."""
UNITS = {"acc": "g", "gyro": "rad/s"}
RATE_HZ = 50.0
STEPS = 128  # 2.56 s

_PARTS = ("train", "test")


def load(options: LoadOptions) -> Source:
    """Load the archive's windows of 2.56 s at 50 Hz, with its own division by subject.

    The layout is that of its README: ``activity_labels.txt`` (``id name`` a line); in ``train/``
    and ``test/`` (here ``train``) ``y_train.txt`` and ``subject_train.txt`` (a number a window) and
    ``Inertial Signals/<signal>_<x, y or z>_train.txt`` (128 numbers a window). The folder is
    ``uci-har`` under ``options.path``, or ``options.path`` itself. No option has an influence.

    Accelerations are the total ones, gravity included, in g, and angular velocities in rad/s, both
    low-pass filtered by the authors at 20 Hz; ``body_acc`` is the first less its own slow part and
    is not read, nor are the 561 features. Groups are indices of ``group_names``, the subjects.

    Returns
    -------
    Source
        ``acc`` and ``gyro`` ``[3, 128]``, x, y and z; of the archive 7,352 training and 2,947 test
        samples, of 21 and 9 subjects.

    Raises
    ------
    DataError
        If files are missing or hold something else; all are named, with the line and why.

    References
    ----------
    D. Anguita, A. Ghio, L. Oneto, X. Parra and J. L. Reyes-Ortiz, "A Public Domain Dataset for
    Human Activity Recognition Using Smartphones", ESANN 2013.
    """
    root = folder_of(options, "uci-har")
    problems = Problems(
        f"data-path: '{root}' cannot be used; expected the archive 'Human Activity Recognition "
        "Using Smartphones' of the UCI Machine Learning Repository (doi 10.24432/C54S4K), unpacked"
    )
    activities: dict[int, str] = {}
    with problems.at("activity_labels.txt"):
        activities = read_activities(root / "activity_labels.txt")
    tables = {part: _read(root, part, activities, problems) for part in _PARTS}
    problems.check()
    ids = sorted(activities)
    subjects = np.unique(np.concatenate([tables[part]["subject"] for part in _PARTS]))
    train, test = (_samples(tables[part], ids, subjects) for part in _PARTS)
    return Source(
        name="uci-har",
        modalities={
            name: Modality("series", (3, STEPS), RawNumbers(unit=UNITS[name], rate_hz=RATE_HZ))
            for name in SIGNALS
        },
        num_classes=len(ids),
        train=train,
        test=test,
        class_names=tuple(activities[i] for i in ids),
        group_names=tuple(str(subject) for subject in subjects.tolist()),
        windows=_places(tables["train"]["subject"]),
    )


def _part_files(root: Path, part: str) -> dict[str, tuple[Path, int]]:
    """Return the files of one part by what is in them, with their numbers of columns."""
    files = {
        "label": (root / part / f"y_{part}.txt", 1),
        "subject": (root / part / f"subject_{part}.txt", 1),
    }
    for modality, signal in SIGNALS.items():
        for axis in "xyz":
            name = f"{signal}_{axis}_{part}.txt"
            files[f"{modality} {axis}"] = (root / part / "Inertial Signals" / name, STEPS)
    return files


def _read(
    root: Path, part: str, activities: dict[int, str], problems: Problems
) -> dict[str, NDArray[np.generic]]:
    """Return what the files of one part hold, as far as they can be read, and note why not."""
    found: dict[str, NDArray[np.generic]] = {}
    for what, (path, columns) in _part_files(root, part).items():
        with problems.at(path.relative_to(root).as_posix()):
            if columns == STEPS:
                found[what] = read_rows(path, columns).astype(np.float32)
                continue
            ids = found[what] = read_whole(path, columns)[:, 0]
            if what == "label" and activities:
                refuse(
                    [
                        f"line {row + 1}: activity {ids[row]} is not in activity_labels.txt"
                        for row in np.flatnonzero(~np.isin(ids, [*activities])).tolist()
                    ]
                )
    counts = {what: len(rows) for what, rows in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count:,} of {what}" for what, count in counts.items())
        problems.add(f"{part}/", f"its files differ in the number of rows: {told}")
    return found


def _samples(
    tables: dict[str, NDArray[np.generic]], ids: Sequence[int], subjects: NDArray[np.generic]
) -> Samples:
    return Samples(
        inputs={
            modality: torch.from_numpy(
                np.stack([tables[f"{modality} {axis}"] for axis in "xyz"], axis=1)
            )
            for modality in SIGNALS
        },
        labels=torch.from_numpy(np.searchsorted(ids, tables["label"])),
        groups=torch.from_numpy(np.searchsorted(subjects, tables["subject"])),
    )


def _places(subjects: NDArray[np.generic]) -> torch.Tensor:
    """Return where the windows lie: of each subject in the order of time, half in the next one."""
    first = np.arange(len(subjects)) * (STEPS // 2)
    return torch.from_numpy(np.stack([subjects.astype(np.int64), first, first + STEPS], axis=1))


def _files(options: LoadOptions) -> list[Path]:
    root = folder_of(options, "uci-har")
    parts = [path for part in _PARTS for path, _ in _part_files(root, part).values()]
    return [root / "activity_labels.txt", *parts]


UCI_HAR = Dataset(
    name="uci-har",
    modalities=tuple(SIGNALS),
    needs_path=True,
    natural_ids=True,
    load=load,
    description="six activities by a phone's accelerometer and gyroscope, 30 subjects (UCI HAR)",
    files=_files,
    uses=(),
)
