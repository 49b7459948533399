"""A new version on all devices, and broken ones: real processes, TLS, node keys, pip."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleet_helpers import FLEET, cut_parts
from helpers import ROOT
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.fleet.local import LocalFleet

NODES, ROUNDS = 2, 80
SETTINGS = {
    "num-server-rounds": ROUNDS,
    "local-iterations": 2,
    "evaluate-every": 20,
    "round-timeout": 60.0,
    "wait-timeout": 60.0,
    "run-name": "during",
}
SSH = """#!/bin/sh
shift
exec sh -c "$*"
"""
NO_DOCTOR = "def examine():\n    yield from ()\n"  # it takes half a minute; others test it


def built(folder: Path, version: str, changes: dict[str, str]) -> Path:
    """Return a wheel of this package, with another version and more lines in some modules."""
    source = folder / "source"
    shutil.copytree(ROOT / "flwr_dmml", source / "flwr_dmml")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name, text in {"doctor/__init__.py": NO_DOCTOR, **changes}.items():
        file = source / "flwr_dmml" / name
        file.write_text(f"{file.read_text()}\n\n{text}\n")
    about = source / "flwr_dmml" / "__init__.py"
    about.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', about.read_text()))
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_a_broken_version_is_taken_back_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cut_parts(tmp_path / "parts", NODES)
    good = built(tmp_path / "good", "7.0", {})
    no_import = built(tmp_path / "import", "7.1", {"__init__.py": "import no_such_module"})
    no_start = built(
        tmp_path / "start",
        "7.2",
        {"supernode/device.py": "def ready_device(*a, **k):\n    raise ProgramError('no start')"},
    )
    fleet = LocalFleet(tmp_path, sorted((tmp_path / "parts").iterdir()), again=True)

    def fleet_command(name: str, *words: str) -> tuple[int, str]:
        command = ["fleet", name, str(fleet.file), *words]
        done = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def push(*words: str) -> tuple[int, str]:
        return fleet_command("push", "-o", str(fleet.folder), *words)

    def current(name: str) -> str:
        return os.readlink(fleet.folder / "devices" / name / "versions" / "current")

    def lines() -> list[dict[str, object]]:
        file = fleet.runs / "during" / "dmml-kd" / "metrics.jsonl"
        return [json.loads(one) for one in file.read_text().splitlines()] if file.exists() else []

    with fleet:
        code, said = push(str(good), "--at-once", "2")
        assert code == 0 and said.count("updated") == 4, said + fleet.said("device-0")
        assert all(current(name).startswith("7.0-") for name in fleet.devices)
        code, said = push(str(no_import))
        assert code == 1 and said.count("no_such_module") == NODES, said

        run = fleet.submit(FLEET, SETTINGS)
        while not lines() and run.poll() is None:
            time.sleep(0.1)
        code, said = push(str(no_start), "--canary", "1")
        meanwhile = len(lines())
        assert code == 1 and "it ended 3 times; read its log; 7.0-" in said, said
        assert "left out" in said and 0 < meanwhile < ROUNDS, (said, meanwhile)
        assert all(current(name).startswith("7.0-") for name in fleet.devices)
        code, said = fleet_command("logs", "device-0", "-n", "200")
        assert code == 0 and "ProgramError: no start" in said, said
        log = run.communicate(timeout=300)[0]
        for name in fleet.devices:
            pid = (fleet.folder / "devices" / name / "state" / "pid").read_text().strip()
            command = Path(f"/proc/{pid}/cmdline").read_text()
            assert "versions/current/bin/flwr-dmml" in command, command
    assert len(lines()) == ROUNDS, log[-6000:]
    assert any("0" in line["failed"] for line in lines()) and not lines()[-1]["failed"], log[-6000:]
