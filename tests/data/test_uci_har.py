"""The reader of UCI HAR on small folders in the layout of its archive."""

import math

import numpy as np
import pytest
import torch
from helpers import run_peers

from flwr_dmml.data import DataError, LoadOptions, PartitionOptions, load_partition, load_source
from flwr_dmml.data.sets.uci_har import SIGNALS

ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
SUBJECTS = {"train": (1, 3, 11), "test": (2, 10)}
EACH = 2  # windows of an activity and a subject


def value(subject: int, activity: int, column: int, axis: int, signal: str) -> float:
    """Return what all windows of an activity and a subject hold at a step."""
    gain = {"total_acc": 1.0, "body_gyro": -1.0, "body_acc": 100.0}[signal]
    return gain * (math.sin(0.1 * activity * column) + 0.1 * axis) + 0.01 * subject


def make(root, rows_of=EACH):
    """Make the archive's folder: numbers in its form, ' 1.0128170e+00', three signals."""
    names = "".join(f"{k} {name}\n" for k, name in enumerate(ACTIVITIES, start=1))
    write(root / "activity_labels.txt", names)
    for part, subjects in SUBJECTS.items():
        windows = [(s, a) for s in subjects for a in range(1, 7) for _ in range(rows_of)]
        write(root / part / f"subject_{part}.txt", "".join(f"{s}\n" for s, _ in windows))
        write(root / part / f"y_{part}.txt", "".join(f"{a}\n" for _, a in windows))
        for signal in ("total_acc", "body_gyro", "body_acc"):
            for k, axis in enumerate("xyz"):
                lines = [
                    "".join(f" {value(s, a, column, k, signal): .7e}" for column in range(128))
                    for s, a in windows
                ]
                file = root / part / "Inertial Signals" / f"{signal}_{axis}_{part}.txt"
                write(file, "\n".join(lines) + "\n")
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def edit(path, line, new):
    """Replace a line (from 1) of a file; None removes it."""
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if new is None else [new]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make(root / "uci-har")
    return root


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load_source("uci-har", LoadOptions(path=str(root), cache=False))
    return str(caught.value)


# What is read


def test_windows_classes_subjects_and_split(made):
    source = load_source("uci-har", LoadOptions(path=str(made)))
    assert tuple(source.modalities) == ("acc", "gyro") == tuple(SIGNALS)
    assert all(m.kind == "series" and m.shape == (3, 128) for m in source.modalities.values())
    assert source.class_names == ACTIVITIES and source.num_classes == 6
    assert source.group_names == ("1", "2", "3", "10", "11")
    assert source.train.labels.tolist() == [a for a in range(6) for _ in range(EACH)] * 3
    assert source.train.groups.tolist() == [g for g in (0, 2, 4) for _ in range(12)]
    assert source.test.groups.tolist() == [g for g in (1, 3) for _ in range(12)]
    assert source.train.present is None and source.test.present is None
    first = source.windows[:3].tolist()
    assert first == [[1, 0, 128], [1, 64, 192], [1, 128, 256]]  # half of each is in the next one
    for samples in (source.train, source.test):
        for name, signal in SIGNALS.items():
            found = samples.inputs[name]
            assert found.dtype == torch.float32 and found.shape == (len(samples), 3, 128)
            for row in (0, 5, len(samples) - 1):
                subject = int(source.group_names[samples.groups[row]])
                activity = int(samples.labels[row]) + 1
                for axis in range(3):
                    wanted = [value(subject, activity, c, axis, signal) for c in range(128)]
                    np.testing.assert_allclose(found[row, axis], wanted, rtol=1e-5)


def test_the_folder_of_the_archive_will_do_itself(made):
    source = load_source("uci-har", LoadOptions(path=str(made / "uci-har")))
    assert len(source.train) == 36 and len(source.test) == 24


def test_names_go_with_their_ids_in_any_order(made, tmp_path):
    make(tmp_path)
    names = [f"{k} {name}  \n" for k, name in enumerate(ACTIVITIES, start=1)]
    write(tmp_path / "activity_labels.txt", "".join(reversed(names)))
    source = load_source("uci-har", LoadOptions(path=str(tmp_path)))
    assert source.class_names == ACTIVITIES
    assert source.train.labels.tolist()[:3] == [0, 0, 1]


def test_subjects_are_natural_ids(made):
    options = PartitionOptions(
        "uci-har", 3, LoadOptions(path=str(made)), scheme="natural", modality_pattern="acc+gyro"
    )
    groups = [set(load_partition(options, node).train.groups.tolist()) for node in range(3)]
    assert groups == [{0}, {2}, {4}]


def test_nothing_changes_with_the_options(made):
    from flwr_dmml.data.options import SeriesOptions

    source = load_source("uci-har", LoadOptions(path=str(made), series=SeriesOptions(window_s=1)))
    assert source.modalities["acc"].shape == (3, 128)


# What is refused


def test_an_empty_folder_names_every_file_and_the_archive(tmp_path):
    message = message_of(tmp_path)
    assert "'Human Activity Recognition Using Smartphones'" in message and "C54S4K" in message
    assert message.count("it is missing") == 17
    assert "train/Inertial Signals/total_acc_x_train.txt: it is missing" in message
    assert "test/subject_test.txt: it is missing" in message and "body_acc" not in message


def test_everything_wrong_is_named_at_once(tmp_path):
    make(tmp_path)
    signals = tmp_path / "train" / "Inertial Signals"
    nan = " 0.0" * 127 + " NaN"
    edit(signals / "total_acc_x_train.txt", 7, nan)
    edit(signals / "total_acc_y_train.txt", 1, " 0.0" * 127)
    edit(signals / "total_acc_z_train.txt", 36, " 0.0" * 127 + " abc")
    edit(tmp_path / "train" / "y_train.txt", 4, "7")
    edit(tmp_path / "test" / "y_test.txt", 2, "1.5")
    edit(tmp_path / "test" / "subject_test.txt", 5, None)
    (tmp_path / "test" / "Inertial Signals" / "body_gyro_z_test.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "test" / "Inertial Signals" / "body_gyro_y_test.txt").write_text("\n")
    lines = message_of(tmp_path).splitlines()
    found = [line.strip() for line in lines[1:]]
    wanted = [
        "train/y_train.txt: line 4: activity 7 is not in activity_labels.txt",
        "train/Inertial Signals/total_acc_x_train.txt: line 7: NaN is not a finite number",
        "train/Inertial Signals/total_acc_y_train.txt: line 1: 127 numbers, expected 128",
        "train/Inertial Signals/total_acc_z_train.txt: line 36: 'abc' is not a number",
        "test/y_test.txt: line 2: 1.5 is not a whole number",
        "test/Inertial Signals/body_gyro_y_test.txt: it is empty",
        "test/Inertial Signals/body_gyro_z_test.txt: it cannot be read:",
        "test/: its files differ in the number of rows:",
    ]
    for expected in wanted:
        assert any(line.startswith(expected) for line in found), expected
    assert len(found) == len(wanted)
    assert "23 of subject, 24 of acc x" in found[-1]


def test_many_bad_lines_of_a_file_are_counted(tmp_path):
    make(tmp_path)
    write(tmp_path / "train" / "y_train.txt", "0\n" * 36)
    message = message_of(tmp_path)
    assert "line 1: activity 0" in message and "line 3: activity 0" in message
    assert "and 33 more lines" in message and "line 4:" not in message


def test_a_blank_line_is_no_row(tmp_path):
    make(tmp_path)
    edit(tmp_path / "train" / "subject_train.txt", 3, "")
    assert "train/subject_train.txt: line 3: 0 numbers, expected 1" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("WALKING", "line 2: 'WALKING', expected an id and a name"),
        ("1 STANDING", "line 2: '1 STANDING', the id or the name is there twice"),
        ("2 WALKING", "line 2: '2 WALKING', the id or the name is there twice"),
    ],
)
def test_activities_that_cannot_be_are_named(tmp_path, line, told):
    make(tmp_path)
    edit(tmp_path / "activity_labels.txt", 2, line)
    assert f"activity_labels.txt: {told}" in message_of(tmp_path)


# Training


def test_devices_learn_it(tmp_path):
    """Windows of an activity are nearly alike here: chance is 1/6."""
    make(tmp_path, rows_of=8)
    peers = run_peers(
        {
            "dataset": "uci-har",
            "data-path": str(tmp_path),
            "num-nodes": 3,
            "partition": "natural",
            "modality-pattern": "acc,gyro,acc+gyro",
            "local-iterations": 10,
            "batch-size": 16,
        },
        num_rounds=6,
    )
    assert peers.records[-1].accuracy > 0.5
