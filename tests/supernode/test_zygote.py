"""The zygote and its shim, with a trivial program: real processes, no fleet."""

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flwr_dmml.base.facts import FOLDER
from flwr_dmml.base.programs import ProgramError, program
from flwr_dmml.supernode.device import CLIENTAPP, put_shim, ready_device
from flwr_dmml.supernode.zygote import ZygoteError, check_peer, receive, serve

SERVER = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
from flwr_dmml.supernode.zygote import serve

def about():
    told = {
        "argv": sys.argv, "cwd": os.getcwd(), "pid": os.getpid(), "parent": os.getppid(),
        "env": {k: v for k, v in os.environ.items() if k.startswith("T_")},
        "stdin": sys.stdin.read(), "draw": random.random(),
        "term": signal.getsignal(signal.SIGTERM), "child": signal.getsignal(signal.SIGCHLD),
    }
    print(json.dumps(told))
    print("to stderr", file=sys.stderr)

def run():
    match sys.argv[1:]:
        case ["exit", code]:
            sys.exit(int(code))
        case ["say", text]:
            sys.exit(text)
        case ["raise"]:
            raise ValueError("an error of the program")
        case ["abort"]:
            os.abort()
        case ["wait", file]:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            Path(file).write_text(str(os.getpid()))
            time.sleep(60)
        case _:
            about()

if "threads" in sys.argv:
    thread = threading.Thread(target=time.sleep, args=(60,))
    signal.signal(signal.SIGUSR1, lambda *_: thread.start())
serve(Path(sys.argv[1]), run)
"""
REAL = '#!/bin/sh\necho "the real one: $*"\nexit 5\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's folder with the shim in the place of a program that says it is the real one.

    Its path is longer than that of a socket may be.
    """
    real = tmp_path / "real"
    real.mkdir()
    (real / CLIENTAPP).write_text(REAL)
    (real / CLIENTAPP).chmod(0o755)
    monkeypatch.setenv("PATH", f"{real}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / ("a long name " * 12) / "run"
    (folder / "bin").mkdir(parents=True)
    folder.chmod(0o700)
    put_shim(folder)
    return folder


@pytest.fixture
def zygote(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with started(folder) as process:
        yield process
        process.kill()


def started(folder: Path, *more: str) -> "subprocess.Popen[str]":
    """Start a zygote, and wait until it listens."""
    (folder / "zygote.sock").unlink(missing_ok=True)  # as a device does
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), *more],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"T_WHOSE": "the zygote's"},
    )  # fmt: skip
    until((folder / "zygote.sock").exists)
    return process


def ask(folder: Path, *arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    command = [str(folder / "bin" / CLIENTAPP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_takes_the_place_of_the_program(
    folder: Path, zygote: "subprocess.Popen[str]", tmp_path: Path
):
    """Its arguments, environment, folder and files; a process of its own for every message."""
    found = []
    for word in ("one", "it's\n'two'"):
        own = {"PATH": os.environ["PATH"], "T_OWN": word, "T_ODD": "\udcff"}
        done = ask(folder, "--token", word, env=own, cwd=tmp_path, input=f"{word} in")
        assert done.returncode == 0 and done.stderr == "to stderr\n"
        told = json.loads(done.stdout)
        assert told["argv"][0].endswith(f"real/{CLIENTAPP}")
        assert told["argv"][1:] == ["--token", word]
        assert told["env"] == {"T_OWN": word, "T_ODD": "\udcff"}
        assert told["cwd"] == str(tmp_path) and told["stdin"] == f"{word} in"
        assert told["parent"] == zygote.pid and told["term"] == told["child"] == signal.SIG_DFL
        found.append((told["pid"], told["draw"]))
    assert len({pid for pid, _ in found}) == len({draw for _, draw in found}) == 2


def test_exit_statuses_come_back(folder: Path, zygote: "subprocess.Popen[str]"):
    assert ask(folder, "exit", "3").returncode == 3
    assert ask(folder, "exit", "0").returncode == 0
    said = ask(folder, "say", "why")
    assert said.returncode == 1 and said.stderr == "why\n"
    raised = ask(folder, "raise")
    assert raised.returncode == 1 and "ValueError: an error of the program" in raised.stderr
    assert ask(folder, "abort").returncode == 1  # and the zygote goes on
    assert ask(folder, "exit", "4").returncode == 4
    assert zygote.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_shim(
    folder: Path, zygote: "subprocess.Popen[str]", tmp_path: Path, number: signal.Signals
):
    """SIGTERM is handed on, and the program ends in its own way; SIGKILL kills it, too."""
    file = tmp_path / "pid"
    shim = subprocess.Popen([str(folder / "bin" / CLIENTAPP), "wait", str(file)])
    until(lambda: file.exists() and file.read_text() != "")
    child = int(file.read_text())
    assert is_alive(child)
    shim.send_signal(number)
    assert shim.wait(30) == (7 if number == signal.SIGTERM else -number)
    until(lambda: not is_alive(child))


def test_children_end_with_the_zygote(
    folder: Path, zygote: "subprocess.Popen[str]", tmp_path: Path
):
    file = tmp_path / "pid"
    shim = subprocess.Popen([str(folder / "bin" / CLIENTAPP), "wait", str(file)])
    until(lambda: file.exists() and file.read_text() != "")
    zygote.kill()
    assert shim.wait(30) == 7
    until(lambda: not is_alive(int(file.read_text())))


def check_real(done: "subprocess.CompletedProcess[str]") -> None:
    """The real program has run, with the arguments, and ends with its own status."""
    assert (done.returncode, done.stdout) == (5, "the real one: --token x\n")
    assert "no zygote answers" in done.stderr and done.stderr.count("\n") == 1


def test_without_a_zygote_the_real_program_starts(folder: Path):
    check_real(ask(folder, "--token", "x"))
    with started(folder) as process:
        process.kill()
    assert stat.S_ISSOCK((folder / "zygote.sock").stat().st_mode)  # it is left, and nobody listens
    check_real(ask(folder, "--token", "x"))
    with started(folder) as process:  # a new one takes its place
        assert ask(folder, "exit", "3").returncode == 3
        process.kill()


def test_a_zygote_that_does_not_answer_is_left(
    folder: Path, zygote: "subprocess.Popen[str]", tmp_path: Path
):
    """After 5 s the real program starts; when the zygote wakes up, its child must not run, too."""
    zygote.send_signal(signal.SIGSTOP)
    out, err = tmp_path / "out", tmp_path / "err"  # no pipes: the zygote still has their ends
    with out.open("w") as file, err.open("w") as other:
        command = [str(folder / "bin" / CLIENTAPP), "--token", "x"]
        done = subprocess.run(command, stdout=file, stderr=other, timeout=60)
    check_real(
        subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())
    )
    zygote.send_signal(signal.SIGCONT)
    assert ask(folder, "exit", "3").returncode == 3


def test_a_zygote_with_threads_does_not_fork(folder: Path):
    with started(folder, "threads") as process:
        assert ask(folder, "exit", "3").returncode == 3
        process.send_signal(signal.SIGUSR1)
        until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2)
        check_real(ask(folder, "--token", "x"))
        process.kill()
        assert process.stderr is not None
        assert "has 2 threads, and forks only with one" in process.stderr.read()


def test_only_this_user_may_ask(tmp_path: Path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        check_peer(ours)
        with pytest.raises(ZygoteError, match=f"user {os.getuid()} may not start anything here"):
            check_peer(ours, user=os.getuid() + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(folder: Path):
    """Who got into the folder, by a mistake of somebody's, still gets nothing."""
    with started(folder) as process:
        for place in (folder, *list(folder.parents)[:-1]):
            if place.is_relative_to(folder.parents[2]):
                place.chmod(0o755)
        (folder / "zygote.sock").chmod(0o666)
        nobody = pwd.getpwnam("nobody").pw_uid
        handle = os.open(folder, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as connection:
            os.seteuid(nobody)
            try:
                connection.connect(f"/proc/self/fd/{handle}/zygote.sock")
            except PermissionError:
                pytest.skip("the folder of the tests is closed to others")
            finally:
                os.seteuid(0)
                os.close(handle)
            assert connection.recv(1) == b""
        assert process.stderr is not None
        assert f"user {nobody} may not start anything here" in process.stderr.readline()
        process.kill()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_the_folder_is_closed_to_others(tmp_path: Path, mode: int):
    tmp_path.chmod(mode)
    with pytest.raises(ZygoteError, match="with mode 0700"):
        serve(tmp_path, lambda: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x05\x00\x00\x00{}", "it is cut short"),
        (b"\xff\xff\xff\xff", "allowed: 1048576"),
        (b"\x02\x00", "it has no length"),
        (b"\x03\x00\x00\x00[1]", "it is no mapping"),
        (b"\x03\x00\x00\x00{a}", "property name"),
    ],
)
def test_a_request_that_cannot_be_read(sent: bytes, said: str):
    """It is refused, and its files are closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(theirs, [sent[:4]], [0, 1, 2])
        theirs.sendall(sent[4:])
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match=said):
            receive(ours)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_is_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a zygote no shim is there, also where an earlier start has left one."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(FOLDER, "")
    folder = tmp_path / "run"
    (folder / "bin").mkdir(parents=True)
    put_shim(folder)
    threads = set(threading.enumerate())
    run = ready_device(folder, ["--port", "1"], zygote=False)
    assert run is program("flower-supernode") and sys.argv == ["flower-supernode", "--port", "1"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in (folder / "bin").iterdir()] == ["flower-superexec"]
    assert os.environ["PATH"].startswith(str(folder / "bin"))
    assert os.environ[FOLDER] == str(folder)
    superexec = subprocess.run(
        ["flower-superexec", "--version"], capture_output=True, text=True, check=True
    )
    assert "Flower version" in superexec.stdout
    assert set(threading.enumerate()) <= threads


def test_programs_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ProgramError, match="there is no program flower-nothing"):
        program("flower-nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError, match="flwr-clientapp is not on PATH"):
        put_shim(tmp_path)
