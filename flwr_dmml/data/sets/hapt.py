"""``hapt``: six activities and the six transitions between postures, by a phone at the waist."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..forms import RawNumbers
from ..options import LoadOptions
from ..reading.problems import Problems, refuse
from ..reading.rows import Ints, read_activities, read_rows, read_whole
from ..reading.windows import Recording, Windowing, cut, spans
from ..registry import Dataset, folder_of
from ..samples import DataError, Modality, Samples, Source

SENSORS = {"acc": "g", "gyro": "rad/s"}
RATE_HZ = 50.0  # of the recordings
_WINDOW_S = 2.56  # as in the authors' features

_MAX_GAP_S = 1.0  # nothing is bridged: rows are 0.02 s apart
_SUBJECTS = {False: "Train/subject_id_train.txt", True: "Test/subject_id_test.txt"}
_UNLABELLED = -1

Experiment = tuple[int, int]
"""Number of an experiment and of its user."""
Windows = tuple[NDArray[np.float64], Ints, Ints]
"""Values ``[windows, 6, steps]``, the index of the activity of each, and its first step."""


def load(options: LoadOptions) -> Source:
    """Load the raw recordings and cut them into windows, with the archive's subjects for testing.

    The layout is that of its README: ``activity_labels.txt`` (``id name`` a line);
    ``RawData/acc_expXX_userYY.txt`` and ``gyro_expXX_userYY.txt`` (x, y, z a line, at 50 Hz);
    ``RawData/labels.txt`` (experiment, user, activity, first and last sample a line, samples
    counted from 1, both included); ``Train/subject_id_train.txt`` and ``Test/subject_id_test.txt``,
    of which only the set of numbers is used. The folder is ``hapt`` under ``options.path``, or
    ``options.path`` itself.

    Every labelled stretch has windows of ``series.window_s`` from its start on, as many as fit;
    what is shorter has none, and none goes over a change of activity (where two labels overlap, the
    later line holds). At another rate than 50 Hz, samples are linearly interpolated. Accelerations
    are in g, gravity included, and angular velocities in rad/s, both unfiltered. Groups are indices
    of ``group_names``, the users.

    Returns
    -------
    Source
        ``acc`` and ``gyro`` ``[3, steps]``, x, y and z, of all the activities. Transitions last a
        few seconds, so each of the six has few windows, or none if these are long.

    Raises
    ------
    DataError
        If files are missing or hold something else; all are named, with the line and why. If
        windows are so long that there is none.

    References
    ----------
    J.-L. Reyes-Ortiz, L. Oneto, A. Samà, X. Parra and D. Anguita, "Transition-Aware Human Activity
    Recognition Using Smartphones", Neurocomputing 171, 2016. Windows: this project.
    """
    windowing = Windowing.of(options.series, _MAX_GAP_S, _WINDOW_S)
    root = folder_of(options, "hapt")
    problems = Problems(
        f"data-path: '{root}' cannot be used; expected the archive 'Smartphone-Based Recognition "
        "of Human Activities and Postural Transitions' of the UCI Machine Learning Repository "
        "(doi 10.24432/C54G7M), unpacked"
    )
    activities: dict[int, str] = {}
    with problems.at("activity_labels.txt"):
        activities = read_activities(root / "activity_labels.txt")
    is_test = _division(root, problems)
    labels = np.empty((0, 5), dtype=np.int64)
    with problems.at("RawData/labels.txt"):
        labels = read_whole(root / "RawData" / "labels.txt", 5)
    signals = {
        experiment: signal
        for experiment in sorted({(int(row[0]), int(row[1])) for row in labels})
        if (signal := _signal(root, experiment, problems)) is not None
    }
    lengths = {experiment: len(signal) for experiment, signal in signals.items()}
    with problems.at("RawData/labels.txt"):
        refuse(_wrong_labels(labels, activities, is_test, lengths))
    problems.check()
    ids = sorted(activities)
    found = {
        experiment: _windows(signal, labels, experiment, ids, windowing)
        for experiment, signal in signals.items()
    }
    users = sorted({user for _, user in found})
    parts = [
        {e: windows for e, windows in found.items() if is_test[e[1]] == part}
        for part in (False, True)
    ]
    train, test = (_samples(part, users, windowing.steps) for part in parts)
    if not len(train) or not len(test):
        raise DataError(
            f"series.window-s = {windowing.length_s:g}: no window of the "
            f"{'test' if len(train) else 'training'} subjects lies within one activity; allowed: "
            "shorter ones (most activities last over 10 s, transitions about 3 s)"
        )
    return Source(
        name="hapt",
        modalities={
            name: Modality(
                "series", (3, windowing.steps), RawNumbers(unit=unit, rate_hz=windowing.rate_hz)
            )
            for name, unit in SENSORS.items()
        },
        num_classes=len(ids),
        train=train,
        test=test,
        class_names=tuple(activities[i] for i in ids),
        group_names=tuple(map(str, users)),
        windows=spans((starts for *_, starts in parts[0].values()), windowing.steps),
    )


def _division(root: Path, problems: Problems) -> dict[int, bool]:
    """Return of each subject whether it is for testing; of none where a file cannot be used."""
    found: dict[int, bool] = {}
    before = len(problems)
    for is_test, name in _SUBJECTS.items():
        with problems.at(name):
            subjects = np.unique(read_whole(root / name, 1)).tolist()
            refuse([f"subject {s} is in {_SUBJECTS[False]} too" for s in subjects if s in found])
            found |= dict.fromkeys(subjects, is_test)
    return found if len(problems) == before else {}


def _path(root: Path, sensor: str, experiment: Experiment) -> Path:
    return root / "RawData" / f"{sensor}_exp{experiment[0]:02d}_user{experiment[1]:02d}.txt"


def _signal(root: Path, experiment: Experiment, problems: Problems) -> NDArray[np.float64] | None:
    """Return the samples ``[n, 6]`` of an experiment; None, and why, where they cannot be."""
    pair = []
    for sensor in SENSORS:
        path = _path(root, sensor, experiment)
        with problems.at(f"RawData/{path.name}"):
            pair.append(read_rows(path, 3))
    if len(pair) < len(SENSORS):
        return None
    if len(pair[0]) != len(pair[1]):
        names = " and ".join(_path(root, sensor, experiment).name for sensor in SENSORS)
        problems.add(
            f"RawData/{names}",
            f"they have {len(pair[0]):,} and {len(pair[1]):,} rows, expected as many",
        )
        return None
    return np.concatenate(pair, axis=1)


def _wrong_labels(
    labels: Ints,
    activities: Mapping[int, str],
    is_test: Mapping[int, bool],
    lengths: Mapping[Experiment, int],
) -> list[str]:
    """Say what is wrong with the lines of ``labels.txt``, as far as the other files are known."""
    wrong = []
    for number, (experiment, user, activity, first, last) in enumerate(labels.tolist(), start=1):
        length = lengths.get((experiment, user), last)
        if activities and activity not in activities:
            wrong.append(f"line {number}: activity {activity} is not in activity_labels.txt")
        if is_test and user not in is_test:
            wrong.append(f"line {number}: user {user} is not in {' or '.join(_SUBJECTS.values())}")
        if not 1 <= first <= last <= length:
            wrong.append(
                f"line {number}: samples {first} to {last}, expected from 1 to {length:,} in order"
            )
    return wrong


def _windows(
    signal: NDArray[np.float64],
    labels: Ints,
    experiment: Experiment,
    ids: list[int],
    windowing: Windowing,
) -> Windows:
    """Cut the signal ``[n, 6]`` of an experiment."""
    activity = np.full(len(signal), _UNLABELLED)
    for *of, label, first, last in labels.tolist():
        if tuple(of) == experiment:
            activity[first - 1 : last] = ids.index(label)
    times = np.arange(len(signal)) / RATE_HZ
    (values,), found, starts = cut([Recording(times, signal, activity)], windowing)
    labelled = found != _UNLABELLED
    return values[labelled], found[labelled], starts[labelled]


def _samples(found: Mapping[Experiment, Windows], users: list[int], steps: int) -> Samples:
    values = np.concatenate([np.empty((0, 6, steps)), *(values for values, *_ in found.values())])
    return Samples(
        inputs={
            "acc": torch.from_numpy(values[:, :3].astype(np.float32)),
            "gyro": torch.from_numpy(values[:, 3:].astype(np.float32)),
        },
        labels=torch.tensor([k for _, labels, _ in found.values() for k in labels.tolist()]),
        groups=torch.tensor(
            [users.index(user) for (_, user), (_, labels, _) in found.items() for _ in labels]
        ),
    )


def _files(options: LoadOptions) -> list[Path]:
    root = folder_of(options, "hapt")
    about = [root / "activity_labels.txt", *(root / name for name in _SUBJECTS.values())]
    return [*about, *sorted((root / "RawData").glob("*.txt"))]


HAPT = Dataset(
    name="hapt",
    modalities=tuple(SENSORS),
    needs_path=True,
    natural_ids=True,
    load=load,
    description="six activities and six postural transitions by a phone, 30 subjects (HAPT)",
    files=_files,
    uses=("series",),
)
