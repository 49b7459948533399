"""The examples: what they say of themselves, their bundles, and the runs that no other test has."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.engine import flatten_config
from flwr_dmml.settings import find_parts, parse_settings

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def project_file(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def run_config(folder: Path) -> dict[str, Any]:
    return flatten_config(project_file(folder)["tool"]["flwr"]["app"]["config"])


def bound(requirements: list[str], name: str) -> str:
    """Return the lower bound of a requirement."""
    (found,) = (r for r in map(Requirement, requirements) if r.name == name)
    return next(s.version for s in found.specifier if s.operator == ">=")


def test_there_are_four():
    assert [f.name for f in FOLDERS] == ["custom_method", "fleet", "quickstart", "sensors"]


@each
def test_its_settings_work(folder: Path):
    config = run_config(folder)
    if folder.name == "custom_method":  # its method is its own
        config = {k: v for k, v in config.items() if k not in ("method",) and "." not in k}
    parse_settings(config, find_parts(), side="coordinator")


@each
def test_its_readme_goes_with_its_settings(folder: Path):
    """As many SuperNodes as it has devices; what is worth a try can be set with ``flwr run -c``."""
    text, config = (folder / "README.md").read_text(), run_config(folder)
    assert f"| SuperNodes | {config['num-nodes']} " in text
    nodes = re.findall(r"num-supernodes=(\d+)", text)
    assert nodes and set(nodes) == {str(config["num-nodes"])}
    tries = " ".join(re.findall(r"^- (.*?):", text, re.MULTILINE))
    named = re.findall(r"`([a-z][a-z0-9.-]*)", tries)
    assert len(named) >= 3 and set(named) <= set(config)


@each
def test_its_bundle_is_one_that_flower_hub_takes(folder: Path, tmp_path: Path):
    """By ``flwr build``, in a folder of the project's name: Flower takes no ``_`` in it."""
    name = project_file(folder)["project"]["name"]
    copy = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", copy],
        cwd=tmp_path,
        env=os.environ | {"FLWR_HOME": str(tmp_path / "home"), "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    with ZipFile(bundle) as files:
        names = set(files.namelist())
        about = tomllib.loads(files.read("pyproject.toml").decode())
    assert {"LICENSE", "README.md"} <= names
    assert {n for n in names if n.endswith(".py")} == {
        p.relative_to(copy).as_posix() for p in copy.rglob("*.py")
    }
    assert about["tool"]["flwr"]["app"]["fab-format-version"] == 1
    whole = project_file(ROOT)["project"]["dependencies"]
    assert bound(about["project"]["dependencies"], "flwr") == bound(whole, "flwr")


@each
def test_a_run_of_it_installs_nothing(folder: Path, tmp_path: Path):
    """Flower syncs an app's dependencies for every run; here without a network or a cache."""
    shutil.copy(folder / "pyproject.toml", tmp_path)
    environment = tmp_path / "environment"
    own = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "uv", "sync", "--offline", "--no-install-project", "--inexact"]
    synced = subprocess.run(
        [*command, "--python", sys.executable],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert synced.returncode == 0, synced.stderr
    assert environment.is_dir() and not list(environment.rglob("*.dist-info"))


def test_fleet_runs_on_the_parts_that_are_cut_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The commands of its README, with few samples and one round."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    small = {
        "partition": ["--set", "samples-per-node=40"],
        "simulate": ["--workers", "0", "--set", "num-server-rounds=1", "--set", "run-name=x"],
    }
    lines = re.findall(r"^flwr-dmml (.*)$", (EXAMPLES / "fleet" / "README.md").read_text(), re.M)
    assert [line.split()[0] for line in lines] == list(small)
    for line in lines:
        words = line.split()
        done = CliRunner().invoke(app, [*words, *small[words[0]], "--set", "local-iterations=1"])
        assert done.exit_code == 0, done.output
    (line,) = (tmp_path / "runs" / "x" / "dmml-kd" / "metrics.jsonl").read_text().splitlines()
    assert len(json.loads(line)["nodes"]) == 4


def test_sensors_runs_on_the_real_recordings(real_data: Path, tmp_path: Path):
    """A device a person, a third without a watch; both methods, on the five people held out."""
    sets = {
        "data-path": real_data,
        "num-server-rounds": 2,
        "local-iterations": 2,
        "evaluate-every": 2,
        "run-dir": tmp_path,
        "run-name": "here",
    }
    command = ["simulate", str(EXAMPLES / "sensors"), "--workers", "0"]
    command += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for method in ("dpsgd", "dmml-kd"):
        lines = (tmp_path / "here" / method / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        assert len(last["nodes"]) == 18 and not last["failed"]
        assert last["accuracy"] > 0.2 and 0 < last["macro_f1"] <= 1
        sets_of = {frozenset(key.split("+")) for key in last["accuracy_by_set"]}
        assert {len(owned) for owned in sets_of} == {2, 4}
