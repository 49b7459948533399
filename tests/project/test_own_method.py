"""A user's own method, data and app, as the guide says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app as cli
from flwr_dmml.engine import load_app, run_app

CLIENT = '''
from pydantic import Field
from torch.nn import functional as F

from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.learning.options import Options


class SmoothOptions(Options):
    smoothing: float = Field(0.1, ge=0, lt=1)


class Smooth(Learner):
    """D-PSGD with label smoothing."""

    name = "smooth"
    options_type = SmoothOptions

    def local_loss(self, batch):
        smoothing = self.options.smoothing
        return F.cross_entropy(self.model(batch.inputs), batch.labels, label_smoothing=smoothing)


app = make_client_app(Smooth)
'''
SERVER = """
from flwr_dmml.strategies import make_server_app
from own_method_app.client_app import Smooth

app = make_server_app(Smooth)
"""
PROJECT = """
[tool.flwr.app.components]
serverapp = "own_method_app.server_app:app"
clientapp = "own_method_app.client_app:app"

[tool.flwr.app.config]
method = "smooth"
num-nodes = 3
num-server-rounds = 2
local-iterations = 2
samples-per-node = 40

[tool.flwr.app.config.smooth]
smoothing = 0.2
"""


@pytest.fixture(scope="module")
def own_app(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("own")
    package = folder / "own_method_app"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "client_app.py").write_text(CLIENT)
    (package / "server_app.py").write_text(SERVER)
    (folder / "pyproject.toml").write_text(PROJECT)
    return load_app(folder)


def _losses(folder: Path) -> list[float]:
    lines = (folder / "smooth" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def test_a_method_with_options_of_its_own_runs(own_app, tmp_path: Path):
    run_app(own_app, 3, {"run-dir": str(tmp_path), "run-name": "a"})
    run_app(own_app, 3, {"run-dir": str(tmp_path), "run-name": "b", "smooth.smoothing": 0.0})
    assert len(_losses(tmp_path / "a")) == 2
    assert _losses(tmp_path / "a") != _losses(tmp_path / "b"), "its option must reach the loss"
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["smooth.smoothing"] == 0.2


def test_its_options_are_checked_like_all_others(own_app, tmp_path: Path):
    with pytest.raises(SettingsError, match=r"smooth\.smoothing = 2\.0"):
        run_app(own_app, 3, {"run-dir": str(tmp_path), "smooth.smoothing": 2.0})
    assert list(tmp_path.iterdir()) == []


def test_a_run_never_overwrites_another(own_app, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="run-name = 'taken'"):
        run_app(own_app, 3, {"run-dir": str(tmp_path), "run-name": "taken"})


def test_a_method_can_be_compared_with_a_registered_one(own_app, tmp_path: Path):
    run_app(own_app, 3, {"run-dir": str(tmp_path), "run-name": "c", "compare-with": "local"})
    names = {p.name for p in (tmp_path / "c").iterdir()}
    assert names == {"config.json", "run.json", "log.txt", "end.json", "local", "smooth"}


@pytest.mark.parametrize(
    ("learner", "problem"),
    [
        (
            "class Mine(Learner): pass",
            "Mine.name must be set, as in name = 'mine'",
        ),
        ("class Mine(DPSGD): pass", "two methods are named 'dpsgd': "),
        ("class Mine(Learner): name = 'energy'", "a method cannot be named 'energy': that is a "),
    ],
)
def test_a_method_that_cannot_be_is_one_line(tmp_path: Path, learner: str, problem: str):
    package = tmp_path / "odd_method_app"
    package.mkdir()
    (package / "__init__.py").write_text("")
    imports = "from flwr_dmml.clients import DPSGD, Learner, make_client_app\n"
    (package / "client_app.py").write_text(f"{imports}{learner}\napp = make_client_app(Mine)\n")
    (package / "server_app.py").write_text(SERVER.replace("own_", "odd_").replace("Smooth", "Mine"))
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace("own_", "odd_"))
    result = CliRunner().invoke(cli, ["simulate", str(tmp_path), "--workers", "0"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: MethodError: {problem}"), result.stderr
    assert result.stderr.count("\n") == 1
