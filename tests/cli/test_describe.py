"""What a run would be: blocks, operations and joules against hand counts, as text, and errors."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.clientapp import ClientApp
from helpers import FAST, QUICKSTART
from helpers_work import AUDIO, AUDIO_FORWARD, BATCH, HEAD, HEAD_FORWARD, IMAGE, IMAGE_FORWARD
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app as cli
from flwr_dmml.cli.describe import Description, Kind, Planned, describe, tables
from flwr_dmml.clients import DPSGD, make_client_app
from flwr_dmml.data import DataError
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.engine import AppError, FlowerApp
from flwr_dmml.privacy.accountant import epsilon_of
from flwr_dmml.strategies import make_server_app

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 7, "method": "dpsgd"}  # batches of 16
ENCODER = 208 + 16 + 3_216 + 32 + 16_448 + 4_160
"""Parameters of the encoder ``conv`` of one channel: convolution, norm, twice, and two linear."""


def described(client_app: ClientApp | None = None, **changed: Any) -> Description:
    app = FlowerApp({}, make_server_app(), client_app or make_client_app())
    return describe(app, CONFIG | {key.replace("_", "-"): v for key, v in changed.items()})


def prices(kind: Kind) -> dict[str, tuple[float | None, float]]:
    return {price.what: (price.predict, price.flops) for price in kind.prices}


def shown(description: Description) -> str:
    """Return the text, its white space made single spaces."""
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(tables(description))
    return " ".join(captured.get().split())


def test_devices_by_what_they_have() -> None:
    """Seven of audio, image, both in turn; 4 of 40 samples are for validation."""
    found = described()
    assert [(kind.modalities, kind.devices) for kind in found.kinds] == [
        (("audio",), [0, 3, 6]),
        (("image",), [1, 4]),
        (("audio", "image"), [2, 5]),
    ]
    assert [kind.samples for kind in found.kinds] == [[36] * 3, [36] * 2, [36] * 2]
    assert found.num_classes == 10
    assert {m: modality.shape for m, modality in found.modalities.items()} == {
        "audio": (1, 32, 16),
        "image": (1, 8, 8),
    }


def test_blocks_by_hand() -> None:
    audio, _, both = described().kinds
    heads = {"head.common": 32 * 10 + 10, "head.audio": 320}
    assert audio.sent == {**heads, "encoder.audio": ENCODER} and audio.kept == {}
    assert both.sent == {**audio.sent, "head.image": 320, "encoder.image": ENCODER}
    text = shown(described(modality_pattern="audio"))
    assert f"encoder.audio │ {ENCODER:,} │ {4 * ENCODER:,} │" in text
    assert f"all │ {ENCODER + 650:,} │ {4 * (ENCODER + 650):,} │" in text


def test_operations_by_hand() -> None:
    """One sample forward, 16 of them forward and back; a joint pass runs the common head once."""
    audio, _, both = described().kinds
    alone = AUDIO_FORWARD + 2 * HEAD_FORWARD, BATCH * (AUDIO + 2 * HEAD)
    assert prices(audio) == {"audio": alone}
    assert prices(both) == {
        "all together": (
            AUDIO_FORWARD + IMAGE_FORWARD + 3 * HEAD_FORWARD,
            BATCH * (AUDIO + IMAGE + 3 * HEAD),
        ),
        "audio alone": alone,
        "image alone": (IMAGE_FORWARD + 2 * HEAD_FORWARD, BATCH * (IMAGE + 2 * HEAD)),
    }


def test_energy_by_hand() -> None:
    """``flops / 4`` cycles of ``kappa f^2`` joules, f of them a second; two kinds of devices."""
    kinds = described(**{"energy.devices": "raspberry-pi-4,raspberry-pi-5"}).kinds
    boards = [PROFILES[name] for name in ("raspberry-pi-4", "raspberry-pi-5")]
    seen = set[int]()
    for kind in kinds:
        for price in kind.prices:
            assert len(price.joules) == len(kind.devices)
            for joules, seconds in zip(price.joules, price.seconds, strict=True):
                expected = [
                    price.flops / 4 * board.kappa * board.frequency_hz**2 for board in boards
                ]
                (board,) = [i for i, value in enumerate(expected) if joules == pytest.approx(value)]
                assert seconds == pytest.approx(price.flops / 4 / boards[board].frequency_hz)
                seen.add(board)
    assert seen == {0, 1}


def test_a_block_that_stays_is_not_on_the_wire() -> None:
    options = {"method": "fedgen", "modality_pattern": "image", "fedgen.generator-gossip": False}
    (kind,) = described(**options).kinds
    generator = 43 * 128 + 2 * 128 + 129 * 32  # 10 classes and 32 of noise, a norm, 32 features
    assert kind.kept == {"generator": generator} and "generator" not in kind.sent
    sent = sum(kind.sent.values())
    text = shown(described(**options))
    assert f"generator │ {generator:,} │ stays here │" in text
    assert f"all │ {sent + generator:,} │ {4 * sent:,} │" in text


def test_a_methods_own_work_has_a_price() -> None:
    """Labelling: 100 public samples and 4 held-out ones, forward."""
    kinds = described(method="idkd", modality_pattern="image", **{"public.samples": 100}).kinds
    labelling = kinds[0].prices[-1]
    assert labelling.what == "more in phase 'label'" and labelling.predict is None
    assert labelling.flops == 104 * (IMAGE_FORWARD + 2 * HEAD_FORWARD)
    iteration = kinds[0].prices[0]
    ratio = labelling.flops / iteration.flops
    assert labelling.joules[0] == pytest.approx(ratio * iteration.joules[0])


def test_devices_of_different_sizes_are_summed_up() -> None:
    found = described(modality_pattern="image")
    assert "7 devices, 36 training samples each, 10 classes" in shown(found)
    kind = replace(found.kinds[0], devices=[0, 1, 2, 3], samples=[30, 1_200, 7, 11])
    text = shown(replace(found, kinds=[kind]))
    assert "4 devices, 7 to 1,200 (median 20.5) training samples each" in text


def test_names_of_classes_and_samples_are_shown() -> None:
    text = shown(replace(described(), class_names=("walking", "standing")))
    assert "10 classes (walking, standing)" in text
    assert "audio │ audio │ 1 x 32 x 16" in text


class Wide(DPSGD):
    """A method of an app's own, with a larger model."""

    name = "wide"

    def build_model(self) -> Any:
        model = super().build_model()
        model.head_common = nn.Sequential(nn.Linear(32, 99), nn.Linear(99, 10))
        return model


def test_a_method_of_the_apps_own() -> None:
    kinds = described(make_client_app(Wide), method="wide").kinds
    assert kinds[0].sent["head.common"] == 33 * 99 + 100 * 10


# Errors


class Shared(DPSGD):
    """A method that cannot be built: two blocks are one."""

    name = "shared"

    def blocks(self) -> dict[str, nn.Module]:
        blocks = super().blocks()
        return {**blocks, "again": blocks["head.common"]}


def test_what_cannot_start_is_one_error() -> None:
    with pytest.raises(SettingsError, match=r"alphe = 1: unknown setting; did you mean 'alpha'"):
        described(alphe=1)
    with pytest.raises(DataError, match="more than the 1437 training samples"):
        described(samples_per_node=10_000)
    with pytest.raises(AppError, match=r"shared on devices with audio: blocks .* share a param"):
        described(make_client_app(Shared), method="shared")
    with pytest.raises(AppError, match="only an app with the ClientApp of make_client_app"):
        described(ClientApp())


def run(*settings: str) -> Any:
    words = [part for setting in settings for part in ("--set", setting)]
    command = ["simulate", str(QUICKSTART), "--describe", *words]
    return CliRunner().invoke(cli, command, env={"COLUMNS": "200"})


def test_the_command_shows_it_and_trains_nothing(tmp_path: Path) -> None:
    done = run(f"run-dir={tmp_path / 'runs'}", "image-encoder=tiny", "samples-per-node=40",
               "exchange.precision=float32")  # fmt: skip
    assert done.exit_code == 0, done.output
    for part in ("dmml-kd on digits: 12 devices", "audio+image: 4 devices", "generator", "joules"):
        assert part in done.output
    assert re.search(r"encoder\.image +│ +5,456 │ +21,828 │", done.output)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    done = run("samples-per-node=100000")
    assert done.exit_code == 1 and "Error: DataError: samples-per-node" in done.output
    assert "Traceback" not in done.output


def test_the_noise_and_its_epsilon_are_told_before_a_run() -> None:
    """Of 36 samples, 16 a batch: 30 rounds of 2 steps, by the accountant's own count."""
    epsilon = epsilon_of([(2.0, 16 / 36, 60)], 1 / 360)
    found = described(**{"privacy.dp": "sample", "privacy.sigma": 2.0})
    assert [each for kind in found.kinds for each in kind.noise] == [Planned(2.0, 60, epsilon)] * 7
    told = (
        "Differential privacy of one training sample, against all who see what its device sends: "
        f"noise sigma 2, 60 steps planned, then epsilon {epsilon:.3g} at delta 1/(10 samples)"
    )
    assert shown(found).count(told) == 3
    assert "rivacy" not in shown(described())
