"""The log of a device, by an ssh that stays on this machine."""

import os
from pathlib import Path

import pytest
from helpers_fleet import TWO, program, ssh_here
from typer.testing import CliRunner

from flwr_dmml.cli import app

JOURNAL = '#!/bin/sh\necho "asked: $*"\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of two devices; the first one prints to a file."""
    ssh_here(tmp_path)
    program(tmp_path / "journalctl", JOURNAL)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("pi-1", "pi-2"):
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / "a log").write_bytes(
        b"first\n\x1b[92mINFO \x1b[0m:\tready\n  \x1b]0;owned\x07\xff\rover\nlast\n"
    )
    (tmp_path / "pi-1" / "state" / "log").write_text(f"{tmp_path / 'a log'}\n")
    (tmp_path / "pi-2" / "state" / "log").write_text("socket:[77]\n")
    (tmp_path / "fleet.toml").write_text(f"device-dir = '{tmp_path}/{{name}}'\n{TWO}")
    return tmp_path / "fleet.toml"


def logs(file: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fleet", "logs", str(file), *words], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_a_log_is_shown_without_what_a_terminal_would_obey(file: Path):
    code, said = logs(file, "pi-1", "-n", "3")
    shown = ["INFO :  ready", r"  \x1b]0;owned\x07" + "\ufffd" + r"\rover", "last"]
    assert code == 0 and said.splitlines() == shown


def test_a_unit_has_its_journal(file: Path):
    systemctl = file.with_name("systemctl")
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    code, said = logs(file, "pi-2", "--follow")
    unit = "--unit flwr-dmml-pi-2.service"
    assert code == 0 and said == f"asked: --no-pager {unit} --lines 50 --follow\n"


def test_what_cannot_be_read_is_said(file: Path):
    code, said = logs(file, "pi-2")
    assert code == 1 and "pi-2: there is no unit flwr-dmml-pi-2.service, and start.sh" in said
    code, said = logs(file, "pi-9")
    assert code == 1 and "pi-9: there are pi-1, pi-2" in said
