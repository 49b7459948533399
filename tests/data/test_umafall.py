"""``umafall``: small files in the published layout, by hand, and the published archive."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.data import DataError, LoadOptions, Source, load_source
from flwr_dmml.data.check import check
from flwr_dmml.data.options import SeriesOptions
from flwr_dmml.data.sets.umafall import (
    ACTIVITIES,
    MODALITIES,
    TEST_SUBJECTS,
    UmaFallOptions,
    read_trial,
)

SHORT = SeriesOptions(window_s=0.5, overlap=0.0, rate_hz=10.0)  # 5 samples
HEADER = [
    "% Universidad de Malaga",
    "% Gender: F",
    "   ",
    "%f8:95:c7:f3:ba:82; 0; RIGHTPOCKET; lge",
    "% TimeStamp; Sample No; X-Axis; Y-Axis; Z-Axis; Sensor Type; Sensor ID;",
]
TAGS = [(place, kind) for place in range(1, 5) for kind in range(3)]


def rows(gain: float = 1.0, streams: list[tuple[int, int]] | None = None) -> list[str]:
    """2 s: the phone from 0 on every 20 ms, the others from 60 ms on every 100 ms.

    Of place p and kind k, x is the time in s, y is 10 p + k and z is the gain.
    """
    lines = []
    for place, kind in [(0, 0), *(TAGS if streams is None else streams)]:
        times = range(0, 2000, 20) if place == 0 else range(60, 2000, 100)
        for number, ms in enumerate(times):
            x = ms / 1000
            lines.append((ms, f"{ms};{number};{x};{10 * place + kind};{gain};{kind};{place}"))
    return [line for _, line in sorted(lines)]


def write(root: Path, subject: str, movement: str, lines: list[str], kind: str = "ADL") -> Path:
    folder = root / "umafall"
    folder.mkdir(exist_ok=True)
    path = folder / f"UMAFall_Subject_{subject}_{kind}_{movement}_1_2016-06-13_20-25-34.csv"
    path.write_text("\n".join([*HEADER, *lines]) + "\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Subject 02 trains and 01 is for testing; 02 falls too, and so does 01."""
    for subject in ("02", "01"):
        for gain, movement in enumerate(ACTIVITIES, start=1):
            write(tmp_path, subject, movement, rows(gain))
        write(tmp_path, subject, "forwardFall", rows(99), "Fall")
    return tmp_path


def load(root: Path, series: SeriesOptions = SHORT, task: str = "activities") -> Source:
    own = UmaFallOptions(task=task)
    return load_source("umafall", LoadOptions(path=str(root), series=series, own=own, cache=False))


def refused(root: Path, series: SeriesOptions = SHORT) -> str:
    load_source.cache_clear()
    with pytest.raises(DataError) as error:
        load(root, series)
    return str(error.value)


def test_windows_units_and_people(data):
    """All streams are there from 60 to 1,960 ms: 20 samples, four windows a trial."""
    load_source.cache_clear()
    source = load(data)
    assert tuple(source.modalities) == tuple(MODALITIES.values()) and len(source.modalities) == 13
    assert source.class_names == tuple(sorted(ACTIVITIES.values()))
    assert source.group_names == ("02", "01") and not source.doubts
    assert source.train.groups.tolist() == [0] * 48 and source.test.groups.tolist() == [1] * 48
    assert source.train.labels.bincount().tolist() == [4] * 12 and source.train.present is None
    for (place, kind), name in MODALITIES.items():
        unit = (1, 180, 50)[kind]
        form, x = source.modalities[name], source.train.inputs[name]
        assert form.shape == (3, 5) and form.raw.rate_hz == 10
        assert form.raw.unit == ("g", "180 deg/s", "50 uT")[kind]
        torch.testing.assert_close(x[:, 1], torch.full((48, 5), (10 * place + kind) / unit))
        starts = 0.06 + 0.5 * torch.arange(4).repeat(12)
        torch.testing.assert_close(x[:, 0] * unit, starts[:, None] + 0.1 * torch.arange(5))
        gains = {y: 1.0 + k for k, y in enumerate(ACTIVITIES.values())}
        names = [source.class_names[k] for k in source.train.labels.tolist()]
        torch.testing.assert_close(x[:, 2, 0] * unit, torch.tensor([gains[n] for n in names]))


def test_falls(data):
    load_source.cache_clear()
    source = load(data, task="falls")
    assert source.class_names == ("fall", "no fall")
    assert (
        source.train.labels.bincount().tolist() == [4, 48] == source.test.labels.bincount().tolist()
    )
    assert source.train.inputs["pocket-acc"][source.train.labels == 0, 2].unique().tolist() == [99]


def test_what_a_trial_lacks_its_windows_lack(data):
    """The first trial has no ankle, the second a dead magnetometer at the wrist."""
    load_source.cache_clear()
    first, second, *_ = sorted(ACTIVITIES)
    write(data, "02", first, rows(streams=[tag for tag in TAGS if tag[0] < 4]))
    dead = [
        line if not line.endswith(";2;3") else ";".join([*line.split(";")[:2], "4;4;4;2;3"])
        for line in rows()
    ]
    write(data, "02", second, dead)
    train = load(data).train
    assert train.present is not None
    lacking = {name: (~has).nonzero().flatten().tolist() for name, has in train.present.items()}
    ankle = {name: [0, 1, 2, 3] for name in ("ankle-acc", "ankle-gyro", "ankle-mag")}
    assert {k: v for k, v in lacking.items() if v} == {**ankle, "wrist-mag": [4, 5, 6, 7]}
    assert not train.inputs["ankle-mag"][:4].any() and not train.inputs["wrist-mag"][4:8].any()


def test_a_window_that_would_bridge_too_much_is_dropped(data):
    """0.7 s without the waist's rows, from 660 to 1,360 ms: two of four windows go."""
    load_source.cache_clear()
    kept = [x for x in rows() if not (x.endswith(";2") and 660 < int(x.split(";")[0]) < 1360)]
    write(data, "01", "Walking", kept)
    source = load(data)
    counts = dict(zip(source.class_names, source.test.labels.bincount().tolist(), strict=True))
    assert counts == {**dict.fromkeys(source.class_names, 4), "walking": 2}


def test_numbers_without_their_points_are_left_out_and_named(data, caplog):
    """As in subject 13: `1.0126` became `1.012.600`; the header has semicolons, too."""
    load_source.cache_clear()
    lines = rows()
    cells = lines[7].split(";")
    lines[7] = ";".join([*cells[:3], "1.012.600", *cells[4:], "", ""])
    path = write(data, "13", "Hopping", lines)
    path.write_text(path.read_text().replace("\n   \n", "\n   ;;;;;;;\n"))
    source = load(data)
    assert source.group_names == ("02", "01") and len(source.train) == 48
    (doubt,) = source.doubts
    assert doubt.topic == "file" and f"as in {path.name}, line 13: '1.012.600'" in doubt.text
    assert "1 trials of subject 13 are left out" in doubt.text and doubt.text in caplog.text
    options = LoadOptions(path=str(data), series=SHORT)
    assert doubt in check("umafall", options).doubts


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("40;2;0.04;0;1.0;0;0", "40;2;0.04;0;nan;0;0", "line 8: nan is not a finite number"),
        ("40;2;0.04;0;1.0;0;0", "40;2;0.04;0;x;0;0", "line 8: 'x' is not a number"),
        ("40;2;0.04;0;1.0;0;0", "40;2;0.04;0;0;0", "line 8: 6 columns, expected 7"),
        ("40;2;0.04;0;1.0;0;0", "40;2;0.04;0;0;1;0", "line 8: its kind or place is unknown"),
        ("40;2;0.04;0;1.0;0;0", "10;2;0.04;0;0;0;0", "line 8: its time is before the last"),
    ],
)
def test_wrong_lines_are_refused(data, old, new, problem):
    path = write(data, "02", "Walking", rows())
    text = path.read_text()
    assert f"\n{old}\n" in text
    path.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
    assert f"{path.name}: {problem}" in refused(data)


def test_what_is_no_trial_is_refused(data, tmp_path_factory):
    path = write(data, "02", "Swimming", rows())
    assert f"{path.name}: it is not named like a trial of Aplausing" in refused(data)
    path.rename(path.with_name("notes.csv"))  # is nobody's business
    with pytest.raises(DataError, match="there is no line of numbers"):
        read_trial(b"% nothing\n")
    with pytest.raises(DataError, match="no rows of a sensor that moved"):
        read_trial(b"0;0;1;1;1;0;0\n5;1;1;1;1;0;0\n")
    path = write(data, "01", "Walking", [])
    assert f"{path.name}: there is no line of numbers" in refused(data)
    path.unlink()
    lacks = "the test subjects have no window of walking"
    assert lacks in refused(data) and "allowed: shorter ones" in refused(data)
    nothing = str(tmp_path_factory.mktemp("nothing"))
    told = refused(Path(nothing))
    assert "umafall.tar.xz: it cannot be read: No such file" in told and "figshare" in told


def test_the_archive_is_read_without_unpacking_it(data, tmp_path_factory):
    """Whatever the paths in it: names count alone, and nothing is written."""
    load_source.cache_clear()
    root = tmp_path_factory.mktemp("packed")
    archive = root / "there" / "umafall.tar.xz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:xz") as members:
        for path in sorted((data / "umafall").iterdir(), reverse=True):
            members.add(path, f"../../{path.name}")
        for name in ("/etc/notes.csv", "._UMAFall_x.csv"):
            members.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("UMAFall_link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members.addfile(link)
    found, expected = load(archive.parent), load(data)
    assert [p.name for p in root.rglob("*")] == ["there", "umafall.tar.xz"]
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(x, other.inputs[name]) for name, x in one.inputs.items())
    archive.write_bytes(archive.read_bytes()[:-500])
    assert "umafall.tar.xz: it cannot be read" in refused(archive.parent)
    archive.write_bytes(b"no archive")
    assert "umafall.tar.xz: it cannot be read" in refused(archive.parent)


def test_the_first_look_takes_its_options(data):
    words = ["data", "check", str(data), "--dataset", "umafall", "--set", "umafall.task=falls"]
    words += ["--set", "series.window-s=0.5"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "no fall" in done.output, done.output


def test_a_run_of_it(data, tmp_path):
    words = ["examples/quickstart", "--workers", "0", "--set", "method=dpsgd"]
    for setting in (
        "dataset=umafall", f"data-path={data}", "partition=natural", "modality-pattern=auto",
        "num-nodes=1", "topology=complete", "series.window-s=0.5", "series.rate-hz=10",
        "umafall.task=falls", "num-server-rounds=1", "compare-with=", f"run-dir={tmp_path}",
        "data-cache=false",
    ):  # fmt: skip
        words += ["--set", setting]
    for more in ([], ["--describe"]):
        done = CliRunner().invoke(app, ["simulate", *words, *more], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output


# The published archive


def test_counts_of_the_published_archive(real_data, caplog):
    """As in docs/datasets.md."""
    if not (real_data / "umafall.tar.xz").exists():
        pytest.skip("umafall.tar.xz is not there")
    load_source.cache_clear()
    source = load(real_data, SeriesOptions())
    assert len(source.train) == 1705 and len(source.test) == 360
    assert source.modalities["ankle-mag"].shape == (3, 250)
    trained, tested = (
        Counter(source.class_names[k] for k in part.labels.tolist())
        for part in (source.train, source.test)
    )
    assert trained["walking"] == 196 and trained["going upstairs"] == 60
    assert min(tested.values()) == 12 and max(tested.values()) == 44
    assert len(source.group_names) == 18 and source.group_names[-4:] == TEST_SUBJECTS
    present = source.train.present
    assert present is not None and present["pocket-acc"].all() and present["wrist-gyro"].all()
    assert int((~present["waist-acc"]).sum()) == 272
    (doubt,) = source.doubts
    assert "20 trials of subject 13 are left out" in doubt.text and doubt.text in caplog.text
