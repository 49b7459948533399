"""The cache of data sets: whatever its files hold, what is loaded is what was read."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzzing import UNCHANGED, fuzz, of_file, of_values

from flwr_dmml.base.machine import CACHE
from flwr_dmml.data import DataError, Modality, Samples, Source, known
from flwr_dmml.data.cache import cached, read_record
from flwr_dmml.data.known import read_known
from flwr_dmml.data.store import map_source


def make_source() -> Source:
    x, labels = torch.arange(24.0).reshape(6, 2, 2), torch.arange(6) % 3
    has = {"v": torch.tensor([True, False, True, True])}
    train = Samples({"v": x[:4]}, labels[:4], groups=torch.arange(4), present=has)
    kinds = {"v": Modality("vector", (2, 2))}
    return Source("made", kinds, 3, train, Samples({"v": x[4:]}, labels[4:]), ("a", "b", "c"))


def load(root: Path) -> Source:
    options = {"snr_db": 0.0}
    return cached("made", options, root, [root / "numbers.txt"], make_source, make_source)


@pytest.fixture
def files(
    memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> dict[str, Path]:
    """The files of a cache with one entry, by their suffixes, beside the data."""
    caplog.set_level(logging.CRITICAL, "flwr")
    monkeypatch.setattr(known, "_TICK_NS", 0)
    monkeypatch.setenv(CACHE, str(memory / "cache"))
    (memory / "numbers.txt").write_text("1 2 3")
    load(memory)
    return {file.suffix: file for file in (memory / "cache").iterdir()}


READERS = {
    ".safetensors": map_source,
    ".json": lambda file: read_record(file.with_suffix(".safetensors")),
    ".files": partial(read_known, count=1),
}


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_of_the_cache(
    files: dict[str, Path], suffix: str, pytestconfig: pytest.Config
) -> None:
    file, example = files[suffix], files[suffix].read_bytes()
    parse = of_file(file, lambda: READERS[suffix](file), DataError)
    fuzz(parse, (DataError,), [example], pytestconfig)


def test_a_record_of_odd_values(files: dict[str, Path], pytestconfig: pytest.Config) -> None:
    file = files[".json"]
    parse = of_values(file, lambda: READERS[".json"](file), DataError)
    fuzz(parse, (DataError,), [UNCHANGED], pytestconfig)


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_loaded_is_always_right(
    files: dict[str, Path], suffix: str, pytestconfig: pytest.Config
) -> None:
    file, example, right = files[suffix], files[suffix].read_bytes(), make_source()

    def parse(data: bytes) -> None:
        other = file.with_name("written")  # what is mapped must not be cut
        other.write_bytes(data)
        other.replace(file)
        found = load(file.parent.parent)
        assert found.modalities == right.modalities and found.class_names == right.class_names
        for a, b in ((found.train, right.train), (found.test, right.test)):
            assert torch.equal(a.inputs["v"], b.inputs["v"]) and torch.equal(a.labels, b.labels)

    fuzz(parse, (), [example], pytestconfig, inputs=100)
