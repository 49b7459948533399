"""Data sets kept on disk."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flwr_dmml.base.machine import CACHE
from flwr_dmml.cli import app
from flwr_dmml.data import DataError, Dataset, LoadOptions, Samples, Source, load_source, registry
from flwr_dmml.data.cache import cached, clear, entries
from flwr_dmml.data.samples import Modality

LOADS: list[float] = []


def read(options: LoadOptions) -> Source:
    """Read ``number.txt``: as many samples as the number in it."""
    LOADS.append(options.snr_db)
    count = int((Path(options.path) / "number.txt").read_text())
    x, labels = torch.arange(2.0 * count).reshape(count, 2), torch.arange(count) % 2
    part = Samples({"v": x}, labels)
    return Source("numbers", {"v": Modality("vector", (2,))}, 2, part, part, ("even", "odd"))


NUMBERS = Dataset(
    "numbers",
    ("v",),
    True,
    False,
    read,
    "for tests",
    files=lambda options: [Path(options.path) / "number.txt"],
    uses=("snr_db",),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data set, found by its name, beside an empty cache."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "find_dataset", lambda name: NUMBERS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "number.txt").write_text("6")
    LOADS.clear()
    return tmp_path / "data"


def load(folder: Path, **options: Any) -> Source:
    """Load as a new process would."""
    load_source.cache_clear()
    return load_source("numbers", LoadOptions(path=str(folder), **options))


def test_the_second_process_reads_the_cache(folder: Path):
    first, second = load(folder), load(folder)
    assert LOADS == [0.0]
    assert torch.equal(first.train.inputs["v"], second.train.inputs["v"])
    assert second.class_names == ("even", "odd") and second.modalities == first.modalities


def test_an_entry_goes_by_content_and_by_the_settings_that_matter(folder: Path):
    load(folder)
    load(folder, seed=3)  # which this data set does not use
    assert len(LOADS) == 1
    load(folder, snr_db=5.0)
    assert len(LOADS) == 2 and len(entries()) == 2
    (folder / "number.txt").write_text("8")
    assert len(load(folder).train) == 8 and len(entries()) == 3


def test_another_folder_with_the_same_content_is_the_same_entry(folder: Path, tmp_path: Path):
    load(folder)
    (tmp_path / "moved").mkdir()
    (folder / "number.txt").rename(tmp_path / "moved" / "number.txt")
    assert len(load(tmp_path / "moved").train) == 6 and len(LOADS) == 1


def test_what_is_switched_off_is_not_kept(folder: Path):
    load(folder, cache=False)
    load(folder, cache=False)
    assert len(LOADS) == 2 and entries() == []


def test_a_load_that_fails_leaves_nothing(folder: Path):
    (folder / "number.txt").write_text("six")
    with pytest.raises(ValueError, match="six"):
        load(folder)
    assert entries() == []


def test_hidden_rows_are_not_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    part = Samples({"v": torch.ones(3, 1, 2, 2)}, torch.zeros(3, dtype=torch.int64))
    source = Source("pictures", {"v": Modality("image", (1, 2, 2))}, 1, part, part)
    pictures = replace(NUMBERS, name="pictures", load=lambda options: source)
    monkeypatch.setattr(registry, "find_dataset", lambda name: pictures)
    hidden, whole = load(folder, image_visible=0.5), load(folder)
    assert float(hidden.train.inputs["v"].sum()) == 6 and float(whole.train.inputs["v"].sum()) == 12
    assert len(entries()) == 1


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    monkeypatch.setenv(CACHE, str(folder / "number.txt"))  # a file is in the way
    assert len(load(folder).train) == 6
    assert "numbers is not cached" in caplog.text


def in_a_process(arguments: tuple[str, str]) -> tuple[int, float]:
    """Load once, and say how often that read the folder."""
    import os

    folder, cache = arguments
    os.environ[CACHE] = cache
    options = LoadOptions(path=folder)
    files = NUMBERS.files(options)  # type: ignore[misc]
    source = cached("numbers", {}, Path(folder), files, read, lambda: read(options))
    return len(LOADS), float(source.train.inputs["v"].sum())


def test_processes_that_ask_at_once_read_once(folder: Path, tmp_path: Path):
    jobs = [(str(folder), str(tmp_path / "both"))] * 2
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        (a, first), (b, second) = pool.map(in_a_process, jobs, chunksize=1)
    assert a + b == 1 and first == second == 66.0


def test_the_command_lists_and_clears(folder: Path):
    load(folder)
    load(folder, snr_db=5.0)
    runner = CliRunner()
    listed = runner.invoke(app, ["cache"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0 and listed.output.count("numbers") == 2
    assert "snr_db=5.0" in listed.output and str(folder.parent / "cache") in listed.output
    assert json.loads(entries()[0].settings) in ({"snr_db": "0.0"}, {"snr_db": "5.0"})
    assert "nothing" in runner.invoke(app, ["cache", "--clear", "digits"]).output
    assert len(entries()) == 2
    cleared = runner.invoke(app, ["cache", "--clear", "numbers"])
    assert cleared.exit_code == 0 and entries() == [] and clear() == []
    assert "empty" in runner.invoke(app, ["cache"]).output


def test_files_of_others_are_left_alone(folder: Path):
    load(folder)
    (folder.parent / "cache" / "notes.safetensors").write_bytes(b"not that")
    assert len(entries()) == 1 and len(clear()) == 1
    assert (folder.parent / "cache" / "notes.safetensors").exists()


def test_real_data_are_read_once(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    options = LoadOptions(path=str(real_data), snr_db=3.0)
    load_source.cache_clear()
    first = load_source("av-digits", options)
    load_source.cache_clear()
    monkeypatch.setattr("soundfile.read", lambda *a, **k: pytest.fail("read again"))
    second = load_source("av-digits", options)
    assert torch.equal(first.test.inputs["audio"], second.test.inputs["audio"])
    load_source.cache_clear()


def test_a_missing_folder_is_still_the_error_it_was(tmp_path: Path):
    with pytest.raises(DataError, match="does not hold the data set av-digits"):
        load_source("av-digits", LoadOptions(path=str(tmp_path)))
