"""Recordings of a folder, cut into windows: by hand, and every way in which they are wrong."""

from pathlib import Path

import numpy as np
import pytest

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    Modality,
    PartitionOptions,
    Source,
    find_dataset,
    load_partition,
)
from flwr_dmml.data.check import check
from flwr_dmml.data.forms import RawNumbers
from flwr_dmml.data.options import SeriesOptions

SERIES = SeriesOptions(window_s=1.0, overlap=0.0, rate_hz=4)


def load(root: Path, series: SeriesOptions = SERIES) -> Source:
    return find_dataset("folder").load(LoadOptions(path=str(root), series=series))


def refused(root: Path, series: SeriesOptions = SERIES) -> str:
    with pytest.raises(DataError) as error:
        load(root, series)
    return str(error.value)


def track(
    path: Path, hertz: float, spans: dict[str, float], gap: tuple[float, float] = (9e9, 0)
) -> None:
    """Write a recording whose x is the time in s, and y twice that; labels last so many seconds."""
    rows, start = ["ms,x,activity,y"], 0.0
    for label, length in spans.items():
        for k in range(round(length * hertz)):
            t = start + k / hertz
            if not gap[0] < t < gap[1]:
                rows.append(f"{1000 * t + 5000:.3f},{t:.6f},{label},{2 * t:.6f}")
        start += length
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Ann has a phone (8 Hz) and a watch (20 Hz), Bob a phone, Cy, who is for testing, both."""
    spans = {"walk": 2.5, "nan": 1.0, "sit": 2.5}
    track(tmp_path / "ann-phone.csv", 8, spans)
    track(tmp_path / "ann-watch.csv", 20, spans)
    track(tmp_path / "bob-phone.csv", 8, {"0": 5, "sit": 2.25, "walk": 1.25})
    track(tmp_path / "cy-phone.csv", 8, spans, gap=(0.3, 0.9))
    track(tmp_path / "cy-watch.csv", 20, spans)
    (tmp_path / "manifest.csv").write_text(
        "phone,watch,split,node\nann-phone.csv,ann-watch.csv,train,ann\nbob-phone.csv,,train,bob\n"
        "cy-phone.csv,cy-watch.csv,test,cy\n"
    )
    (tmp_path / "dataset.toml").write_text(
        '[recordings]\nlabel = "activity"\ntime = "ms"\nunit = "ms"\nleave-out = ["0"]\n'
        '[channels]\nwatch = ["y"]\n'
    )
    return tmp_path


def test_windows_lie_within_an_activity_of_all_modalities(people):
    source = load(people)
    assert source.modalities == {
        "phone": Modality("series", (2, 4)),
        "watch": Modality("series", (1, 4)),
    }
    assert source.class_names == ("sit", "walk") and source.group_names == ("ann", "bob", "cy")
    train, test = source.train, source.test
    assert train.labels.tolist() == [1, 1, 0, 0, 0, 0, 1]
    assert train.groups is not None and train.groups.tolist() == [0] * 4 + [1] * 3
    step = np.arange(4) / 4
    starts = [0, 1, 3.5, 4.5, 5, 6, 7.25]
    assert train.inputs["phone"].numpy() == pytest.approx(
        np.stack([[s + step, 2 * (s + step)] for s in starts]), abs=1e-4
    )
    assert train.present is not None and train.present["phone"].all()
    assert train.present["watch"].tolist() == [True] * 4 + [False] * 3
    assert train.inputs["watch"][:4, 0].numpy() == pytest.approx(
        train.inputs["phone"][:4, 1].numpy(), abs=1e-4
    )
    assert not train.inputs["watch"][4:].any()
    # Cy's phone says nothing for 0.6 s of the first second: that window is dropped.
    assert test.inputs["phone"][:, 0, 0].tolist() == pytest.approx([1, 3.5, 4.5], abs=1e-4)


def test_columns_go_by_their_names(people):
    """Those of the phone in the order of Ann's file, whose rows come first."""
    before = load(people)
    for name in ("ann-phone", "bob-phone"):
        rows = [line.split(",") for line in (people / f"{name}.csv").read_text().splitlines()]
        order = (3, 0, 2, 1) if name == "bob-phone" else (0, 1, 3, 2)
        text = "\n".join(",".join(row[k] for k in order) for row in rows)
        (people / f"{name}.csv").write_text(text)
    source = load(people)
    assert source.train.inputs["phone"].equal(before.train.inputs["phone"])
    raw = {name: form.raw for name, form in source.modalities.items()}
    assert raw == {
        "phone": RawNumbers(rate_hz=4, channels=("x", "y")),
        "watch": RawNumbers(rate_hz=4, channels=("y",)),
    }
    text = (people / "bob-phone.csv").read_text().replace("y,", "z,", 1)
    (people / "bob-phone.csv").write_text(text)
    assert (
        "line 3, phone 'bob-phone.csv': there is no column 'y' and a column 'z', unlike in line 2, "
        "phone 'ann-phone.csv'; name the columns alike"
    ) in refused(people)


@pytest.mark.parametrize("scheme", ["iid", "natural"])
def test_what_is_held_out_shares_no_row_of_a_file_with_what_is_trained_on(tmp_path, scheme):
    """Every number is in one row of one file alone."""
    lines = ["imu,label,split,node"]
    for k in range(6):
        np.save(tmp_path / f"{k}.npy", np.arange(40.0)[:, None] + 100 * k)
        lines.append(f"{k}.npy,{'ab'[k % 2]},{'test' if k > 3 else 'train'},{k // 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    (tmp_path / "dataset.toml").write_text("[recordings]\nrate-hz = 4\n")
    given = LoadOptions(path=str(tmp_path), series=SeriesOptions(window_s=1.0, rate_hz=4))
    options = PartitionOptions(
        "folder", 2, given, scheme, validation_fraction=0.2, modality_pattern="imu"
    )
    for node in range(2):
        part = load_partition(options, node)
        rows = [set(x.inputs["imu"].flatten().tolist()) for x in (part.train, part.validation)]
        assert all(rows) and not rows[0] & rows[1]
        assert len(part.validation) == 8 and len(part.train) > 20


def test_a_row_that_lacks_a_value_is_a_gap(people):
    text = (people / "ann-watch.csv").read_text().splitlines()
    for k in range(3, 12):  # of 20 a second
        text[k] = text[k].rpartition(",")[0] + ",NaN"
    (people / "ann-watch.csv").write_text("\n".join(text))
    assert load(people).train.labels.tolist() == [1, 0, 0, 0, 0, 1]


def test_labels_of_whole_files_and_arrays_at_a_rate(tmp_path):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.arange(8.0)[:, None] + [0, 10])
    (tmp_path / "manifest.csv").write_text(
        "imu,label,split\na.npy,fall,train\nb.npy,walk,train\nc.npy,walk,test\n"
    )
    (tmp_path / "dataset.toml").write_text("[recordings]\nrate-hz = 4\n")
    source = load(tmp_path)
    assert source.train.labels.tolist() == [0, 0, 1, 1] and source.test.labels.tolist() == [1, 1]
    assert source.train.inputs["imu"][1].tolist() == [[4, 5, 6, 7], [14, 15, 16, 17]]
    found = check("folder", LoadOptions(path=str(tmp_path), series=SERIES))
    told = [doubt.text for doubt in found.doubts]
    assert not found.problem and any("2 test samples are equal to training" in x for x in told)


def test_the_first_look_tells_rates_and_lengths(people):
    """Rows of a second and the rows' own times, by hand: 48 rows of a phone last 47 / 8 s."""
    found = check("folder", LoadOptions(path=str(people), series=SERIES))
    (modalities,) = [s.rows for s in found.sheets if s.title == "Modalities"]
    assert [row[:4] for row in modalities] == [
        ("phone", "series", "2 x 4", "4"),
        ("watch", "series", "1 x 4", "4"),
    ]
    assert [row[4:] for row in modalities] == [("0.0%", "0.0%"), ("42.9%", "0.0%")]
    (files,) = [s.rows for s in found.sheets if s.title == "Files"]
    facts = {row[:2]: row[2] for row in files}
    assert facts["watch", "rows a second"] == "20 to 20, median 20"
    assert facts["phone", "length, s"] == "5.875 to 8.375, median 5.875"
    values = {s.title: s.rows for s in found.sheets if s.title.startswith("Values")}
    (row,) = [r for r in values["Values in testing"] if r[0] == "watch"]
    assert row[1:4] == ("1 y", "2", "10.5")  # of windows from 1, 3.5 and 4.5 s on


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('time = "ms"', 'time = "s"', "line 2, phone 'ann-phone.csv': there is no column 's'"),
        ('label = "activity"\n', "", "there is no column 'label'"),
        ('label = "activity"', 'label = "what"', "line 1: there is no column 'what'"),
        ('time = "ms"\n', "", "[recordings] say neither time nor rate-hz"),
        ('unit = "ms"', 'unit = "h"', "recordings.unit: Input should be 's', 'ms'"),
        ('leave-out = ["0"]', "", "no row"),
    ],
)
def test_wrong_descriptions(people, old, new, problem):
    path = people / "dataset.toml"
    path.write_text(path.read_text().replace(old, new))
    if problem == "no row":  # the label 0 is a class then
        assert load(people).class_names == ("0", "sit", "walk")
    else:
        assert problem in refused(people)


def test_wrong_recordings(people):
    assert "series.window-s = 0: [recordings] need a length" in refused(people, SeriesOptions())
    assert "no train recording has a window" in refused(people, SeriesOptions(window_s=60))
    text = (people / "cy-phone.csv").read_text()
    (people / "cy-phone.csv").write_text(
        text.replace("walk", "run").replace("\n5125.000,", "\n4000,")
    )
    lines = refused(people)
    assert "line 4, phone 'cy-phone.csv': line 3: its time is 1 s before the line above" in lines
    (people / "cy-phone.csv").write_text(text.replace("walk", "run"))
    (people / "cy-watch.csv").write_text(
        (people / "cy-watch.csv").read_text().replace("walk", "run")
    )
    assert "no training row has the label 'run'" in refused(people)
    (people / "cy-watch.csv").unlink()
    assert "line 4, watch 'cy-watch.csv': there is no such file" in refused(people)
