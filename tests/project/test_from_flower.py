"""The page on going from a Flower app to gossip: both of its apps run, as they stand."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app as cli

PAGE = ROOT / "docs/howto/from-flower.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(PAGE, tmp_path)
    shutil.copy(tmp_path / "digits/fedavg/task.py", tmp_path / "digits-gossip/gossip")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_app_with_fedavg_runs(folder: Path) -> None:
    assert "flwr-dmml simulate digits --nodes 10" in commands(PAGE)
    done = CliRunner().invoke(cli, ["simulate", "digits", "--nodes", "10", "--workers", "0"])
    assert done.exit_code == 0, done.output
    (reached,) = re.findall(r"^accuracy ([\d.]+)$", done.output, flags=re.MULTILINE)
    assert float(reached) > 0.6  # it sets no seed


def test_the_same_as_gossip_runs_with_the_same_model_and_data(folder: Path) -> None:
    done = CliRunner().invoke(
        cli, ["simulate", "digits-gossip", "--workers", "0", "--set", "run-name=mine"]
    )
    assert done.exit_code == 0, done.output
    lines = (folder / "runs/mine/cnn/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["accuracy"] > 0.8
    devices = json.loads((folder / "runs/mine/cnn/devices.json").read_text())["nodes"]
    assert sum(node["num_train"] for node in devices) == 1437  # all of load_data


def test_what_is_new_in_gossip_is_short() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (client,) = re.findall(r"# digits-gossip/gossip/client_app\.py\n(.*?)```", text, re.DOTALL)
    lines = [line for line in client.splitlines() if line.strip()]
    assert len(lines) <= 25
