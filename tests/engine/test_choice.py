"""How many processes a simulation is spread over, as chosen before anything is loaded."""

import subprocess
import sys
from typing import Any

import pytest
from helpers import QUICKSTART

from flwr_dmml.engine import flatten_config
from flwr_dmml.engine.choice import DEFAULTS, ENCODERS, choose, training_s
from flwr_dmml.engine.project import read_project
from flwr_dmml.settings import Settings

RESNET = {"image-encoder": "resnet18"}


@pytest.mark.parametrize(
    ("asked", "config", "cores", "ray", "workers"),
    [
        (None, {}, 8, True, 0),  # 12 devices, 30 rounds of 20 small mini-batches: half a minute
        (None, {"compare-with": "dpsgd"}, 8, True, 0),
        (None, {"num-nodes": 1024}, 8, True, 8),
        (None, {"num-nodes": 1024, "num-server-rounds": 1}, 8, True, 0),
        (None, {"num-nodes": 1024, "batch-size": 8}, 8, True, 8),
        (None, {"num-server-rounds": 500}, 8, True, 8),
        (None, RESNET, 8, True, 8),
        (None, {**RESNET, "num-nodes": 3}, 8, True, 3),  # at most one a device
        (None, {**RESNET, "num-server-rounds": 2}, 8, True, 0),
        (None, {"num-nodes": 1024}, 1, True, 0),
        (None, {"num-nodes": 1024}, 8, False, 0),
        (None, {"num-nodes": 1024, "workers": 0}, 8, True, 0),
        (None, {"workers": 3}, 8, True, 3),
        (None, {"workers": "auto"}, 8, True, 0),
        (None, {"ray-address": "auto"}, 8, True, 8),
        (None, {"engine": "sharded"}, 8, False, 8),  # which says that Ray is missing
        (None, {"engine": "sharded", "workers": 2}, 8, True, 2),
        (0, {"num-nodes": 1024, "workers": 3, "engine": "sharded"}, 8, True, 0),
        (5, {"ray-address": "auto"}, 8, True, 5),
        (None, {"num-nodes": "many", "local-iterations": -1}, 8, True, 0),  # the settings object
    ],
)
def test_the_choice(asked: int | None, config: dict[str, Any], cores: int, ray: bool, workers: int):
    assert choose(asked, config, cores=cores, ray=ray).workers == workers


@pytest.mark.parametrize(
    ("config", "cores", "ray", "reason"),
    [
        ({}, 8, True, "about 29 s of training on one core"),
        ({"num-nodes": 1024}, 8, True, "about 41 min of training on one core"),
        ({}, 1, True, "there is one core"),
        ({}, 8, False, "Ray is not installed"),
        ({"workers": 2}, 8, True, ""),
        ({"workers": 0}, 8, True, ""),
        ({"ray-address": "auto"}, 8, True, ""),
    ],
)
def test_the_reason(config: dict[str, Any], cores: int, ray: bool, reason: str):
    """12 x 30 x 20 mini-batches of 4 ms are 28.8 s; 1,024 devices take 2,457.6 s."""
    assert choose(None, config, cores=cores, ray=ray).reason == reason
    assert choose(4, config, cores=cores, ray=ray).reason == ""


def test_the_work():
    """12 x 30 x 20 = 7,200 mini-batches of 4 ms; of 64 they take twice as long, of 2 a quarter."""
    assert training_s({}) == pytest.approx(28.8)
    assert training_s({"compare-with": "dpsgd", "batch-size": 64}) == pytest.approx(4 * 28.8)
    assert training_s({"batch-size": 2}) == pytest.approx(28.8 / 4)
    assert training_s(RESNET) == pytest.approx(7_200 * 0.2)
    assert training_s({**RESNET, "series-encoder": "gru"}) == training_s(RESNET)


def test_the_defaults_are_those_of_the_settings():
    values = Settings().model_dump(by_alias=True)
    assert {key: values[key] for key in DEFAULTS} == DEFAULTS
    assert set(ENCODERS) <= values.keys()


def test_the_quickstart_runs_in_one_process():
    config = read_project(QUICKSTART)[1]
    assert choose(None, config, cores=64, ray=True).workers == 0
    assert config == flatten_config(config)


def test_settings_are_read_and_processes_chosen_without_a_heavy_import():
    """So that Ray starts before torch is loaded."""
    code = (
        "import sys\n"
        "import flwr_dmml.cli, flwr_dmml.engine.choice, flwr_dmml.engine.local_ray\n"
        "import flwr_dmml.engine.project\n"
        "print({'torch', 'flwr', 'numpy', 'ray', 'pydantic', 'networkx'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_worker_imports_no_more_than_it_needs():
    """What it preloads: a second of Ray's start for each library that it does not need."""
    code = (
        "import importlib, sys\n"
        "from flwr_dmml.engine.local_ray import PRELOADED\n"
        "for name in PRELOADED:\n"
        "    importlib.import_module(name)\n"
        "heavy = {'flwr_datasets', 'datasets', 'pandas', 'pyarrow', 'sklearn', 'scipy', 'cvxpy'}\n"
        "heavy |= {'plotly', 'matplotlib', 'torchvision', 'torch._dynamo', 'zenoh'}\n"
        "print(heavy & sys.modules.keys(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set() True\n", "")
