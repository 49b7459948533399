"""The examples that no other test runs; quickstart, custom_method and fleet are run elsewhere."""

import json
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.clients import find_methods, option_types
from flwr_dmml.config import parse_settings
from flwr_dmml.engine.apps import flatten_config

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_every_example_has_settings_that_work():
    folders = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))
    assert [f.name for f in folders] == ["custom_method", "fleet", "quickstart", "sensors"]
    for folder in folders:
        about = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
        config = flatten_config(about["config"])
        if folder.name == "custom_method":  # its method is its own
            config = {k: v for k, v in config.items() if k not in ("method",) and "." not in k}
        parse_settings(config, option_types(find_methods()), side="coordinator")


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
