"""Files that are written whole or not at all, and what is said where they cannot be."""

import json
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

import numpy as np
import pytest
from helpers import QUICKSTART
from helpers_disk import disk
from helpers_resume import metrics, run
from typer.testing import CliRunner

from flwr_dmml.base.files import WriteError, write_whole, writing
from flwr_dmml.cli import app
from flwr_dmml.report.page import write_page
from flwr_dmml.tracking import RunFolder
from flwr_dmml.tracking.checkpoints import Checkpoint, Checkpoints


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Have this process write no file beyond so many bytes: the system refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_written_whole_and_readable_for_whom_it_should_be(tmp_path: Path):
    file = tmp_path / "a.json"
    write_whole(file, "Müller")
    assert file.read_bytes() == "Müller".encode()
    write_whole(file, b"\x00\xff", 0o600)
    assert file.read_bytes() == b"\x00\xff" and stat.S_IMODE(file.stat().st_mode) == 0o600
    (tmp_path / "a.json.part").symlink_to(tmp_path / "elsewhere")  # is not followed
    write_whole(file, "again")
    assert file.read_text() == "again"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path):
    file = tmp_path / "a.json"
    write_whole(file, "before")
    with no_file_over(1000), pytest.raises(WriteError) as caught:
        write_whole(file, "x" * 1001)
    assert str(caught.value) == (
        f"{file} cannot be written: File too large; raise the limit on the size of a file (ulimit "
        "-f)"
    )
    assert file.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_said_with_what_to_do():
    file = Path("/dev/full")
    if not file.exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(WriteError) as caught, writing(file), file.open("w") as opened:
        opened.write("x")
    said = "/dev/full cannot be written: No space left on device; free space on that disk"
    assert str(caught.value) == said


@pytest.mark.parametrize(("where", "what"), [("gone/a.json", "its folder is gone"), ("", "Is a")])
def test_a_folder_that_is_not_there_or_is_no_file(where: str, what: str, tmp_path: Path):
    with pytest.raises(WriteError, match=what) as caught:
        write_whole(tmp_path / where, "x")
    assert str(tmp_path / where) in str(caught.value)


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path):
    with no_file_over(1000), pytest.raises(WriteError, match=r"report\.html cannot be written"):
        write_page(tmp_path / "report.html", "x" * 2000)


# ---- checkpoints ----------------------------------------------------------------------------


def checkpoint(server_round: int, numbers: int) -> Checkpoint:
    return Checkpoint(server_round, {"round": server_round}, {0: {"a": np.zeros(numbers)}}, {})


@pytest.mark.parametrize("numbers", [200, 1000])
def test_a_checkpoint_that_does_not_fit_leaves_those_before_it(numbers: int, tmp_path: Path):
    """8 bytes each: the first file of 1,600 is cut off, the first of 8,000 too."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.begin()
    checkpoints.save(checkpoint(1, 10))
    with no_file_over(1000), pytest.raises(WriteError, match=r"nodes\.safetensors cannot be"):
        checkpoints.save(checkpoint(2, numbers))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["round-00001"]
    found = checkpoints.latest()
    assert found is not None and found.server_round == 1


def test_checkpoints_fill_a_disk(tmp_path: Path):
    """20 KB each on 256 KiB, two kept: they go on for ever; ten kept do not fit."""
    with disk(tmp_path / "disk", 256) as place:
        two, many = Checkpoints(place / "two", keep=2), Checkpoints(place / "many", keep=99)
        for server_round in range(1, 31):
            two.save(checkpoint(server_round, 2000))
        with pytest.raises(WriteError, match="No space left on device; free space on that disk"):
            for server_round in range(1, 31):
                many.save(checkpoint(server_round, 2000))
        for checkpoints, last in ((two, 30), (many, server_round - 1)):
            found = checkpoints.latest()
            assert found is not None and found.server_round == last > 1


# ---- whole runs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had room enough."""
    return run(tmp_path_factory.mktemp("runs"), "whole", method="dpsgd")


def simulate(*arguments: str) -> tuple[int, str]:
    command = ["simulate", str(QUICKSTART), "--workers", "0", *arguments]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
    return done.exit_code, " ".join(done.output.split())


def test_a_run_on_a_full_disk_says_which_file_and_how_to_go_on(whole: Path, tmp_path: Path):
    """Two of its four checkpoints fit. Somebody makes room, and it ends as it would have."""
    last = whole / "dpsgd" / "checkpoints" / "round-00004"
    each = sum(path.stat().st_size for path in last.iterdir()) // 1024
    settings = json.loads((whole / "config.json").read_text())
    settings |= {"run-dir": str(tmp_path / "disk"), "run-name": "r", "checkpoint-keep": 50}
    given = [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    with disk(tmp_path / "disk", 100 + each * 5 // 2) as place:
        status, said = simulate(*given)
        shutil.copytree(place / "r", tmp_path / "moved")
    assert status == 1 and "Error: WriteError:" in said and "Traceback" not in said
    assert "cannot be written: No space left on device; free space on that disk" in said
    assert f"then go on with --resume {tmp_path / 'disk' / 'r'}" in said
    left = {path.name for path in (tmp_path / "moved").rglob("*")}
    assert {"round-00001", "round-00002"} < left and "in-use.json" not in left
    assert not any(name.endswith(".part") for name in left)
    status, said = simulate("--resume", str(tmp_path / "moved"))
    assert status == 0, said
    assert "Resumed after round 2" in (tmp_path / "moved" / "log.txt").read_text()
    assert metrics(whole) == metrics(tmp_path / "moved")


def test_a_metrics_file_that_cannot_grow_ends_the_run_with_its_name(whole: Path, tmp_path: Path):
    line = (whole / "dpsgd" / "metrics.jsonl").stat().st_size // 4
    own = {"method": "dpsgd", "checkpoint-every": 0, "keep-models": False}
    with no_file_over(3 * line), pytest.raises(WriteError) as caught:
        run(tmp_path, "cut", **own)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'cut' / 'dpsgd' / 'metrics.jsonl'} cannot be written")
    assert said.endswith(f"then go on with --resume {tmp_path / 'cut'}")
    run(tmp_path, "again", resume="cut", **own)
    assert metrics(whole) == metrics(tmp_path / "cut")


def test_a_log_that_cannot_be_written_ends_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with RunFolder.reopen(tmp_path).in_use():
        for number in range(3):
            getLogger("flwr").warning("line %s", number)
    assert caplog.messages.count(f"{tmp_path / 'log.txt'} cannot be written, and ends here") == 1
    assert [text for text in caplog.messages if "line" in text] == ["line 0", "line 1", "line 2"]
