"""``flwr-dmml doctor``: here, with broken libraries, and on machines that lack something."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flwr_dmml import __version__
from flwr_dmml.base import libraries, machine
from flwr_dmml.base.libraries import LIBRARIES
from flwr_dmml.cli import app
from flwr_dmml.doctor import checks
from flwr_dmml.doctor.probes import PROBES

STUBS = {
    "raises": "raise OSError('undefined symbol: broken')",
    "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
    "hangs": "import time\ntime.sleep(60)",
    "exits": "import sys\nsys.exit('no luck')",
    "is wrong": "def write(*a, **k): pass\ndef read(file): return [0, 0, 0], 1",
}


@pytest.fixture
def stub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a soundfile that does not work before the real one, in other processes."""
    (tmp_path / "soundfile.py").write_text(STUBS[request.param])
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def test_this_machine():
    """As a program sees it; what is not installed is absent, and nothing is wrong."""
    command = [sys.executable, "-m", "flwr_dmml.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told: dict[str, Any] = json.loads(done.stdout)
    found = {one["what"]: one for one in told["findings"]}
    wrong = [one for one in told["findings"] if one["state"] == "error"]
    assert (done.returncode, told["ok"], wrong) == (0, True, [])
    assert told["version"] == __version__
    for module in PROBES:
        name = LIBRARIES[module].name
        assert found[name]["version"] == (version(name) if found[name]["state"] != "absent" else "")
    assert found["torchaudio"]["seen"] == "a mel spectrogram, and resampling"
    assert found["cvxpy"]["seen"] == "a linear program, by Clarabel and HiGHS"
    assert found["ray"]["seen"] == "a task in a worker"
    assert found["eclipse-zenoh"]["seen"] == "a letter on loopback"
    assert found["torch"]["seen"].startswith("a matrix product; ")
    assert found["cores"]["seen"].startswith(f"{machine.cores()}")


@pytest.mark.parametrize(
    ("stub", "seen"),
    [
        ("raises", "OSError: undefined symbol: broken. It is needed for reading sound"),
        ("crashes", "it crashed (SIGILL). It is needed for reading sound"),
        ("exits", "it ended with status 1: no luck. It is needed for reading sound"),
        ("is wrong", "RuntimeError: a wrong WAV. It is needed for reading sound"),
    ],
    indirect=["stub"],
)
def test_a_library_that_does_not_work(stub: None, seen: str):
    found = checks.library("soundfile")
    assert (found.what, found.state, found.version) == ("soundfile", "error", version("soundfile"))
    assert found.seen.endswith(seen)
    assert found.mend == 'pip install --force-reinstall "soundfile>=0.12"'


@pytest.mark.parametrize("stub", ["hangs"], indirect=True)
def test_a_library_that_hangs(stub: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.5)
    found = checks.library("soundfile")
    assert found.state == "error"
    assert found.seen == "no answer in 0 s. It is needed for reading sound"


@pytest.mark.parametrize("stub", ["raises"], indirect=True)
def test_an_error_is_the_exit_status_and_its_mending_is_told(
    stub: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checks, "PROBES", {m: PROBES[m] for m in ("soundfile", "networkx")})
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "120"})
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "undefined symbol: broken" in text
    assert 'to fix it: pip install --force-reinstall "soundfile>=0.12"' in text
    assert "all is well" not in text


def test_all_is_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "PROBES", {"networkx": PROBES["networkx"]})
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"flwr-dmml {__version__}: all is well\n")


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "installed", lambda name: "")
    monkeypatch.setattr(libraries, "installed", lambda name: "")
    assert checks.library("zenoh") == checks.Finding(
        "eclipse-zenoh", "absent", "for letters from device to device",
        mend='pip install "flwr-dmml[direct]"',
    )  # fmt: skip


def test_a_version_outside_the_bounds():
    assert checks.outside("torch", "2.11.0") == "torch>=2.13,<3"
    assert checks.outside("zenoh", "1.3.4") == "eclipse-zenoh>=1.4,<2"
    assert checks.outside("torch", "2.15.0+cu132") == checks.outside("ray", "1.0") == ""


# ---- The machine


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_a_container_s_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores() == expected


def test_a_container_s_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory_bytes() is not None
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 29}\n")
    assert machine.memory_bytes() == (1 << 30, 1 << 29)
    found = checks.memory()
    assert (found.state, found.seen) == ("warning", "0.5 GB available of 1.1 GB")


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    found = checks.writable("run folders", Path("/proc/nothing/runs"), "--set run-dir=FOLDER")
    assert (found.state, found.mend) == ("error", "choose another one: --set run-dir=FOLDER")
    assert found.seen.startswith("/proc/nothing/runs cannot be written: ")
    assert checks.writable("run folders", tmp_path / "new" / "runs", "").state == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", ["writable", "shared_memory"])
def test_a_disk_that_is_full(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 1 << 20)
    full = {"writable": lambda: checks.writable("cached data", tmp_path, "X=FOLDER")}
    found = full.get(check, checks.shared_memory)()
    assert found.state == "warning" and "0.0 GB free" in found.seen and found.mend


def test_few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = checks.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.seen, found.mend) == ("warning", "at most 512", "ulimit -n 4096")


def test_flower_of_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(own))
    assert checks.programs().state == "ok"
    for name in checks.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{own}")
    found = checks.programs()
    assert found.state == "warning" and found.seen.startswith(f"{tmp_path / 'flwr'} is another")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert checks.programs().seen.startswith("not on the path: flwr, flower-superlink")
    assert str(own) in checks.programs().mend


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    found = checks.python()
    assert (found.state, found.seen) == ("error", "Python >=3.11 is needed, not 3.10.4")


# ---- The rest of the command line


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"flwr-dmml {__version__}\n")


def test_shell_completion():
    """As a shell asks for it, through the environment."""
    asked = {
        "_FLWR_DMML_COMPLETE": "complete_bash",
        "COMP_WORDS": "flwr-dmml do",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).with_name("flwr-dmml")
    done = subprocess.run(
        [program], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["doctor"]


def test_help_and_doctor_import_nothing_heavy():
    """They must work, and at once, where a library is broken."""
    code = (
        "import sys, flwr_dmml.cli, flwr_dmml.doctor\n"
        "heavy = {'torch', 'flwr', 'cvxpy', 'sklearn', 'networkx', 'numpy', 'ray', 'pydantic'}\n"
        "print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
