"""The reader of HAPT on small folders in the layout of its archive."""

import math

import numpy as np
import pytest
import torch
from helpers import run_peers

from flwr_dmml.data import DataError, LoadOptions, PartitionOptions, load_partition, load_source
from flwr_dmml.data.options import SeriesOptions

ACTIVITIES = (
    *("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"),
    *("STAND_TO_SIT", "SIT_TO_STAND", "SIT_TO_LIE", "LIE_TO_SIT", "STAND_TO_LIE", "LIE_TO_STAND"),
)
SHORT = SeriesOptions(window_s=0.2)  # 10 samples at 50 Hz, 5 apart
LABELS = [
    (1, 1, 5, 11, 30),  # windows from samples 11, 16 and 21 on
    (1, 1, 7, 31, 38),  # too short
    (1, 1, 4, 39, 50),  # from 39
    (1, 1, 1, 61, 70),  # from 61, the whole of it
    (2, 1, 12, 1, 15),  # from 1 and 6
    (3, 11, 1, 5, 14),
    (4, 2, 6, 1, 10),
    (4, 2, 6, 11, 20),  # the same activity goes on: from 1, 6 and 11
]
EXPERIMENTS = ((1, 1), (2, 1), (3, 11), (4, 2))
ROWS = 80


def value(experiment: int, sample: int, channel: int) -> float:
    """Return what a channel (acc x, y, z, gyro x, y, z) holds at a sample, counted from 1."""
    return 10.0 * experiment + 0.1 * sample + (-1) ** channel * channel


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(root, labels=LABELS, experiments=EXPERIMENTS, of=value, rows=ROWS):
    """Make the archive's folder; user 2 is for testing, 1, 11 and 12 are for training."""
    names = [f"{k} {name:<20}" for k, name in enumerate(ACTIVITIES, start=1)]
    write(root / "activity_labels.txt", names)
    write(root / "Train" / "subject_id_train.txt", ["1"] * 3 + ["11", "12"])
    write(root / "Test" / "subject_id_test.txt", ["2"] * 3)
    write(root / "RawData" / "labels.txt", [" ".join(map(str, row)) for row in labels])
    for experiment, user in experiments:
        for first, sensor in ((0, "acc"), (3, "gyro")):
            lines = [
                " ".join(f"{of(experiment, t, first + k):.12f}" for k in range(3))
                for t in range(1, rows + 1)
            ]
            write(root / "RawData" / f"{sensor}_exp{experiment:02d}_user{user:02d}.txt", lines)
    return root


def edit(path, line, new):
    """Replace a line (from 1) of a file; None removes it."""
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if new is None else [new]
    write(path, lines)


def load(root, series=SHORT):
    return load_source("hapt", LoadOptions(path=str(root), series=series, cache=False))


def message_of(root, series=SHORT) -> str:
    with pytest.raises(DataError) as caught:
        load(root, series)
    return str(caught.value)


def check_windows(samples, wanted, period=1.0, steps=10):
    """Compare with (experiment, first sample) of each window."""
    for row, (experiment, first) in enumerate(wanted):
        times = first + period * np.arange(steps)
        expected = np.array([[value(experiment, t, c) for t in times] for c in range(6)])
        found = torch.cat([samples.inputs["acc"][row], samples.inputs["gyro"][row]])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(samples) == len(wanted)


# What is read


def test_windows_lie_within_one_activity(tmp_path):
    source = load(make(tmp_path / "hapt").parent)
    assert tuple(source.modalities) == ("acc", "gyro")
    assert all(m.kind == "series" and m.shape == (3, 10) for m in source.modalities.values())
    assert source.class_names == ACTIVITIES and source.num_classes == 12
    assert source.group_names == ("1", "2", "11")
    train = [(1, 11), (1, 16), (1, 21), (1, 39), (1, 61), (2, 1), (2, 6), (3, 5)]
    check_windows(source.train, train)
    assert source.train.labels.tolist() == [4, 4, 4, 3, 0, 11, 11, 0]
    assert source.train.groups.tolist() == [0] * 7 + [2]
    check_windows(source.test, [(4, 1), (4, 6), (4, 11)])
    assert source.test.labels.tolist() == [5] * 3 and source.test.groups.tolist() == [1] * 3
    assert source.train.inputs["acc"].dtype == torch.float32
    assert source.train.present is None


def test_the_folder_of_the_archive_will_do_itself(tmp_path):
    assert len(load(make(tmp_path)).train) == 8


@pytest.mark.parametrize(("rate_hz", "period", "steps"), [(25.0, 2.0, 5), (100.0, 0.5, 20)])
def test_another_rate_is_interpolated(tmp_path, rate_hz, period, steps):
    """The signals are straight lines, so that a sample between two rows is known.

    Ten samples at 50 Hz last 0.18 s: 5 samples at 25 Hz, 19 at 100 Hz, of which 20 are needed.
    """
    source = load(make(tmp_path), SeriesOptions(window_s=0.2, overlap=0.0, rate_hz=rate_hz))
    assert source.modalities["gyro"].shape == (3, steps)
    at_25 = [(1, 11), (1, 21), (1, 39), (1, 61), (2, 1), (3, 5)]
    at_100 = [(1, 11), (1, 39), (2, 1)]
    check_windows(source.train, at_25 if rate_hz == 25 else at_100, period, steps)


def test_where_labels_overlap_the_later_holds(tmp_path):
    source = load(make(tmp_path, [(1, 1, 5, 1, 40), (1, 1, 8, 21, 40), (4, 2, 6, 1, 10)]))
    assert source.train.labels.tolist() == [4] * 3 + [7] * 3


def test_users_are_natural_ids(tmp_path):
    load_options = LoadOptions(path=str(make(tmp_path)), series=SHORT)
    options = PartitionOptions("hapt", 2, load_options, scheme="natural", modality_pattern="gyro")
    parts = [load_partition(options, node) for node in range(2)]
    assert [set(part.train.groups.tolist()) for part in parts] == [{0}, {2}]
    assert [len(part.train) for part in parts] == [7, 1]


def test_what_is_held_out_shares_no_row_with_what_is_trained_on(tmp_path):
    load_options = LoadOptions(path=str(make(tmp_path)), series=SHORT)
    options = PartitionOptions(
        "hapt", 1, load_options, "iid", validation_fraction=0.3, modality_pattern="acc"
    )
    part = load_partition(options, 0)
    rows = [set(x.inputs["acc"][:, 0].flatten().tolist()) for x in (part.train, part.validation)]
    assert len(part.validation) == 2 and all(rows) and not rows[0] & rows[1]


# What is refused


def test_an_empty_folder_names_every_file_and_the_archive(tmp_path):
    message = message_of(tmp_path)
    assert "Postural Transitions' of the UCI Machine Learning Repository" in message
    for name in (
        "activity_labels.txt",
        "RawData/labels.txt",
        "Train/subject_id_train.txt",
        "Test/subject_id_test.txt",
    ):
        assert f"{name}: it is missing" in message


def test_everything_wrong_is_named_at_once(tmp_path):
    labels = [
        *LABELS,
        (3, 11, 13, 1, 5),
        (3, 11, 1, 75, 81),
        (3, 11, 1, 9, 8),
        (9, 12, 1, 1, 10),
        (1, 1, 5, 0, 3),
    ]
    make(tmp_path, labels)
    raw = tmp_path / "RawData"
    edit(raw / "acc_exp01_user01.txt", 3, "0.1 0.2")
    edit(raw / "gyro_exp01_user01.txt", 80, "0.1 inf 0.2")
    edit(raw / "gyro_exp02_user01.txt", 80, None)
    (raw / "acc_exp04_user02.txt").unlink()
    edit(tmp_path / "Test" / "subject_id_test.txt", 1, "1")
    found = [line.strip() for line in message_of(tmp_path).splitlines()[1:]]
    wanted = [
        "Test/subject_id_test.txt: subject 1 is in Train/subject_id_train.txt too",
        "RawData/acc_exp01_user01.txt: line 3: 2 numbers, expected 3",
        "RawData/gyro_exp01_user01.txt: line 80: inf is not a finite number (float32)",
        "RawData/acc_exp02_user01.txt and gyro_exp02_user01.txt: they have 80 and 79 rows",
        "RawData/acc_exp04_user02.txt: it is missing",
        "RawData/acc_exp09_user12.txt: it is missing",
        "RawData/gyro_exp09_user12.txt: it is missing",
        "RawData/labels.txt: ",
    ]
    for expected in wanted:
        assert any(line.startswith(expected) for line in found), expected
    assert len(found) == len(wanted)


def test_labels_that_cannot_be_are_named(tmp_path):
    bad = [(3, 11, 13, 1, 5), (3, 11, 1, 75, 81), (3, 11, 1, 9, 8)]
    message = message_of(make(tmp_path, [*LABELS, *bad]))
    assert "RawData/labels.txt: line 9: activity 13 is not in activity_labels.txt; " in message
    assert "line 10: samples 75 to 81, expected from 1 to 80 in order; " in message
    assert "line 11: samples 9 to 8, expected" in message


def test_a_user_in_neither_part_is_named(tmp_path):
    make(tmp_path)
    write(tmp_path / "Train" / "subject_id_train.txt", ["1"])
    assert (
        "RawData/labels.txt: line 6: user 11 is not in Train/subject_id_train.txt or "
        "Test/subject_id_test.txt" in message_of(tmp_path)
    )


def test_windows_longer_than_all_activities_are_refused(tmp_path):
    message = message_of(make(tmp_path), SeriesOptions(window_s=0.5))
    assert message.startswith("series.window-s = 0.5: no window of the training subjects lies")
    message = message_of(tmp_path, SeriesOptions(window_s=0.02))
    assert message.startswith("series.window-s = 0.02 at series.rate-hz = 50 is 1 samples")


# Training


def test_devices_learn_it(tmp_path):
    """All twelve activities, of three users: chance is 1/12."""

    def wave(experiment: int, sample: int, channel: int) -> float:
        activity = (sample - 1) // 50
        return math.sin(0.25 * activity * sample + 0.1 * experiment) + 0.1 * channel

    experiments = ((1, 1), (2, 11), (3, 12), (4, 2))
    labels = [(e, u, a + 1, 50 * a + 1, 50 * a + 50) for e, u in experiments for a in range(12)]
    make(tmp_path, labels, experiments, wave, rows=600)
    peers = run_peers(
        {
            "dataset": "hapt",
            "data-path": str(tmp_path),
            "series.window-s": 0.32,
            "series.overlap": 0.75,
            "num-nodes": 3,
            "partition": "natural",
            "modality-pattern": "acc,gyro,acc+gyro",
            "local-iterations": 10,
            "batch-size": 16,
        },
        num_rounds=8,
    )
    assert peers.records[-1].accuracy > 0.4
