"""docs/howto/own-data.md, from start to end: files are written and commands run as shown."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, install_metadata
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.data import DataError, LoadOptions, find_dataset
from flwr_dmml.data.sets.parts import part_folder, read_about

PAGE = ROOT / "docs" / "howto" / "own-data.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is, with the files of the page."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> str:
    words = shlex.split(line)
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True)
        return ""
    alone = ["--workers", "0"] if words[1] == "simulate" else []
    done = CliRunner().invoke(app, [*words[1:], *alone], env={"COLUMNS": "200"})
    assert done.exit_code == 0, (line, done.output)
    return done.stdout


def test_the_page_from_start_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """All its commands, in order, but for the engine and pip, whose work is done here."""
    make, look, simulate, report, predict, partition, install, simulate_noise = commands(PAGE)
    run(make)
    assert "song" in (told := run(look)) and "garden" not in told
    manifest = (folder / "birds" / "manifest.csv").read_text()
    assert manifest.count("\n") == 10 and manifest in PAGE.read_text()
    run(simulate)
    for method in ("dpsgd", "dmml-kd"):
        lines = (folder / "runs" / "birds" / method / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["accuracy"] == 1
    run(report)
    assert (folder / "runs" / "birds" / "report.html").stat().st_size > 100_000
    assert run(predict).splitlines()[1].startswith("birds/wren4.wav,wren,")

    run(partition)
    owned = [read_about(part_folder(folder / "bird-parts", k)).modalities for k in range(3)]
    assert owned == [("song", "photo"), ("song",), ("photo",)]

    assert install == "pip install -e ."
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(install_metadata(folder, folder / "installed"))
    run(f"{simulate_noise} --set num-server-rounds=10 --set run-name=noise")
    lines = (folder / "runs" / "noise" / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["accuracy"] > 0.8


def test_the_log_and_the_errors_are_those_of_the_page(folder: Path, caplog):
    blocks = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(), flags=re.DOTALL)
    devices, wrong = blocks
    make, _, simulate, *_ = commands(PAGE)
    run(make)
    caplog.set_level("INFO", logger="flwr")
    run(f"{simulate} --set num-server-rounds=1 --set compare-with=")
    told = [" ".join(record.getMessage().split()) for record in caplog.records]
    assert all(" ".join(line.split()) in told for line in devices.splitlines())

    manifest = folder / "birds" / "manifest.csv"
    lines = manifest.read_text().splitlines()
    lines[2] = lines[2].replace("train", "trian")
    lines[4] = lines[4].replace("tit2.wav", "tut2.wav")
    lines[6] = lines[6].replace("tit3.png", "")
    manifest.write_text("\n".join(lines))
    sound = folder / "birds" / "wren1.wav"
    sound.write_bytes(sound.read_bytes()[:1000])
    with pytest.raises(DataError) as error:
        find_dataset("folder").load(LoadOptions(path="birds"))
    assert str(error.value) == wrong


def test_many_small_series_in_parquet(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra 'simulation'")
    (folder / "many").mkdir()
    monkeypatch.chdir(folder / "many")
    run("python ../many_series.py")
    source = find_dataset("folder").load(LoadOptions(path="."))
    assert source.modalities["imu"].shape == (3, 50) and source.group_names == tuple("012345")
    assert len(source.train) == 40 and len(source.test) == 20 and not source.doubts
