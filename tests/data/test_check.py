"""A first look at data: what is understood, what is doubtful, and standardising as the remedy."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.data import (
    LoadOptions,
    Modality,
    PartitionOptions,
    Samples,
    Source,
    find_dataset,
    load_partition,
    load_source,
)
from flwr_dmml.data.check import Checked, check
from flwr_dmml.data.sets.parts import load_part, save_part
from flwr_dmml.data.standard import ranges_of, standardised
from flwr_dmml.data.store import map_source, save_source


def folder(root: Path, head: str, *rows: str, toml: str = "") -> Path:
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_text("\n".join([head, *rows]) + "\n")
    if toml:
        (root / "dataset.toml").write_text(toml)
    return root


def look(root: Path, dataset: str = "folder") -> Checked:
    return check(dataset, LoadOptions(path=str(root)))


def doubts(root: Path, dataset: str = "folder") -> str:
    found = look(root, dataset)
    assert not found.problem
    return "\n".join(doubt.text for doubt in found.doubts)


def sheet(found: Checked, title: str) -> list[tuple[str, ...]]:
    return [tuple(row) for s in found.sheets if s.title == title for row in s.rows]


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    """Series of ten steps: time stamps, an index, a constant, large numbers, and two sound ones."""
    draw = np.random.default_rng(0)
    rows = []
    for k in range(8):
        noise = draw.normal(size=(10, 3)) * [1, 50, 1] + [0, 1000, 0]
        lines = [
            f"{1_700_000_000_000 + 20 * i},{i},7,{a},{b},{c}" for i, (a, b, c) in enumerate(noise)
        ]
        (tmp_path / f"{k}.csv").write_text("time,n,on,x,pressure,y\n" + "\n".join(lines))
        rows.append(
            f"{k}.csv,{'ab'[k % 2]},{'train' if k < 6 else 'test'},{'' if k > 5 else k % 3}"
        )
    return folder(tmp_path, "imu,label,split,node", *rows)


def test_what_is_understood(sensors):
    found = look(sensors)
    assert sheet(found, "Columns") == [
        ("label", "labels", "8 of 8"),
        ("split", "splits", "8 of 8"),
        ("node", "nodes", "6 of 8"),
        ("imu", "modality, by its files", "8 of 8"),
    ]
    assert sheet(found, "Rows") == [("test", "test", "2"), ("train", "train", "6")]
    assert sheet(found, "Classes") == [("a", "3", "1"), ("b", "3", "1"), ("all", "6", "2")]
    assert sheet(found, "Modalities") == [("imu", "series", "6 x 10", "", "0.0%", "0.0%")]
    assert sheet(found, "Files")[1] == ("imu", "channels", "time, n, on, x, pressure, y")
    values = sheet(found, "Values in training")
    assert [row[1] for row in values] == ["1 time", "2 n", "3 on", "4 x", "5 pressure", "6 y"]
    assert values[1][2:5] == ("0", "9", "4.5") and values[1][5] == f"{math.sqrt(8.25):.4g}"
    tested = sheet(found, "Values in testing")
    assert [row[1] for row in tested] == [row[1] for row in values]
    assert tested[1] == values[1] and tested[4] != values[4]


def test_channels_that_are_no_measurements_are_doubted(sensors):
    told = doubts(sensors)
    for text in (
        "imu: channel 1 (time) from 1.7e+12 on: time stamps?",
        "imu: channel 2 (n) only rises from step to step",
        "imu: channel 3 (on) never changes",
        "imu: channel 5 (pressure) far from 1 (mean 1e+03",
    ):
        assert text in told
    assert "(x)" not in told and "(y)" not in told and told.count("\n") == 3


def test_a_run_says_the_same_in_its_log_also_from_the_cache(sensors, caplog, monkeypatch):
    monkeypatch.setenv("FLWR_DMML_CACHE", str(sensors / "cache"))
    for _ in range(2):
        load_source.cache_clear()
        caplog.clear()
        load_source("folder", LoadOptions(path=str(sensors)))
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(told) == 4 and told[0].startswith("folder: imu: channel 1 (time) from 1.7e")
    load_source.cache_clear()


def test_chosen_channels_have_nothing_doubtful(sensors):
    (sensors / "dataset.toml").write_text('[channels]\nimu = ["y", "x"]')
    found = look(sensors)
    assert not found.doubts and [row[1] for row in sheet(found, "Values in training")] == [
        "1 y",
        "2 x",
    ]
    assert sheet(found, "Modalities") == [("imu", "series", "2 x 10", "", "0.0%", "0.0%")]


def test_samples_that_are_doubtful(tmp_path):
    hum = np.sin(np.arange(48_000) / 3) * 0.5
    for name, wave in {
        "a": hum, "b": 0.4 * hum, "silent": 0 * hum, "loud": np.clip(4 * hum, -1, 1),
    }.items():  # fmt: skip
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
    soundfile.write(tmp_path / "twice.wav", np.stack([hum, -hum], 1)[:20_000], 8_000)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    (
        Image.fromarray(noise).save(tmp_path / "a.png"),
        Image.new("RGB", (9, 9), "red").save(tmp_path / "r.png"),
    )
    root = folder(
        tmp_path, "photo,song,label,split",
        "a.png,a.wav,Wren,train", ",loud.wav,wren,train", "r.png,twice.wav,tit,train",
        ",silent.wav,tit,train",
        "a.png,a.wav,Wren,test", ",b.wav,wren,test",
    )  # fmt: skip
    empty, memory = "leave the cells empty, if nothing was recorded", "the test then rewards memory"
    loudest = "of which the loudest is taken"
    crop = "with audio.seconds = 1 the middle 1 s is kept; set audio.seconds"
    twin = "1 test samples are equal to training samples (line 6 as line 2)"
    assert doubts(root).splitlines() == [
        "no test sample is of class tit",
        "the classes Wren, wren are spelled alike: one class? Write them alike",
        f"photo: 1 samples are of one colour (line 4); {empty}",
        f"photo: {twin}: {memory}",
        f"song: 1 samples are silent (line 5); {empty}",
        f"song: {twin}: {memory}",
        f"song: sounds last 3.00 s (median), and {crop}",
        f"song: 1 sounds have channels that cancel out, {loudest} (line 4, twice.wav)",
        "song: 1 sounds are clipped: recorded too loud (line 3, loud.wav)",
    ]  # fmt: skip
    files = {row[:2]: row[2] for row in sheet(look(root), "Files")}
    assert files["photo", "pixels"] == "1 of 30 x 40, 1 of 9 x 9"
    assert files["song", "rate, Hz"] == "4 of 16000, 1 of 8000"
    assert files["song", "length, s"] == "2.50 to 3.00, median 3.00"


def test_a_folder_that_cannot_be_used_shows_its_rows_and_the_reason(sensors):
    rows = (sensors / "manifest.csv").read_text().replace("7.csv,b,test", "8.csv,b,dev")
    (sensors / "manifest.csv").write_text(rows)
    found = look(sensors)
    assert sheet(found, "Rows") == [
        ("dev", "dev", "1"),
        ("test", "test", "1"),
        ("train", "train", "6"),
    ]
    assert "line 9: its split is 'dev'; allowed: train, test (for others, [splits]" in found.problem
    assert "line 9, imu '8.csv': there is no such file" in found.problem
    (sensors / "dataset.toml").write_text('[splits]\ndev = "out"')
    assert not look(sensors).problem and sheet(look(sensors), "Rows")[0] == ("dev", "out", "1")


def test_other_data_sets_are_looked_at_too(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "id,label,split\n" + "".join(f"{i},{i % 2},train\n" for i in range(6)) + "z,0,test\n"
    )
    (tmp_path / "f.csv").write_text(
        "id,n,x\n" + "".join(f"{i},{i},{(i - 3) ** 2}\n" for i in [*range(6)]) + "z,9,3\n"
    )
    (tmp_path / "video.npz").write_bytes(b"")
    told = doubts(tmp_path, "feature-table")
    assert "f: column 1 (n) only rises from step to step, or row to row" in told
    assert "video.npz is not read; write it as CSV or .npy" in told
    assert sheet(check("digits", LoadOptions()), "Classes")[-1] == ("all", "1,437", "360")


def test_what_is_of_one_kind_is_standardised_by_the_training_samples():
    """By hand: of 1, 3 and 5, 5 the mean 2, 5 and the deviation 1, 0; the latter counts as 1."""
    v = torch.tensor([[1.0, 5.0], [3.0, 5.0], [0.0, 0.0]])
    steps = torch.tensor([[[2.0, 4.0], [1, 1]], [[6.0, 0.0], [1, 0]], [[0.0, 0], [0, 0]]])
    image = torch.rand(3, 1, 4, 4)
    present = {m: torch.tensor([True, True, m == "i"]) for m in "vsi"}
    train = Samples({"v": v, "s": steps, "i": image}, torch.tensor([0, 1, 0]), None, present)
    test = Samples({"v": v[:1] + 1, "s": steps[:1], "i": image[:1]}, torch.tensor([0]))
    forms = {
        "v": Modality("vector", (2,)),
        "s": Modality("sequence", (2, 2)),
        "i": Modality("image", (1, 4, 4)),
    }
    source = Source("x", forms, 2, train, test)
    found = standardised(source)
    assert found.scales["v"].mean == (2, 5) and found.scales["v"].deviation == (1, 1)
    assert found.scales["s"].mean == (4, 0)  # of 2, 4 and 6
    assert found.scales["s"].deviation == pytest.approx((math.sqrt(8 / 3), 1))
    assert found.train.inputs["v"].tolist() == [[-1, 0], [1, 0], [0, 0]]
    assert found.test.inputs["v"].tolist() == [[0, 1]]
    a = 2 / math.sqrt(8 / 3)
    assert torch.allclose(
        found.train.inputs["s"],
        torch.tensor([[[-a, 0], [1, 1]], [[a, 0], [1, 0]], [[0, 0], [0, 0]]]),
    )
    assert found.train.inputs["i"] is image and set(found.scales) == {"v", "s"}
    assert standardised(found) is found


def test_large_numbers_are_standardised_without_loss():
    x = torch.arange(5000.0)[:, None] + 1e7  # exact in float32, their sum is not
    source = Source(
        "x", {"v": Modality("vector", (1,))}, 2, *[Samples({"v": x}, torch.arange(5000) % 2)] * 2
    )
    found = standardised(source)
    assert found.scales["v"].mean == (1e7 + 2499.5,)
    (only,) = ranges_of(found.train, "v", source.modalities["v"])
    assert abs(only.mean) < 1e-6 and only.deviation == pytest.approx(1)


def test_the_setting_and_the_description_standardise_alike_and_it_is_kept(
    sensors, tmp_path_factory
):
    plain = LoadOptions(path=str(sensors), cache=False)
    by_setting = load_source(
        "folder", LoadOptions(path=str(sensors), cache=False, standardise="auto")
    )
    (sensors / "dataset.toml").write_text('standardise = "auto"')
    source = find_dataset("folder").load(plain)
    assert source.scales == by_setting.scales and set(source.scales) == {"imu"}
    assert torch.equal(source.test.inputs["imu"], by_setting.test.inputs["imu"])
    assert [d.topic for d in source.doubts] == ["channel"] * 3
    scratch = tmp_path_factory.mktemp("kept")
    save_source(source, scratch / "a")
    assert map_source(scratch / "a").scales == source.scales
    assert map_source(scratch / "a").doubts == source.doubts
    part = load_partition(
        PartitionOptions("folder", 3, plain, scheme="natural", modality_pattern="auto"), 1
    )
    assert part.scales == source.scales
    save_part(scratch / "part", part, 3, {})
    assert load_part(scratch / "part").scales == source.scales


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "check", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, " ".join(done.output.split())


def test_the_command_shows_a_table_and_mends_what_it_can(sensors):
    status, told = command(sensors, "--html", sensors / "look" / "page.html", "--fix")
    assert status == 0 and "far from 1" in told and 'standardise = "auto"' in told
    page = (sensors / "look" / "page.html").read_text()
    assert "<caption" in page and "5 pressure" in page and "far from 1" in page
    status, told = command(sensors, "--fix")
    assert status == 0 and "far from 1" not in told and "nothing that it can mend" in told
    status, told = command(sensors, "--set", "series.steps=5", "--set", "alpha=2")
    assert status == 1 and "--set alpha: has no influence here; allowed: snr-db" in told
    status, told = command(sensors / "none")
    assert status == 1 and "none': no such folder" in told


def test_fix_leaves_the_rest_of_the_description(sensors):
    (sensors / "dataset.toml").write_text('\ufeff# ours\n[channels]\nimu = ["x", "pressure"]\n')
    assert command(sensors, "--fix")[0] == 0
    text = (sensors / "dataset.toml").read_text()
    assert text == 'standardise = "auto"\n# ours\n[channels]\nimu = ["x", "pressure"]\n'
    (sensors / "dataset.toml").write_text('standardise = "off"')
    status, told = command(sensors, "--fix")
    assert status == 1 and "has a line for standardise already" in told
