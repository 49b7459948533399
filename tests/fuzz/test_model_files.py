"""Files of a trained model: damaged or forged, they are refused, and nothing large is built."""

import json
from pathlib import Path

import pytest
import torch
from fuzzing import UNCHANGED, fuzz, of_file, of_values
from safetensors.torch import load

from flwr_dmml.data import Modality
from flwr_dmml.data.forms import RawNumbers
from flwr_dmml.deploy.files import ABOUT, WEIGHTS, About, Input, ModelError, ModelFiles
from flwr_dmml.deploy.model import load_model
from flwr_dmml.models import DecomposedClassifier, architecture_of


@pytest.fixture
def stem(memory: Path) -> Path:
    network = DecomposedClassifier({"v": Modality("vector", (3,))}, 2, common_dim=2, specific_dim=2)
    about = About.model_validate(
        {
            "method": "dpsgd",
            "dataset": "made",
            "device": 3,
            "round": 7,
            "kept": "best",
            "classes": ("a", "b"),
            "modalities": {"v": Input(kind="vector", shape=(3,), raw=RawNumbers(unit="g"))},
            "architecture": architecture_of(network),
            "network": "x",
            "metrics": {"test.accuracy": 1 / 3},
            "settings": {"alpha": 0.3, "kept": True},
            "versions": {"torch": torch.__version__},
        }
    )
    ModelFiles.of(network.state_dict(), about).write(memory / "device-003")
    return memory / "device-003"


@pytest.mark.parametrize("suffix", [WEIGHTS, ABOUT])
def test_a_damaged_model(stem: Path, suffix: str, pytestconfig: pytest.Config) -> None:
    """What is read in spite of changes is what was written."""
    file = stem.with_suffix(suffix)
    right, example = load_model(stem), file.read_bytes()

    def read() -> None:
        found = load_model(stem)
        assert found.about == right.about
        for name, x in right.state_dict().items():
            assert torch.equal(found.state_dict()[name], x)

    fuzz(of_file(file, read, ModelError, stem.name), (ModelError,), [example], pytestconfig)


def forged(stem: Path) -> None:
    """Have the digest agree with whatever the files hold."""
    weights, text = stem.with_suffix(WEIGHTS).read_bytes(), stem.with_suffix(ABOUT).read_bytes()
    try:
        about = About.model_validate_json(text)
        ModelFiles.of(load(weights), about).write(stem)
    except Exception:  # of either parser: then the digest is not reached
        return


@pytest.mark.parametrize("suffix", [WEIGHTS, ABOUT])
def test_a_forged_model(stem: Path, suffix: str, pytestconfig: pytest.Config) -> None:
    file, example = stem.with_suffix(suffix), stem.with_suffix(suffix).read_bytes()
    other = {s: stem.with_suffix(s).read_bytes() for s in (WEIGHTS, ABOUT)}

    def read() -> None:
        forged(stem)
        try:
            load_model(stem)
        finally:
            for s, data in other.items():
                stem.with_suffix(s).write_bytes(data)

    fuzz(of_file(file, read, ModelError, stem.name), (ModelError,), [example], pytestconfig)


def test_a_model_of_odd_values(stem: Path, pytestconfig: pytest.Config) -> None:
    file, weights = stem.with_suffix(ABOUT), stem.with_suffix(WEIGHTS).read_bytes()
    assert json.loads(file.read_text())["device"] == 3

    def read() -> None:
        forged(stem)
        stem.with_suffix(WEIGHTS).write_bytes(weights)
        load_model(stem)

    parse = of_values(file, read, ModelError, stem.name)
    fuzz(parse, (ModelError,), [UNCHANGED], pytestconfig)
