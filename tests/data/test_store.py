"""Data sets that processes share."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flwr_dmml.data.options import LoadOptions
from flwr_dmml.data.registry import load_source
from flwr_dmml.data.samples import Modality, Samples, Source
from flwr_dmml.data.store import FOLDER, shared


def make_source() -> Source:
    x = torch.arange(24.0).reshape(6, 2, 2)
    has = torch.tensor([True, False, True, True])
    labels = torch.arange(6) % 3
    train = Samples({"v": x[:4]}, labels[:4], groups=torch.arange(4), present={"v": has})
    kinds = {"v": Modality("vector", (2, 2))}
    windows = torch.arange(12).reshape(4, 3)
    test = Samples({"v": x[4:]}, labels[4:])
    return Source("made", kinds, 3, train, test, windows=windows)


def same(a: Samples, b: Samples) -> bool:
    pairs = [(a.labels, b.labels), *((a.inputs[m], b.inputs[m]) for m in a.inputs)]
    if a.groups is not None and b.groups is not None:
        pairs.append((a.groups, b.groups))
    pairs += [(has, (b.present or {})[m]) for m, has in (a.present or {}).items()]
    lacks = (a.groups is None) == (b.groups is None) and (a.present is None) == (b.present is None)
    return lacks and all(torch.equal(x, y) for x, y in pairs)


def test_without_a_store_every_process_loads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(FOLDER, raising=False)
    source = make_source()
    assert shared("made", lambda: source) is source


def test_what_one_has_loaded_the_next_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "store"))
    source = make_source()
    for load in (lambda: source, lambda: pytest.fail("loaded again")):
        mapped = shared("made", load)
        assert (mapped.name, mapped.num_classes) == ("made", 3)
        assert mapped.modalities == source.modalities
        assert same(mapped.train, source.train) and same(mapped.test, source.test)
        assert mapped.windows is not None and source.windows is not None
        assert torch.equal(mapped.windows, source.windows)


def test_training_and_test_samples_may_be_the_same_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    made = make_source()
    source = replace(made, test=replace(made.train, groups=made.train.labels))
    mapped = shared("twice", lambda: source)
    assert same(mapped.train, source.train) and same(mapped.test, source.test)


def test_other_options_are_another_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    shared("made, seed 0", make_source)
    calls = list[int]()
    shared("made, seed 1", lambda: calls.append(1) or make_source())  # type: ignore[func-returns-value]
    assert calls == [1]


def test_a_load_that_fails_leaves_nothing_half_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(FOLDER, str(tmp_path))

    def fail() -> Source:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        shared("made", fail)
    assert same(shared("made", make_source).train, make_source().train)


def test_a_store_that_cannot_be_written_costs_only_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "store"))
    source = make_source()
    assert shared("made", lambda: source) is source
    (record,) = caplog.records
    assert record.getMessage().startswith("made is not shared: ")


def test_what_is_cut_in_the_store_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    shared("made", make_source)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert same(shared("made", make_source).train, make_source().train)
    (record,) = caplog.records
    assert f"'{file}' is damaged" in record.getMessage()


def count_loads(folder: str) -> float:
    import os

    os.environ[FOLDER] = folder
    return float(load_source("digits", LoadOptions()).train.inputs["image"].sum())


def test_processes_that_ask_at_once_wait_for_the_first(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(count_loads, [str(tmp_path)] * 2)
    assert first == second
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and not list(tmp_path.glob("*.part"))
