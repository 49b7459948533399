"""Data sets kept on disk."""

import fcntl
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flwr_dmml.base.libraries import require
from flwr_dmml.base.machine import CACHE, cache_folder
from flwr_dmml.cli import app
from flwr_dmml.data import (
    DataError,
    Dataset,
    LoadOptions,
    Samples,
    Source,
    known,
    load_source,
    registry,
)
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


def test_a_cache_that_cannot_be_written_is_said_once_and_does_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    monkeypatch.setenv(CACHE, str(folder / "number.txt"))  # a file is in the way
    monkeypatch.setattr(known, "_TICK_NS", 0)
    assert len(load(folder).train) == 6
    assert caplog.text.count("numbers is not cached") == 1 == len(caplog.records)


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Let this process write no larger files; it is told so as by a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("count", [0, 100])
def test_a_full_disk_is_said_once_and_costs_only_the_entry(
    folder: Path,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(known, "_TICK_NS", 0)
    caplog.set_level("WARNING", logger="flwr")
    with capsys.disabled(), files_of_at_most(count):
        source = load(folder)
    assert float(source.train.inputs["v"].sum()) == 66
    (record,) = caplog.records
    assert "numbers is not cached" in record.getMessage()
    assert str(folder.parent / "cache") in record.getMessage()
    assert list((folder.parent / "cache").iterdir()) == []
    load(folder)
    assert len(entries()) == 2 and len(caplog.records) == 1


def changed(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file in place, and let its size and the time of its last change be the same."""
    before = file.stat()
    content = change(file.read_bytes())
    with file.open("r+b") as opened:
        opened.truncate(len(content))
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut": (".safetensors", lambda data: data[:-1], "bytes of"),
    "empty": (".safetensors", lambda data: b"", "it has 0 bytes"),
    "longer": (".safetensors", lambda data: data + b"\0", "bytes of"),
    "header": (".safetensors", lambda data: data.replace(b"odd", b"add"), "its header is not"),
    "content": (".safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its content is"),
    "record cut": (".json", lambda data: data[:-1], "damaged: all of it"),
    "record empty": (".json", lambda data: b"", "damaged: all of it"),
    "record of others": (".json", lambda data: data.replace(b'"size"', b'"site"'), "damaged: size"),
    "files cut": (".files", lambda data: data[:-1], "damaged"),
    "files empty": (".files", lambda data: b"", "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_named_deleted_and_made_again(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(known, "_TICK_NS", 0)
    caplog.set_level("WARNING", logger="flwr")
    first = load(folder).train.inputs["v"].clone()  # it was mapped, and the file is to be cut
    suffix, change, told = DAMAGE[kind]
    (file,) = (folder.parent / "cache").glob(f"*{suffix}")
    changed(file, change)
    assert torch.equal(first, load(folder).train.inputs["v"])
    (record,) = caplog.records
    assert told in record.getMessage() and str(file.with_suffix("")) in record.getMessage()
    assert len(LOADS) == (1 if suffix == ".files" else 2)
    load(folder)
    assert len(caplog.records) == 1 and len(LOADS) <= 2
    assert sorted(entry.kind for entry in entries()) == ["data set", "file list"]


def test_an_entry_without_a_record_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("WARNING", logger="flwr")
    load(folder)
    (record,) = (folder.parent / "cache").glob("*.json")
    record.unlink()  # as if the machine had stopped between the two
    load(folder)
    assert "not finished: it has no record" in caplog.text and len(LOADS) == 2


def test_a_copied_cache_is_read_once_and_then_known(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load(folder)
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "cache").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv(CACHE, str(tmp_path / "copy"))
    read = digested(monkeypatch)
    load(folder)
    load(folder)
    assert len(LOADS) == 1 and read.count(".safetensors") == 1


def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the suffixes of the data files that are read whole from now on."""
    suffixes: list[str] = []
    digest_of = known.digest_of

    def noted(path: Path | str) -> bytes:
        if not str(path).endswith(".py"):
            suffixes.append(Path(path).suffix)
        return digest_of(path)

    monkeypatch.setattr(known, "digest_of", noted)
    monkeypatch.setattr("flwr_dmml.data.cache.digest_of", noted)
    return suffixes


def test_files_that_have_not_changed_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known, "_TICK_NS", 0)
    load(folder)
    read = digested(monkeypatch)
    load(folder)
    assert read == [] and len(LOADS) == 1
    os.utime(folder / "number.txt")  # the time alone: it is read, and found to be the same
    load(folder)
    assert read == [".txt"] and len(LOADS) == 1
    load(folder)
    assert read == [".txt"]


def test_a_file_that_has_just_been_written_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(known, "_TICK_NS", 10**15)
    load(folder)
    read = digested(monkeypatch)
    load(folder)
    assert read == [".txt"] and len(LOADS) == 1


def test_content_changed_in_place_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known, "_TICK_NS", 0)
    load(folder)
    inode = (folder / "number.txt").stat().st_ino
    changed(folder / "number.txt", lambda data: b"8")
    assert (folder / "number.txt").stat().st_ino == inode
    assert len(load(folder).train) == 8


def test_files_that_change_while_they_are_read_are_not_cached(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")

    def slow(options: LoadOptions) -> Source:
        (folder / "number.txt").write_text("10")
        return read(options)

    monkeypatch.setattr(registry, "find_dataset", lambda name: replace(NUMBERS, load=slow))
    assert len(load(folder).train) == 10
    assert "number.txt' was changed while the data set was read" in caplog.text
    assert entries() == []


def test_a_missing_or_odd_file_counts_as_such(folder: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(folder / "pipe")
    odd = [folder / "none", folder / "pipe", folder / ("x" * 300), f"{folder}/null\0", folder]
    files = NUMBERS.files(LoadOptions(path=str(folder)))  # type: ignore[misc]
    more = replace(NUMBERS, files=lambda options: [*files, *odd])
    monkeypatch.setattr(registry, "find_dataset", lambda name: more)
    load(folder)
    load(folder)
    assert len(LOADS) == 1
    (folder / "none").write_text("now there")
    load(folder)
    assert len(LOADS) == 2


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
    assert sorted(entry.settings["snr_db"] for entry in entries()) == ["0.0", "5.0"]
    assert "nothing" in runner.invoke(app, ["cache", "--clear", "digits"]).output
    assert len(entries()) == 2
    cleared = runner.invoke(app, ["cache", "--clear", "numbers"])
    assert cleared.exit_code == 0 and entries() == [] and clear() == []
    assert "empty" in runner.invoke(app, ["cache"]).output


def test_verify_reads_everything_and_deletes_what_is_damaged(folder: Path):
    load(folder)
    load(folder, snr_db=5.0)
    runner = CliRunner()
    whole = runner.invoke(app, ["cache", "--verify"])
    assert whole.exit_code == 0 and "2 data sets" in whole.output
    damaged = next(file for file in (folder.parent / "cache").glob("*.safetensors"))
    known_as = damaged.stat()
    changed(damaged, DAMAGE["content"][1])
    record = damaged.with_suffix(".json")  # as if the disk had changed it, and no clock noticed
    now = damaged.stat()
    record.write_text(record.read_text().replace(str(known_as.st_ctime_ns), str(now.st_ctime_ns)))
    assert {entry.kind for entry in entries()} == {"data set"}
    found = runner.invoke(app, ["cache", "--verify"])
    assert found.exit_code == 1 and "1 damaged data set" in found.output
    assert str(damaged) in found.output and not damaged.exists()
    assert runner.invoke(app, ["cache", "--verify"]).exit_code == 0 and len(entries()) == 1


def test_clear_deletes_what_is_damaged_and_left_over_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(known, "_TICK_NS", 0)
    load(folder)
    load(folder, snr_db=5.0)
    cache = folder.parent / "cache"
    next(cache.glob("*.safetensors")).write_bytes(b"")
    stem = f"numbers-{'0' * 32}"
    for name in (f"{stem}.lock", f"{stem}.safetensors.x1_.part", f"other-{'1' * 32}.part"):
        (cache / name).write_bytes(b"?")
    assert "1 damaged data set" in CliRunner().invoke(app, ["cache"]).output
    of_one = CliRunner().invoke(app, ["cache", "--clear", "numbers"])
    for told in ("1 data set,", "1 damaged data set,", "1 file list,", "1 leftover,", "it has 0 b"):
        assert told in of_one.output, of_one.output
    assert [file.name for file in cache.iterdir()] == [f"other-{'1' * 32}.part"]
    assert "1 leftover, 0 MB deleted" in CliRunner().invoke(app, ["cache", "--clear"]).output
    assert list(cache.iterdir()) == []


def test_what_is_being_written_is_not_cleared(folder: Path):
    load(folder)
    (file,) = (folder.parent / "cache").glob("*.safetensors")
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = CliRunner().invoke(app, ["cache", "--clear"])
        assert "in use, not deleted" in busy.output and file.exists()
    assert "1 data set, 0 MB deleted" in CliRunner().invoke(app, ["cache", "--clear"]).output


def test_a_hit_needs_no_right_to_write(folder: Path, caplog: pytest.LogCaptureFixture):
    load(folder)
    (file,) = (folder.parent / "cache").glob("*.safetensors")
    file.with_suffix(".lock").mkdir()  # which cannot be opened to write
    caplog.clear()
    caplog.set_level("WARNING", logger="flwr")
    load(folder)
    assert len(LOADS) == 1 and not caplog.records


def test_files_of_others_are_left_alone(folder: Path):
    load(folder)
    (folder.parent / "cache" / "notes.safetensors").write_bytes(b"not that")
    assert len(entries()) == 1 and len(clear()) == 1
    assert (folder.parent / "cache" / "notes.safetensors").exists()


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Be a user that has no name, and no home folder; return the folder of temporary files."""
    if os.name != "posix" or os.getuid() != 0:
        pytest.skip("only root can be another user")
    for variable in ("HOME", "XDG_CACHE_HOME", CACHE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.setresuid(54321, 0, 0)
    yield tmp_path
    os.setresuid(0, 0, 0)


@pytest.mark.parametrize("taken", [False, True])
def test_a_user_without_a_name_and_home_gets_a_private_one(
    folder: Path,
    nameless: Path,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("WARNING", logger="flwr")
    with pytest.raises(RuntimeError, match="home"):
        Path.home()
    usual = nameless / f"flwr-dmml-{os.geteuid()}"
    if taken:  # by somebody who would like to put something into our cache
        usual.mkdir()
        usual.chmod(0o777)
    require("numpy")
    assert (Path.home() == usual) is not taken and Path.home().parent == nameless
    assert S_IMODE(Path.home().stat().st_mode) == 0o700
    load(folder)
    load(folder)
    assert len(LOADS) == 1 and cache_folder() == Path.home() / ".cache" / "flwr-dmml"
    (record,) = caplog.records
    assert "HOME is not set, and user 54321 has no name here" in record.getMessage()


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
