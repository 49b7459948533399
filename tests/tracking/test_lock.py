"""The lock on a folder: a second process is told which one has it, and a dead one has nothing."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest
from helpers import QUICKSTART
from helpers_resume import metrics, run
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.strategies import RunStoppedError
from flwr_dmml.tracking import RunFolder, run_folder
from flwr_dmml.tracking.lock import NAME, InUseError, Owner, is_in_use, locked

HOLDER = """
import sys, time
from pathlib import Path
from flwr_dmml.tracking.lock import is_in_use, locked

with locked(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a folder while the block runs; it is let go in good order."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process
        process.stdin.close()
    assert process.returncode in (0, -9)


def test_a_second_process_is_told_which_one_has_it(tmp_path: Path):
    with held(tmp_path) as process:
        with pytest.raises(InUseError) as refused, locked(tmp_path):
            pass
        said = f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} (since "
        assert str(refused.value).startswith(said)
        assert str(refused.value).endswith("): wait until it ends")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(InUseError, match=f"process {os.getpid()} "), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="flwr")
    with held(tmp_path) as process:
        process.kill()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert f"was left by process {process.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_nothing_is_no_hindrance(tmp_path: Path):
    for content in (b"", b"\xff", b"[3]", b'{"pid": "x"}'):
        (tmp_path / NAME).write_bytes(content)
        with locked(tmp_path):
            assert b"ticks" in (tmp_path / NAME).read_bytes()


def test_a_process_is_known_by_its_start(tmp_path: Path):
    """A later process with its number, or another start of the machine, is not the one."""
    with held(tmp_path) as process:
        owner = Owner.model_validate_json((tmp_path / NAME).read_text())
        assert owner.pid == process.pid and not owner.has_ended
        assert owner.model_copy(update={"ticks": owner.ticks + 1}).has_ended
        assert owner.model_copy(update={"boot": "another"}).has_ended
        elsewhere = {"host": "elsewhere", "boot": "another", "ticks": 1}
        assert not owner.model_copy(update=elsewhere).has_ended, "nobody here can know"
    assert owner.has_ended


def test_the_lock_tells_of_an_owner_under_another_machine_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A machine may have had another name when the process died."""
    assert not is_in_use(tmp_path)
    with held(tmp_path) as process:
        assert is_in_use(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "renamed")
            assert is_in_use(tmp_path), "it holds the lock"
        process.kill()
        process.wait()
        assert not is_in_use(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert not is_in_use(tmp_path), "nobody holds the lock"

    def unsupported(*given: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert is_in_use(tmp_path), "nobody can know"


def test_where_the_file_system_has_no_locks_the_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a Lustre without flock: there is none here to try."""

    def unsupported(*given: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with held(tmp_path) as process:
        monkeypatch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(InUseError, match=rf"delete {tmp_path / NAME}$"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    (tmp_path / NAME).write_text(
        Owner(pid=1, host="elsewhere", boot="b", ticks=3, since="then").model_dump_json()
    )
    with pytest.raises(InUseError, match="process 1 on elsewhere"), locked(tmp_path):
        pass


# ---- runs and sweeps ------------------------------------------------------------------------

SHORT = {"method": "dpsgd", "num-server-rounds": 2}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(RunStoppedError):
        run(folder, "stopped", stop_after=1, **SHORT)
    return folder / "stopped"


def simulate(*arguments: str) -> tuple[int, str]:
    command = ["simulate", str(QUICKSTART), "--workers", "0", *arguments]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
    return done.exit_code, " ".join(done.output.split())


def test_a_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen(["sleep", "100"])
    ticks = int(Path(f"/proc/{process.pid}/stat").read_text().split()[21])
    owner = Owner.this_process().model_copy(update={"pid": process.pid, "ticks": ticks})
    assert not owner.has_ended
    process.kill()
    while " Z " not in Path(f"/proc/{process.pid}/stat").read_text():
        pass
    assert owner.has_ended
    process.wait()


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "ENDING_S", 0.0)


def test_a_run_that_goes_on_waits_for_a_process_that_ends(stopped: Path, tmp_path: Path):
    """As one does whose SuperLink was killed a moment ago."""
    place = tmp_path / "r"
    shutil.copytree(stopped, place)
    with held(place) as process:
        assert process.stdin is not None
        Timer(1.0, process.stdin.close).start()
        with RunFolder.reopen(place).in_use():
            assert process.wait(timeout=10) == 0
            assert json.loads((place / NAME).read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("no_wait")
def test_a_run_that_lives_is_not_resumed_beside_it(stopped: Path, tmp_path: Path):
    """Nothing of it is touched. When the other process has ended, it goes on."""
    place = tmp_path / "r"
    shutil.copytree(stopped, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with held(place) as process:
        status, said = simulate("--resume", str(place))
        assert status == 1 and "Traceback" not in said
        assert f"Error: InUseError: {place} is in use by process {process.pid} on" in said
        found = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert found.pop(place / NAME) and found == before
    status, said = simulate("--resume", str(place))
    assert status == 0, said
    run(tmp_path, "whole", **SHORT)
    assert metrics(place) == metrics(tmp_path / "whole")


@pytest.mark.usefixtures("no_wait")
def test_a_run_has_its_folder_for_itself_from_beginning_to_end(tmp_path: Path):
    """A new run as well as one that goes on; stopped, it lets go."""
    tried: list[str] = []

    def try_it(folder: Path) -> None:
        with pytest.raises(InUseError) as refused, RunFolder.reopen(folder).in_use():
            pass
        tried.append(str(refused.value))

    for resume in ("", "r"):
        with pytest.raises(RunStoppedError):
            run(tmp_path, "r", resume=resume, stopping=lambda: not try_it(tmp_path / "r"), **SHORT)
        assert not (tmp_path / "r" / NAME).exists()
    assert len(tried) == 2 and all(f"by process {os.getpid()} on" in said for said in tried)


def test_a_sweep_that_lives_is_not_started_beside_it(tmp_path: Path):
    file = tmp_path / "grid.toml"
    file.write_text(f'app = "{QUICKSTART}"\n[grid]\nseed = [0]\n')
    runs = tmp_path / "runs"
    runs.mkdir()
    command = ["sweep", str(file), "-o", str(runs), "--workers", "0"]
    with held(runs) as process:
        done = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and "Traceback" not in said
        assert f"Error: InUseError: {runs} is in use by process {process.pid} on" in said
        assert [path.name for path in runs.iterdir()] == [NAME]
