import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    PartitionOptions,
    Source,
    load_partition,
    load_source,
)
from flwr_dmml.data.options import SeriesOptions
from flwr_dmml.data.reading.windows import Recording, Windowing, cut, runs
from flwr_dmml.data.sets.sp_sw_har import (
    ACTIVITIES,
    MAX_GAP_S,
    MODALITIES,
    TEST_SUBJECTS,
    WINDOW_S,
    read_recording,
)

HEADER = "x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label"
START_MS = 1_657_533_977_813
SHORT = SeriesOptions(window_s=0.5, rate_hz=10.0)  # 5 samples, 2 apart
ALL = "+".join(MODALITIES)


def row(at_ms, label, values=(9.81, 0, 0, math.pi, 0, 0)) -> str:
    return ",".join([*map(repr, map(float, values)), str(START_MS + at_ms), label])


def execution(offset_ms=0, period_ms=50, gain=1.0) -> list[str]:
    """One second of each activity; the channels are multiples of ``gain`` and the activity."""
    return [
        row(at, name, [gain * (k + 1) * (c + 1) for c in range(6)])
        for k, name in enumerate(ACTIVITIES)
        for at in range(1000 * k + offset_ms, 1000 * k + 1000, period_ms)
    ]


def write(root, name, lines, header=HEADER):
    path = root / "sp-sw-har" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def make(root, executions=("s01_01", "s02_01", "s03_01", "s03_02")):
    """Make a folder in the published layout; s02 is a test subject."""
    index = [f"{name},back,l,r" for name in executions]
    write(root, "executions_info.csv", index, header="execution_id,orientation,first_turn,x")
    for name in executions:
        write(root, f"{name[:3]}/{name}_sp.csv", execution())
        write(root, f"{name[:3]}/{name}_sw.csv", execution(offset_ms=20, period_ms=10, gain=-1.0))
    return root


def options_of(root, series=SHORT) -> LoadOptions:
    return LoadOptions(path=str(root), series=series)


def message_of(root, series=SHORT) -> str:
    with pytest.raises(DataError) as caught:
        load_source("sp-sw-har", options_of(root, series))
    return str(caught.value)


# Files made here


def test_windows_units_and_groups(tmp_path):
    """Both devices cover 20 to 950 ms of each second: samples at 20, 120, ..., 920 are ten.

    Windows of 5 start at samples 0, 2 and 4.
    """
    source = load_source("sp-sw-har", options_of(make(tmp_path)))
    assert tuple(source.modalities) == MODALITIES and source.class_names == ACTIVITIES
    assert all(m.kind == "series" and m.shape == (3, 5) for m in source.modalities.values())
    assert source.group_names == ("s01", "s03", "s02")
    assert source.train.present is None and source.test.present is None
    assert source.train.groups.tolist() == [0] * 15 + [1] * 30
    assert source.test.groups.tolist() == [2] * 15
    assert source.train.labels.tolist() == [k for k in range(5) for _ in range(3)] * 3
    for name, sensor in source.train.inputs.items():
        gain, first = (1 if "phone" in name else -1), (1 if "acc" in name else 4)
        unit = 9.81 if "acc" in name else math.pi
        channels = torch.arange(first, first + 3).reshape(1, 3, 1)
        expected = gain * (source.train.labels + 1).reshape(-1, 1, 1) * channels / unit
        torch.testing.assert_close(sensor, expected.expand(-1, -1, 5).float())


def test_a_slope_is_resampled_by_time_not_by_row(tmp_path):
    """The phone's x is the time in s; its rows come at 0, 50, 50, 120, 130, ... of each 200 ms."""
    make(tmp_path)
    lines = [
        row(1000 * k + at, name, [(1000 * k + at) / 1000] * 6)
        for k, name in enumerate(ACTIVITIES)
        for burst in range(0, 1000, 200)
        for at in (burst, burst + 50, burst + 50, burst + 120, burst + 130)
    ]
    write(tmp_path, "s01/s01_01_sp.csv", lines)
    train = load_source("sp-sw-har", options_of(tmp_path)).train
    own = 9.81 * train.inputs["phone-acc"][train.groups == 0]
    starts = torch.tensor([1000 * k + 20 + 200 * w for k in range(5) for w in range(3)]) / 1000
    expected = starts.reshape(-1, 1) + 0.1 * torch.arange(5)
    torch.testing.assert_close(own[:, 0], expected)


def test_windows_with_a_gap_of_one_device_are_dropped(tmp_path):
    """The watch has nothing between 410 and 590 ms of each activity: samples at 420 and 520."""
    make(tmp_path)
    watch = [
        line for line in execution(20, 10, -1.0) if not 410 < (stamp(line) - START_MS) % 1000 < 590
    ]
    write(tmp_path, "s01/s01_01_sw.csv", watch)
    write(tmp_path, "s02/s02_01_sw.csv", watch)
    series = SeriesOptions(window_s=0.3, rate_hz=10.0)  # 3 samples, 2 apart: at 0, 2, 4 and 6
    source = load_source("sp-sw-har", options_of(tmp_path, series))
    assert source.test.labels.bincount().tolist() == [2] * 5  # at 0: 20 to 220; at 6: 620 to 820
    assert source.train.labels.bincount().tolist() == [2 + 4 + 4] * 5


def stamp(line: str) -> int:
    return int(line.split(",")[6])


def test_subjects_as_nodes_a_third_without_watch(tmp_path):
    make(tmp_path, ["s01_01", "s02_01", "s03_01", "s05_01", "s06_01", "s07_01", "s10_01"])
    options = PartitionOptions(
        "sp-sw-har",
        num_nodes=6,
        load=options_of(tmp_path),
        scheme="natural",
        modality_pattern=f"{ALL},{ALL},phone-acc+phone-gyro",
    )
    parts = [load_partition(options, node) for node in range(6)]
    for node, part in enumerate(parts):
        assert part.train.groups.unique().tolist() == [node]
        own = MODALITIES[:2] if node % 3 == 2 else MODALITIES
        assert part.modalities == own and tuple(part.train.inputs) == own
        assert tuple(part.test.inputs) == own and len(part.test) == 15


def test_windows_that_no_activity_is_long_enough_for(tmp_path):
    message = message_of(make(tmp_path), SeriesOptions(window_s=2.0, rate_hz=10.0))
    assert "series.window-s = 2: the training subjects have no window of SEATED, STAND" in message


# Bad files


def test_all_bad_files_are_named_at_once_with_line_and_reason(tmp_path):
    make(tmp_path, ["s01_01", "s02_01", "s03_01", "s05_01", "s05_02", "s05_03", "s06_01"])
    good = execution()
    write(tmp_path, "s01/s01_01_sp.csv", [*good[:3], good[3].replace("6.0", "nan"), *good[4:]])
    (tmp_path / "sp-sw-har/s01/s01_01_sw.csv").unlink()
    write(tmp_path, "s02/s02_01_sp.csv", [good[0], good[1] + ",", "", good[2]])
    write(tmp_path, "s02/s02_01_sw.csv", good, header=HEADER.replace("x_gyro", "gyro_x"))
    write(tmp_path, "s03/s03_01_sp.csv", [good[0], good[1].replace("SEATED", "JUMPING")])
    write(tmp_path, "s03/s03_01_sw.csv", [good[2], good[1], good[3]])
    write(tmp_path, "s05/s05_01_sp.csv", [good[0].replace("1.0", "one", 1)])
    write(tmp_path, "s05/s05_01_sw.csv", [])
    write(tmp_path, "s05/s05_02_sp.csv", [row(-9000, "SEATED"), row(-8000, "SEATED")])
    (tmp_path / "sp-sw-har/s05/s05_03_sw.csv").write_bytes(b"\xff\xfe")
    write(tmp_path, "s06/s06_01_sp.csv", ["x"] * 1200)
    message = message_of(tmp_path)
    assert message.startswith(f"data-path: '{tmp_path}/sp-sw-har' cannot be used:\n")
    for problem in (
        "s01/s01_01_sp.csv: line 5: a number is not finite\n",
        "s01/s01_01_sw.csv: it is missing\n",
        "s02/s02_01_sp.csv: line 3: 9 columns, expected 8; line 4: 1 columns, expected 8\n",
        "s02/s02_01_sw.csv: it has 'x_acc,y_acc,z_acc,gyro_x,y_gyro,z_gyro,timestamp,label' and ",
        "s03/s03_01_sp.csv: line 3: unknown activity 'JUMPING', known are SEATED, STANDING_UP, ",
        "s03/s03_01_sw.csv: line 3: timestamp 50 ms before that of the row above\n",
        "s05/s05_01_sp.csv: line 2: could not convert string to float: 'one'\n",
        f"s05/s05_01_sw.csv: it has '{HEADER}' and 0 rows, expected",
        "s05/s05_02: phone and watch have no time in common: 8.0 s apart\n",
        "s05/s05_03_sw.csv: it cannot be read: ",
        "line 3: 1 columns, expected 8; line 4: 1 columns, expected 8; and 1,197 more lines",
    ):
        assert f"  {problem}" in message or problem in message, problem
    assert len(message.splitlines()) == 1 + 11


def test_of_many_bad_files_twenty_are_spelled_out(tmp_path):
    make(tmp_path, [f"s{n:02}_01" for n in range(1, 24)])
    for path in tmp_path.glob("sp-sw-har/s*/*_sw.csv"):
        path.unlink()
    message = message_of(tmp_path)
    assert message.count("it is missing") == 20 and message.endswith("  and 3 more")


def test_an_empty_folder_says_where_to_get_the_files(tmp_path):
    message = message_of(tmp_path)
    assert "executions_info.csv" in message and "No such file" in message
    assert "GeoTecINIT/sp-sw-har-dataset" in message and "10.5281/zenodo.8398688" in message


def test_bad_lines_of_the_index(tmp_path):
    make(tmp_path)
    write(
        tmp_path,
        "executions_info.csv",
        ["s01_01,back", "../s01,back", "s01_01,front", "s03_01,back"],
        header="execution_id,orientation",
    )
    message = message_of(tmp_path)
    assert "executions_info.csv: line 3: '../s01' is not an id like s01_01" in message
    assert "executions_info.csv: line 4: s01_01 is there twice" in message
    assert "executions_info.csv: no test subject (s02, s04, s08, s09, s17), or none" in message


# The published files


@pytest.fixture(scope="module")
def real(real_data) -> Source:
    return load_source("sp-sw-har", LoadOptions(path=str(real_data)))


def test_windows_of_each_activity_and_subject(real):
    """Counted once and kept, so that a change of the windows does not go unnoticed."""
    assert real.train.labels.bincount().tolist() == [504, 584, 3079, 1109, 720]
    assert real.test.labels.bincount().tolist() == [172, 178, 853, 295, 215]
    groups = [*real.train.groups.tolist(), *real.test.groups.tolist()]
    counts = Counter(real.group_names[group] for group in groups)
    assert real.group_names[18:] == TEST_SUBJECTS and len(counts) == 23
    assert sum(counts.values()) == 7709
    assert (min(counts.values()), max(counts.values())) == (209, 427)
    assert (counts["s01"], counts["s07"], counts["s17"]) == (209, 408, 378)


def test_values_are_finite_and_of_the_size_of_the_units(real):
    """The mean of the length of acceleration is near 1 g; nobody turns by over 8 half turns a s."""
    for samples in (real.train, real.test):
        for name, sensor in samples.inputs.items():
            assert sensor.shape == (len(samples), 3, 25) and sensor.isfinite().all()
            length = sensor.norm(dim=1)
            if "acc" in name:
                assert 0.9 < length.mean() < 1.2
            assert length.max() < 8


def test_no_window_crosses_a_change_of_activity(real_data):
    """Let the sensors tell the label: each window must then be constant, and that of its label."""
    windowing, count = Windowing.of(SeriesOptions(), MAX_GAP_S, WINDOW_S), 0
    for phone in sorted((real_data / "sp-sw-har").glob("s0[14]/*_sp.csv")):
        pair = [read_recording(phone), read_recording(phone.with_name(phone.name[:-6] + "sw.csv"))]
        told = [Recording(r.times, r.labels[:, None].astype(float), r.labels) for r in pair]
        parts, labels, _ = cut(told, windowing)
        for values in parts:
            assert np.array_equal(values, np.broadcast_to(labels[:, None, None], values.shape))
        count += len(labels)
    assert count == 209 + 325


def test_both_clocks_agree(real_data):
    """Phone and watch see the activities change within a tenth of a second of each other."""
    apart = []
    for phone in sorted((real_data / "sp-sw-har").glob("s0[1-9]/*_sp.csv")):
        pair = [read_recording(phone), read_recording(phone.with_name(phone.name[:-6] + "sw.csv"))]
        changes = [np.array([r.times[run.start] for run in runs(r.labels)][1:]) for r in pair]
        if len(changes[0]) == len(changes[1]):
            apart += (changes[0] - changes[1]).tolist()
    assert len(apart) > 400 and max(map(abs, apart)) < 0.1


def test_a_subject_is_a_node_and_its_watch_can_be_missing(real_data):
    options = PartitionOptions(
        "sp-sw-har",
        num_nodes=18,
        load=LoadOptions(path=str(real_data)),
        scheme="natural",
        validation_fraction=0.1,
        modality_pattern=f"{ALL},{ALL},phone-acc+phone-gyro",
    )
    parts = [load_partition(options, node) for node in range(18)]
    whole = [load_partition(replace(options, validation_fraction=0.0), k).train for k in range(18)]
    assert sum(map(len, whole)) == 5996
    for part, train in zip(parts, whole, strict=True):
        assert len(part.validation) == round(len(train) / 10)
        steps = [
            {x.tobytes() for x in np.moveaxis(of.inputs["phone-acc"].numpy(), 1, 2).reshape(-1, 3)}
            for of in (part.train, part.validation)
        ]
        assert not steps[0] & steps[1]
    assert [p.train.groups.unique().tolist() for p in parts] == [[k] for k in range(18)]
    assert sum("watch-acc" not in p.modalities for p in parts) == 6
    assert all(len(p.test) == 1713 for p in parts)


def test_a_window_that_is_too_long_is_refused(real_data):
    options = LoadOptions(path=str(real_data), series=SeriesOptions(window_s=2.56))
    with pytest.raises(DataError, match=r"window-s = 2\.56: the training .* STANDING_UP, TURNING"):
        load_source("sp-sw-har", options)
