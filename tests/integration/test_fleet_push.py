"""A new version on all devices, and broken ones: real processes, TLS, node keys, pip."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fleet_helpers import FLEET, cut_parts
from helpers import ROOT
from helpers_fleet import ssh_here
from typer.testing import CliRunner

from flwr_dmml.base.facts import read_facts
from flwr_dmml.cli import app
from flwr_dmml.fleet.local import LocalFleet

NODES = 2
SETTINGS = {
    "num-server-rounds": 1000,
    "local-iterations": 2,
    "evaluate-every": 20,
    "round-timeout": 60.0,
    "wait-timeout": 60.0,
    "run-name": "during",
}
NO_DOCTOR = "\n\ndef examine():\n    yield from ()\n"  # it takes half a minute; others test it


def built(folder: Path) -> Path:
    """Return a wheel of this package, of another version."""
    source = folder / "source"
    shutil.copytree(ROOT / "flwr_dmml", source / "flwr_dmml")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    about = source / "flwr_dmml" / "__init__.py"
    about.write_text(re.sub(r'__version__ = ".*"', '__version__ = "7.0"', about.read_text()))
    with (source / "flwr_dmml" / "doctor" / "__init__.py").open("a") as doctor:
        doctor.write(NO_DOCTOR)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def broken(wheel: Path, folder: Path, module: str, line: str) -> Path:
    """Return a copy of a wheel with one more line in one of its modules."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w") as new:
        for name in old.namelist():
            more = f"\n{line}\n".encode() if name == f"flwr_dmml/{module}" else b""
            new.writestr(name, old.read(name) + more)
    return folder / wheel.name


def test_a_broken_version_is_taken_back_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ssh_here(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cut_parts(tmp_path / "parts", NODES)
    good = built(tmp_path / "good")
    no_import = broken(good, tmp_path / "import", "__init__.py", "import no_such_module")
    raises = "def ready_device(*a, **k): raise ProgramError('no start')"
    no_start = broken(good, tmp_path / "start", "supernode/device.py", raises)
    fleet = LocalFleet(tmp_path, sorted((tmp_path / "parts").iterdir()), again=True)

    def fleet_command(name: str, *words: str) -> tuple[int, str]:
        command = ["fleet", name, str(fleet.file), *words]
        done = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def push(*words: str) -> tuple[int, str]:
        return fleet_command("push", "-o", str(fleet.folder), *words)

    def current() -> list[str]:
        versions = [fleet.folder / "devices" / name / "versions" for name in fleet.devices]
        return [os.readlink(folder / "current") for folder in versions]

    def lines() -> list[dict[str, Any]]:
        file = fleet.runs / "during" / "dmml-kd" / "metrics.jsonl"
        return [json.loads(one) for one in file.read_text().splitlines()] if file.exists() else []

    with fleet:
        code, said = push(str(good), "--at-once", "2")
        assert code == 0 and said.count("updated") == 4, said + fleet.said("device-0")
        old = current()
        assert all(label.startswith("7.0-") for label in old)
        run = fleet.submit(FLEET, SETTINGS)
        while not lines() and run.poll() is None:
            time.sleep(0.1)
        code, said = push(str(no_import))
        assert code == 1 and said.count("no_such_module") == NODES, said
        code, said = push(str(no_start), "--canary", "1")
        assert code == 1 and "it ended 3 times; read its log; 7.0-" in said, said
        assert "left out" in said and current() == old, said
        code, said = fleet_command("logs", "device-0", "-n", "500")
        assert code == 0 and "ProgramError: no start" in said, said
        back = len(lines())
        while len(lines()) < back + 4 and run.poll() is None:
            time.sleep(0.1)
        pid = (fleet.folder / "devices" / "device-0" / "state" / "pid").read_text().strip()
        facts = read_facts(fleet.folder / "devices" / "device-0" / "run" / "facts.json")
        assert facts.round > 1 and facts.received[1] > 0 and not facts.error
        assert "versions/current/bin/flwr-dmml" in Path(f"/proc/{pid}/cmdline").read_text()
    log = run.communicate(timeout=60)[0][-6000:]
    rounds = lines()
    assert len(rounds) >= back + 4 and any("0" in line["failed"] for line in rounds[:back]), log
    assert not any(line["failed"] for line in rounds[back + 1 : back + 4]), log
