"""``flwr-dmml new``: an app that runs at once."""

import json
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from flwr.common.config import fuse_dicts, parse_config_args
from helpers import ROOT
from typer.testing import CliRunner, Result

from flwr_dmml import simulate
from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app
from flwr_dmml.engine import flatten_config
from flwr_dmml.settings import find_parts, parse_settings

FEW = ["--workers", "0", "--set", "num-server-rounds=1", "--set", "run-name=a", "--nodes", "3"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("own_method", "own_data"), product((False, True), repeat=2))
def test_what_is_written_runs(own_method: bool, own_data: bool, tmp_path: Path) -> None:
    options = ["--own-method"] * own_method + ["--own-data"] * own_data
    name = "-".join(["made", *(o.removeprefix("--") for o in options)])
    written = invoke("new", name, *options)
    assert written.exit_code == 0 and f"flwr-dmml simulate {name}" in written.output
    done = invoke("simulate", name, *FEW)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "runs/a/config.json").read_text())
    assert config["method"] == ("smooth" if own_method else "dmml-kd")
    assert config["dataset"] == ("mine" if own_data else "digits")
    assert (tmp_path / "runs/a/dpsgd/metrics.jsonl").exists()


def test_its_own_parts_are_known_to_commands_that_do_not_run_it(tmp_path: Path) -> None:
    """``partition`` cuts its data; ``audit`` of its run needs the app, and says so."""
    assert invoke("new", "ours", "--own-method", "--own-data").exit_code == 0
    cut = invoke("partition", "ours", "--nodes", "2", "-o", "parts")
    assert cut.exit_code == 0, cut.output
    about = json.loads((tmp_path / "parts/part-001/part.json").read_text())
    assert (about["train"], about["test"]) == (120, 300)
    more = ["--set", "checkpoint-every=1", "--set", "compare-with=", "--set", "topology=complete"]
    assert invoke("simulate", "ours", *FEW, *more).exit_code == 0
    refused = invoke("audit", "runs/a")
    told = " ".join(refused.output.split())
    assert refused.exit_code == 1 and "method = 'smooth'" in told
    assert "has methods, rules or data sets of its own, name its folder (--app)" in told
    done = invoke("audit", "runs/a", "--app", "ours", "--non-members", "test", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["method"] == "smooth"


def test_what_is_set_stands_above_the_apps_own_overrides(tmp_path: Path) -> None:
    assert invoke("new", "app").exit_code == 0
    project = tmp_path / "app/pyproject.toml"
    own = 'overrides = "learning-rate=0.01 alpha=0.2 num-nodes=2"'
    project.write_text(project.read_text().replace('overrides = ""', own))
    few = [word for word in FEW if word not in ("--nodes", "3")]
    done = invoke("simulate", "app", *few, "--set", "learning-rate=0.5")
    assert done.exit_code == 0, done.output
    run = simulate(project.parent, learning_rate=0.5, num_server_rounds=1, workers=0)
    for config in (json.loads((tmp_path / "runs/a/config.json").read_text()), run.config):
        assert (config["learning-rate"], config["alpha"], config["num-nodes"]) == (0.5, 0.2, 2)
    (tmp_path / "grid.toml").write_text('app = "app"\n[grid]\nlearning-rate = [0.1, -1]\n')
    refused = invoke("sweep", "grid.toml", "--dry-run")
    assert refused.exit_code == 1 and "learning-rate = -1" in refused.output
    cut = invoke("partition", "app", "-o", "parts", "--set", "alpha=-1")
    assert cut.exit_code == 1 and "alpha = -1" in cut.output


def test_its_own_test_passes(tmp_path: Path) -> None:
    assert invoke("new", "tried", "--own-method", "--own-data", "--in", tmp_path).exit_code == 0
    command = [sys.executable, "-m", "pytest", "-q", "tests"]
    done = subprocess.run(command, cwd=tmp_path / "tried", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_flower_takes_any_setting_on_its_command_line(tmp_path: Path) -> None:
    """Keys that the file lacks are in ``overrides``."""
    assert invoke("new", "mine-too", "--method", "dmml").exit_code == 0
    project = tomllib.loads((tmp_path / "mine-too/pyproject.toml").read_text())
    config = flatten_config(project["tool"]["flwr"]["app"]["config"])
    assert len(config) < 20
    given = parse_config_args(["overrides=\"topology=torus dmml.x=1 run-name='a b'\" seed=3"])
    fused = fuse_dicts(config, given)
    with pytest.raises(SettingsError) as caught:
        parse_settings(fused, find_parts())
    assert {line.split(" = ")[0].strip() for line in str(caught.value).splitlines()[1:]} == {
        "dmml.x", "run-name"
    }  # fmt: skip
    given["overrides"] = "topology=torus energy.battery-share=0.5"
    settings = parse_settings(fuse_dicts(config, given), find_parts()).settings
    assert (settings.topology, settings.seed, settings.energy.battery_share) == ("torus", 3, 0.5)
    assert settings.overrides == ""


def test_overrides_that_are_no_settings_are_refused() -> None:
    for text, said in (("alpha", "give KEY=VALUE"), ("a='", "No closing quotation")):
        with pytest.raises(SettingsError, match=said):
            parse_settings({"overrides": text}, find_parts())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["My App"], "small letters, digits and '-'"),
        (["json"], "there is a Python module of that name"),
        (["class"], "there is a Python module of that name"),
        (["torch"], "there is a Python module of that name"),
        (["app-a", "--method", "dmml-kdd"], "there is no such method"),
        (["app-a", "--method", "dmml", "--own-method"], "give one of them"),
        (["there"], "is there already"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    refused = invoke("new", *arguments)
    assert refused.exit_code == 1 and said in " ".join(refused.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not any((tmp_path / "there").iterdir())


def test_the_templates_are_in_the_wheel() -> None:
    assert {path.suffix for path in (ROOT / "flwr_dmml/cli/template").iterdir()} == {".txt"}
