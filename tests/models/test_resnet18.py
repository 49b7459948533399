"""ResNet-18: torchvision's, with GroupNorm, and what it takes from a file of weights."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from safetensors.torch import save_file
from torch import Tensor, nn

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.data import DataError, Modality
from flwr_dmml.models import EncoderChoice, make_encoder
from flwr_dmml.models.resnet18 import load_weights, resnet18
from flwr_dmml.payload.blocks import check_mixable, num_parameters
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import find_parts, parse_settings

torchvision = pytest.importorskip("torchvision")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(channels: int = 3, features: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return resnet18((channels, 32, 32), features)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """What torchvision publishes: with BatchNorm, a classifier and other numbers than a fresh one.

    Weights and biases of the norms are drawn too: torchvision starts them with ones and zeros.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        weights: dict[str, Tensor] = torchvision.models.resnet18().state_dict()
        for name in weights:
            if "bn" in name and name.endswith(("weight", "bias")):
                weights[name] = torch.rand_like(weights[name])
    return weights


@pytest.fixture(scope="module")
def file(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(published, path)
    return path


# The network


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 32, 63)], ids=str)
def test_one_vector_a_sample_and_nothing_that_cannot_be_mixed(shape: tuple[int, ...]) -> None:
    encoder, x = resnet18(shape, 7), torch.rand(2, *shape, generator=rng())
    features = encoder(x)
    assert features.shape == (2, 7) and bool(features.isfinite().all())
    torch.testing.assert_close(encoder(x[1:]), features[1:], rtol=1e-3, atol=1e-4)
    check_mixable({"encoder": encoder})
    assert not list(encoder.buffers())
    features.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("channels", [3, 1, 5])
def test_parameters_as_documented(channels: int) -> None:
    """49 * 64 weights of the first convolution for each channel."""
    assert num_parameters(fresh(channels, 64)) == 11_167_104 + 3_136 * channels + 513 * 64


def test_convolutions_are_those_of_torchvision_and_norms_are_not() -> None:
    theirs = torchvision.models.resnet18()
    ours = {name: p.shape for name, p in fresh(3, 1000).named_parameters()}
    assert ours == {name: p.shape for name, p in theirs.named_parameters()}
    norms = [m for m in fresh().modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20 and {m.num_groups for m in norms} == {32}
    assert not [m for m in fresh().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_what_it_cannot_read_is_one_message() -> None:
    with pytest.raises(DataError, match=r"resnet18: cannot read samples of shape \(12,\)"):
        resnet18((12,), 10)


# Weights


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_everything_but_the_last_layer_comes_from_the_file(
    suffix: str, file: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = file
    if suffix == "pth":
        path = tmp_path / "resnet18.pth"
        torch.save(published, path)
    encoder, before = fresh(), fresh()
    load_weights(encoder, str(path))
    for name, parameter in encoder.named_parameters():
        linear = name.startswith("fc.")
        expected = before.get_parameter(name) if linear else published[name]
        assert torch.equal(parameter, expected), name
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_equal_channels_give_what_they_gave(channels: int, file: Path) -> None:
    """Of three channels that are the same, so is what the first convolution makes of them."""
    encoder, of_three = fresh(channels), fresh()
    load_weights(encoder, str(file))
    load_weights(of_three, str(file))
    grey = torch.rand(2, 1, 32, 32, generator=rng())
    one = encoder.get_submodule("conv1")(grey.expand(-1, channels, -1, -1))
    other = of_three.get_submodule("conv1")(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        encoder.get_submodule("layer4")[1].conv2.weight,  # type: ignore[index]
        of_three.get_submodule("layer4")[1].conv2.weight,  # type: ignore[index]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, r"has no layer1\.0\.conv1\.weight"),
        ({"bn1.bias": None}, r"has no bn1\.bias"),
        ({"layer5.0.conv1.weight": torch.ones(2)}, r"has layer5\.0\.conv1\.weight, which"),
        ({"conv1.weight": torch.ones(64, 3, 3, 3)}, r"conv1\.weight of .* shape \(64, 3, 3, 3\)"),
        ({"bn1.weight": torch.ones(8)}, r"bn1\.weight of .* shape \(8,\) instead of \(64,\)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Tensor | None], message: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = {k: v for k, v in {**published, **change}.items() if v is not None}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=message):
        load_weights(fresh(), str(tmp_path / "other.safetensors"))


def test_a_file_that_holds_none_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("none")
    (tmp_path / "text.pth").write_text("none")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "more.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    for name, what in {
        "text.safetensors": "cannot be read",
        "text.pth": "cannot be read",
        "module.pth": "cannot be read",
        "more.pth": "no mapping of names to tensors",
        "missing.pth": "No such file",
    }.items():
        with pytest.raises(DataError) as caught:
            load_weights(fresh(), str(tmp_path / name))
        said = str(caught.value)
        assert said.startswith("encoder-weights: ") and name in said and what in said, said
        assert "\n" not in said


def test_a_file_that_is_written_anew_is_read_anew(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    path, encoder = tmp_path / "w.safetensors", fresh()
    for age, number in enumerate((0.25, 0.75)):
        save_file({**published, "bn1.bias": torch.full((64,), number)}, path)
        os.utime(path, (age, age))
        load_weights(encoder, str(path))
        assert set(encoder.get_parameter("bn1.bias").tolist()) == {number}


# In a run


def test_only_what_is_a_resnet18_starts_from_the_file(
    file: Path, published: dict[str, Tensor]
) -> None:
    choice = EncoderChoice(image="resnet18", weights=str(file))
    image = make_encoder(Modality("image", (3, 16, 16)), 10, choice)
    assert torch.equal(image.get_parameter("conv1.weight"), published["conv1.weight"])
    torch.manual_seed(0)
    audio = make_encoder(Modality("audio", (1, 32, 16)), 10, choice)
    torch.manual_seed(0)
    plain = make_encoder(Modality("audio", (1, 32, 16)), 10)
    pairs = zip(audio.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_devices_start_from_the_same_file_and_train(file: Path) -> None:
    config: dict[str, Any] = {**FAST, "method": "dpsgd", "batch-size": 4, "num-nodes": 3}
    config |= {"image-encoder": "resnet18", "encoder-weights": str(file)}
    one, other = (make_learner(config, k) for k in (1, 2))
    assert other.partition.modalities == ("audio", "image")
    before = one.state()["encoder.image"]
    assert torch.equal(before, other.state()["encoder.image"])
    outcome = one.run_round(Plan(1, 1), {})
    assert outcome.metrics["train.loss"] > 0
    assert not torch.equal(outcome.payload["encoder.image"], before)


def problems(**config: Any) -> str:
    given = {key.replace("_", "-"): value for key, value in config.items()}
    with pytest.raises(SettingsError) as caught:
        parse_settings(given, find_parts(), side="device")
    return str(caught.value)


def test_a_file_that_is_not_there_is_said_before_anything_starts(
    file: Path, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.pth")
    said = problems(image_encoder="resnet18", encoder_weights=missing)
    assert f"encoder-weights = '{missing}': no such file" in said
    assert "only resnet18 starts from a file" in problems(encoder_weights=str(file))
    parts = find_parts()
    given = {"audio-encoder": "resnet18", "encoder-weights": str(file)}
    settings = parse_settings(given, parts, side="device").settings
    assert settings.encoder_choice == EncoderChoice(audio="resnet18", weights=str(file))
    parse_settings({**given, "encoder-weights": missing}, parts, side="coordinator")
