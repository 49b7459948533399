"""docs/howto/published-recordings.md: every script, on small files in the published layouts."""

import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.data import LoadOptions, Source, find_dataset
from flwr_dmml.data.options import SeriesOptions

PAGE = ROOT / "docs" / "howto" / "published-recordings.md"
ONE_SECOND = SeriesOptions(window_s=1.0, overlap=0.0, rate_hz=20.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is, with the files of the page."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def converted(script: str, name: str, series: SeriesOptions = ONE_SECOND) -> Source:
    subprocess.run([sys.executable, script], check=True)
    return find_dataset("folder").load(LoadOptions(path=name, series=series))


def pamap2(person: str) -> None:
    """3 s of lying, 1 s of nothing and 3 s of walking; in the last second the ankle is missing.

    Column k of a line (from 0) is 100 k + t, before it is standardised.
    """
    lines = []
    for row in range(700):
        t = row / 100
        code = 1 if t < 3 else 0 if t < 4 else 4
        numbers = [f"{100 * k + t:.2f}" for k in range(54)]
        numbers[0], numbers[1] = f"{t + 8:.2f}", str(code)
        if row % 11:
            numbers[2] = "NaN"
        if t >= 6:
            numbers[37:] = ["NaN"] * 17
        lines.append(" ".join(numbers))
    write(Path(f"PAMAP2_Dataset/Protocol/{person}.dat"), lines)


def test_pamap2(folder: Path):
    for person in ("subject101", "subject102", "subject105"):
        pamap2(person)
    source = converted("pamap2.py", "pamap2")
    assert tuple(source.modalities) == (
        "heart",
        *(f"{place}-{s}" for place in ("hand", "chest", "ankle") for s in ("acc", "gyro", "mag")),
    )
    assert source.modalities["heart"].shape == (1, 20)
    assert source.modalities["chest-mag"].shape == (3, 20)
    assert source.class_names == ("lying", "walking")
    assert source.group_names == ("subject101", "subject102", "subject105")
    # The heart rate is there at 4.07 s and after, the ankle until 5.99 s: one second of walking.
    assert source.train.labels.tolist() == [0, 0, 0, 1] * 2
    assert source.test.labels.tolist() == [0, 0, 0, 1]
    mean = source.scales["ankle-gyro"].mean
    walked = (3 * 1.475 + 4.07 + 0.475) / 4
    assert mean == pytest.approx([100 * k + walked for k in (44, 45, 46)], abs=1e-3)
    make, look, simulate = commands(PAGE)
    assert make == "python pamap2.py"
    small = " --set num-nodes=2 --set num-server-rounds=1 --set validation-fraction=0"
    for line in (look, f"{simulate}{small} --set compare-with= --workers 0"):
        line = line.replace("window-s=2.56", "window-s=1")
        done = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output


def test_mhealth(folder: Path):
    """2 s of nothing, then 3 s each of standing (1) and jumping (12); column k is k + t / 10."""
    for person in ("mHealth_subject1", "mHealth_subject3"):
        lines = []
        for row in range(400):
            code = 0 if row < 100 else 1 if row < 250 else 12
            lines.append("\t".join([*(f"{k + row / 500:.4f}" for k in range(23)), str(code)]))
        write(Path(f"MHEALTHDATASET/{person}.log"), lines)
    source = converted("mhealth.py", "mhealth")
    assert list(source.modalities) == [
        *("chest-acc", "ecg", "ankle-acc", "ankle-gyro", "ankle-mag"),
        *("arm-acc", "arm-gyro", "arm-mag"),
    ]
    assert source.class_names == ("jumping", "standing") and len(source.test) == 6
    assert source.train.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert source.modalities["ecg"].shape == (2, 20)
    means = {name: scale.mean[0] for name, scale in source.scales.items()}
    assert means["arm-mag"] - means["ecg"] == pytest.approx(20 - 3, abs=1e-5)


def test_motionsense(folder: Path):
    """The published header, with pandas' row numbers; column k is k + t."""
    parts = ("attitude", "gravity", "rotationRate", "userAcceleration")
    axes = [("roll", "pitch", "yaw"), *[("x", "y", "z")] * 3]
    names = [f"{part}.{axis}" for part, of in zip(parts, axes, strict=True) for axis in of]
    lines = [
        ",".join([str(row), *(f"{k + row / 50:.4f}" for k in range(12))]) for row in range(151)
    ]
    for trial in ("dws_1", "wlk_15", "std_6"):
        for person in ("sub_1", "sub_3", "sub_24"):
            path = folder / "A_DeviceMotion_data" / trial / f"{person}.csv"
            write(path, [",".join(["", *names]), *lines])
    source = converted("motionsense.py", "A_DeviceMotion_data")
    assert source.class_names == ("downstairs", "standing", "walking")
    assert source.group_names == ("sub_1", "sub_24", "sub_3")
    assert len(source.train) == 2 * 3 * 3 and len(source.test) == 3 * 3
    first = {name: x[0, :, 0].tolist() for name, x in source.train.inputs.items()}
    assert first == {"acceleration": [9, 10, 11], "gravity": [3, 4, 5], "rotation": [6, 7, 8]}
    assert source.train.inputs["gravity"][1, 0].numpy() == pytest.approx(4 + np.arange(20) / 20)


def test_wisdm(folder: Path):
    """Walking after jogging, by the clock; phone and watch have clocks of their own."""
    for person in (1600, 1603):
        for device, zero in (("phone", 252207666810782), ("watch", 90426708196641)):
            for sensor, late in (("accel", 0), ("gyro", 7_000_000)):
                lines = []
                for code, start_s in (("A", 500), ("B", 20)):
                    for row in range(100):
                        t = zero + late + 10**9 * start_s + row * 50_000_000
                        lines.append(f"{person},{code},{t},{row / 20},{ord(code)},-1.5;")
                name = f"data_{person}_{sensor}_{device}.txt"
                write(Path(f"wisdm-dataset/raw/{device}/{sensor}/{name}"), lines)
    source = converted("wisdm.py", "wisdm")
    assert set(source.modalities) == {"phone-accel", "phone-gyro", "watch-accel", "watch-gyro"}
    assert source.class_names == ("jogging", "walking") and source.group_names == ("1600", "1603")
    # 99 samples of both sensors: four windows, for each of two activities and devices.
    assert len(source.train) == 16 and len(source.test) == 16
    present = source.train.present
    assert present is not None and present["phone-accel"].sum() == present["watch-gyro"].sum() == 8
    assert not bool((present["phone-accel"] & present["watch-accel"]).any())
    assert bool((present["phone-accel"] == present["phone-gyro"]).all())


def test_umafall_by_way_of_a_folder_is_the_built_in_data_set(folder: Path, real_data: Path):
    """Some people of the published archive: equal tensors, in the same order."""
    archive = real_data / "umafall.tar.xz"
    if not archive.exists():
        pytest.skip("umafall.tar.xz is not there")
    people = ("01", "02", "06", "08", "09", "10", "13")
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            name = Path(member.name).name
            if member.isfile() and "_ADL_" in name and name.split("_")[2] in people:
                path = folder / "UMAFall_Dataset" / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(members.extractfile(member).read())
    series = SeriesOptions(window_s=5.0)
    ours = converted("umafall.py", "umafall", series)
    theirs = find_dataset("umafall").load(LoadOptions(path="UMAFall_Dataset", series=series))
    assert ours.class_names == theirs.class_names and len(ours.train) > 150
    for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        people_of = [
            [source.group_names[k] for k in part.groups.tolist()]
            for source, part in ((ours, one), (theirs, other))
        ]
        assert people_of[0] == people_of[1] and torch.equal(one.labels, other.labels)
        assert one.inputs.keys() == other.inputs.keys()
        for name, x in one.inputs.items():
            assert torch.equal(x, other.inputs[name]), name
            assert torch.equal(one.present[name], other.present[name]), name
