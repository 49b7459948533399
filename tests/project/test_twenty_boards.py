"""The page on twenty boards: what it does on one machine works as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app as cli

PAGE = ROOT / "docs/howto/twenty-boards.md"


def test_a_fleet_of_twenty_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, init, split = commands(PAGE)
    write_files(PAGE, tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *make.split()[1:]], check=True)
    for command in (init, split):
        done = CliRunner().invoke(cli, command.split()[1:])
        assert done.exit_code == 0, done.output
    boards = sorted(folder.name for folder in (tmp_path / "lab/devices").iterdir())
    assert boards == [f"pi-{k:02}" for k in range(20)]
    assert len(list((tmp_path / "parts").iterdir())) == 20
    last = (tmp_path / "lab/devices/pi-19/start.sh").read_text()
    assert "/data/part-019" in last and "72000" in last
