"""``umafall``: daily activities and falls, by sensors at five places of the body, 19 subjects."""

import lzma
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...base.options import Group
from ..forms import RawNumbers
from ..options import LoadOptions
from ..reading.problems import Problems, reason, refuse
from ..reading.recordings import Windows, cut_together, joined
from ..reading.windows import Recording, Windowing, check_classes, spans
from ..registry import Dataset, folder_of
from ..samples import DataError, Doubt, Modality, Source

ACTIVITIES = {
    "Aplausing": "clapping",
    "Bending": "bending",
    "GoDownstairs": "going downstairs",
    "GoUpstairs": "going upstairs",
    "HandsUp": "raising hands",
    "Hopping": "hopping",
    "Jogging": "jogging",
    "LyingDown_OnABed": "lying down",
    "MakingACall": "phoning",
    "OpeningDoor": "opening a door",
    "Sitting_GettingUpOnAChair": "sitting down and getting up",
    "Walking": "walking",
}
"""Names in the files, and ours."""
FALLS = ("backwardFall", "forwardFall", "lateralFall")
TEST_SUBJECTS = ("01", "06", "08", "09")
"""Subjects 3, 8, 13 and 18 of all, sorted by gender, then age: 2 women, 2 men, 22 to 67."""
SENSORS = {"acc": (1.0, "g"), "gyro": (180.0, "180 deg/s"), "mag": (50.0, "50 uT")}
"""What the numbers of each kind are divided by, and their unit then."""
PLACES = ("pocket", "chest", "waist", "wrist", "ankle")
MODALITIES = {
    (place, kind): f"{name}-{sensor}"
    for place, name in enumerate(PLACES)
    for kind, sensor in enumerate(SENSORS)
    if place == 0 >= kind or place > 0
}
"""By the numbers of place and kind in the files: the phone in the pocket has one kind only."""
MAX_GAP_S = 0.5
WINDOW_S = {"activities": 5.0, "falls": 12.0}

_ARCHIVE = "umafall.tar.xz"
_NAMES = "UMAFall_*.csv"
_TRIAL = re.compile(
    r"UMAFall_Subject_(?P<subject>\d\d)_(?P<kind>ADL|Fall)_(?P<movement>\w+?)_\d+"
    r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.csv"
)
_COLUMNS = 7  # ms; number of the sample; x; y; z; kind; place
_THOUSANDS = re.compile(r"-?\d+\.\d+\.[\d.]+")
_LARGEST = float(np.finfo(np.float32).max)
_EXPECTED = (
    "expected 'UMAFall_Dataset' of the Universidad de Málaga (doi 10.6084/m9.figshare.4214283), "
    f"unpacked and named umafall, or {_ARCHIVE}"
)


class UmaFallOptions(Group):
    """Options of ``umafall``."""

    task: Literal["activities", "falls"] = Field(
        "activities", description="classes: twelve daily activities, or a fall and none"
    )


@dataclass(frozen=True)
class _Trial:
    """A file: its name, whose it is, and the class of what is done."""

    name: str
    subject: str
    label: str


class MangledError(DataError):
    """Decimal points of a file were taken for separators of thousands: its numbers are lost."""


def load(options: LoadOptions) -> Source:
    """Load the trials under ``options.path`` and cut them into windows.

    They are read from the folder ``umafall``, ``options.path`` itself, or ``umafall.tar.xz``, of
    which nothing is unpacked. All streams of a trial are cut at the same times, which all must
    cover; they are linearly interpolated at the times of the common rate (rows of the same time
    count as one, their mean). A window that would bridge more than 0.5 s between two rows is
    dropped. A window lacks the modalities that its trial lacks: those without rows, and those of
    one value alone. Acceleration, gravity included, is in g, rotation in 180 deg/s, the magnetic
    field in 50 uT: constants, nothing is learnt from the data. Groups are indices of
    ``group_names``, the training subjects first.

    Returns
    -------
    Source
        Thirteen modalities ``[3, steps]``, x, y and z. The windows of :data:`TEST_SUBJECTS` are the
        test samples. Trials whose numbers lost their decimal points are left out, and named in
        ``doubts``.

    Raises
    ------
    DataError
        If files are missing or have lines that cannot be; all are named, with the line and why. If
        windows are so long that a class has none.

    References
    ----------
    E. Casilari, J. A. Santoyo-Ramón and J. M. Cano-García, "UMAFall: A Multisensor Dataset for the
    Research on Automatic Fall Detection", Procedia Computer Science 110, 2017, 32-39. Windows and
    division: this project.
    """
    task = options.own.task if isinstance(options.own, UmaFallOptions) else "activities"
    windowing = Windowing.of(options.series, MAX_GAP_S, WINDOW_S[task])
    root = folder_of(options, "umafall")
    problems = Problems(f"data-path: '{root}' cannot be used; {_EXPECTED}")
    found, trials, mangled = list[Windows](), list[_Trial](), dict[str, str]()
    with problems.at(""):
        for name, content in _files_in(root):
            trial = _trial(name, task, problems)
            if trial is None:
                continue
            try:
                streams = read_trial(content)
            except MangledError as error:
                mangled[name] = str(error)
            except DataError as error:
                problems.add(name, error)
            else:
                values, labels, starts = cut_together(streams, windowing)
                found.append(Windows(len(trials), values, [trial.label] * len(labels), starts))
                trials.append(trial)
    problems.check()
    found.sort(key=lambda windows: trials[windows.row].name)  # the same from folder and archive
    classes = sorted(ACTIVITIES.values()) if task == "activities" else ["fall", "no fall"]
    nodes = [trial.subject for trial in trials]
    groups = sorted({*nodes}, key=lambda subject: (subject in TEST_SUBJECTS, subject))
    modalities = {
        name: Modality(
            "series",
            (3, windowing.steps),
            RawNumbers(unit=[*SENSORS.values()][kind][1], rate_hz=windowing.rate_hz),
        )
        for (_, kind), name in MODALITIES.items()
    }
    parts = [
        [windows for windows in found if (nodes[windows.row] in TEST_SUBJECTS) == held_out]
        for held_out in (False, True)
    ]
    train, test = (joined(part, modalities, classes, groups, nodes) for part in parts)
    check_classes(
        train.labels,
        test.labels,
        classes,
        windowing,
        "shorter ones (a trial lasts 15 s), and trials of all subjects",
    )
    return Source(
        name="umafall",
        modalities=modalities,
        num_classes=len(classes),
        train=train,
        test=test,
        class_names=tuple(classes),
        group_names=tuple(groups),
        doubts=_told(mangled),
        windows=spans((windows.starts for windows in parts[0]), windowing.steps),
    )


def _trial(name: str, task: str, problems: Problems) -> _Trial | None:
    """Return what a file's name says; None where it is not of the task, or not known."""
    match = _TRIAL.fullmatch(name)
    known = (*ACTIVITIES, *FALLS)
    if match is None or match["movement"] not in known:
        problems.add(name, f"it is not named like a trial of {', '.join(known)}")
        return None
    is_fall = match["kind"] == "Fall"
    if task == "falls":
        return _Trial(name, match["subject"], "fall" if is_fall else "no fall")
    return None if is_fall else _Trial(name, match["subject"], ACTIVITIES[match["movement"]])


def _told(mangled: Mapping[str, str]) -> tuple[Doubt, ...]:
    """Say which trials are left out, by subject."""
    of = defaultdict[str, list[str]](list)
    for name in mangled:
        of[name.split("_")[2]].append(name)
    return tuple(
        Doubt(
            "file",
            f"{len(names)} trials of subject {subject} are left out: their decimal points were "
            f"taken for separators of thousands, as in {names[0]}, {mangled[names[0]]}",
        )
        for subject, names in of.items()
    )


def read_trial(content: bytes) -> dict[str, Recording]:
    """Read what the sensors recorded in one trial.

    Lines are ``ms;number;x;y;z;kind;place``; those that begin with ``%``, and blank ones, say
    nothing.

    Returns
    -------
    dict of str to Recording
        The modalities that there are: times in s from the start, values ``[rows, 3]`` divided by
        the unit (:data:`SENSORS`), labels all 0. Those whose values never change are left out.

    Raises
    ------
    MangledError
        If numbers have several decimal points; the first is named.
    DataError
        If a line is something else, or nothing is left; the first three are named, with the reason.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"it is not in UTF-8 ({error})") from error
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip(" ;") and not line.startswith("%")
    ]
    table = _numbers(lines)
    found = {}
    for (place, kind), name in MODALITIES.items():
        rows = table[(table[:, 5] == kind) & (table[:, 6] == place)]
        if not len(rows) or (rows[:, 2:5] == rows[0, 2:5]).all():
            continue
        values = rows[:, 2:5] / [*SENSORS.values()][kind][0]
        found[name] = Recording(rows[:, 0] / 1000, values, np.zeros(len(rows), np.int64))
    if not found:
        raise DataError("there are no rows of a sensor that moved")
    return found


def _numbers(lines: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
    """Return the rows of a trial, ``[rows, 7]``."""
    if not lines:
        raise DataError("there is no line of numbers in it")
    try:
        table = np.loadtxt([line for _, line in lines], delimiter=";", ndmin=2, comments=None)
    except ValueError:
        table = np.empty((0, 0))
    if table.shape[1] != _COLUMNS or not (np.abs(table) <= _LARGEST).all():
        for number, line in lines:
            if lost := [cell for cell in line.split(";") if _THOUSANDS.fullmatch(cell)]:
                raise MangledError(f"line {number}: '{lost[0]}'")
        wrong = [(number, _problem(line)) for number, line in lines]
        refuse([f"line {number}: {problem}" for number, problem in wrong if problem])
    known = np.array([[kind, place] for place, kind in MODALITIES])
    strange = ~(table[:, None, 5:] == known).all(axis=2).any(axis=1)
    streams = [table[:, 5] * len(PLACES) + table[:, 6] == code for code in range(15)]
    back = np.zeros(len(table), dtype=bool)
    for here in streams:
        back[np.flatnonzero(here)[1:]] = np.diff(table[here, 0]) < 0
    refuse(
        [
            f"line {lines[row][0]}: "
            + ("its kind or place is unknown" if strange[row] else "its time is before the last")
            for row in np.flatnonzero(strange | back).tolist()
        ]
    )
    return table


def _problem(line: str) -> str:
    """Say what is wrong with a line, if anything is."""
    cells = line.split(";")
    if len(cells) != _COLUMNS:
        return f"{len(cells)} columns, expected {_COLUMNS}"
    for cell in cells:
        try:
            if not abs(float(cell)) <= _LARGEST:
                return f"{cell} is not a finite number (float32)"
        except ValueError:
            return f"'{cell}' is not a number"
    return ""


def _files_in(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the trials in the folder, or in the archive there."""
    for path in _paths(root):
        try:
            if path.name == _ARCHIVE:
                yield from _unpacked(path)
            else:
                yield path.name, path.read_bytes()
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(f"{path.name}: it cannot be read: {reason(error)}") from error


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the trials in an archive; nothing is written to disk."""
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            name = PurePosixPath(member.name).name
            file = members.extractfile(member) if member.isfile() else None  # no links
            if file is not None and fnmatch(name, _NAMES):
                yield name, file.read()


def _paths(root: Path) -> list[Path]:
    """Return the trials in the folder, by name, or else the archive there."""
    return sorted(root.glob(_NAMES)) or [root / _ARCHIVE]


def _files(options: LoadOptions) -> list[Path]:
    return _paths(folder_of(options, "umafall"))


UMAFALL = Dataset(
    name="umafall",
    modalities=tuple(MODALITIES.values()),
    needs_path=True,
    natural_ids=True,
    load=load,
    description="twelve activities, or falls, by sensors at five places, 19 subjects (UMAFall)",
    files=_files,
    uses=("series",),
    options_type=UmaFallOptions,
)
