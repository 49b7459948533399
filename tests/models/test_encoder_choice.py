"""Every encoder in a learner: it trains, is billed, and trains together with others."""

from typing import Any

import pytest
import torch
from helpers import ROOT, run_together

from flwr_dmml.clients import Learner, find_methods
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.flops import FlopCounter
from flwr_dmml.learning.options import Options
from flwr_dmml.learning.together import likeness
from flwr_dmml.learning.work import measure_work
from flwr_dmml.models import ENCODERS, EncoderChoice, make_encoder
from flwr_dmml.payload.blocks import num_parameters
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

SHAPES: dict[str, tuple[int, ...]] = {
    "image": (1, 8, 8),
    "audio": (1, 16, 12),
    "series": (3, 12),
    "sequence": (4, 10),
    "vector": (6,),
}
CHOICES = [(kind, name) for kind, named in ENCODERS.items() for name in named]
BATCH, FEATURES = 4, 8
HEADS = 2 * 6 * 4 * 3  # common or specific features (4) -> classes (3), 6 FLOPs a weight


def partition(kind: Any, number: int = 0) -> Partition:
    """Return 12 samples of one modality, of 3 classes; sequences of 1 to 10 steps."""
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(12, *SHAPES[kind], generator=generator)
    if kind == "sequence":
        x[:, -1] = 1.0
        for sample, length in zip(x, torch.randint(1, 11, (12,), generator=generator), strict=True):
            sample[:, length:] = 0.0
    samples = Samples({kind: x}, torch.arange(12) % 3)
    return Partition(
        number, (kind,), samples, samples, {kind: Modality(kind, SHAPES[kind])}, 3, samples
    )


def settings(kind: str, name: str, **changed: Any) -> Settings:
    chosen = {f"{'series' if kind == 'sequence' else kind}_encoder": name, "batch_size": BATCH}
    return Settings(common_dim=4, specific_dim=4, **{**chosen, **changed})


def learner(kind: str, name: str, method: str, number: int = 0, **changed: Any) -> Learner:
    of_method = find_methods()[method]
    options: Options = of_method.options_type()
    return of_method(partition(kind, number), settings(kind, name, **changed), options)


def test_the_settings_name_every_encoder() -> None:
    for kind in ("image", "audio", "series", "vector"):
        annotation = Settings.model_fields[f"{kind}_encoder"].annotation
        assert set(annotation.__args__) == set(ENCODERS[kind])  # type: ignore[union-attr]
    assert set(ENCODERS["sequence"]) == set(ENCODERS["series"])


def test_the_choice_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().encoder_choice == EncoderChoice()
    monkeypatch.setenv("HOME", "/home/me")
    chosen = Settings(
        image_encoder="conv3",
        audio_encoder="tiny",
        series_encoder="gru",
        vector_encoder="tiny",
        encoder_weights="~/w.pth",
    ).encoder_choice
    expected = {"image": "conv3", "audio": "tiny", "series": "gru", "vector": "tiny"}
    assert chosen == EncoderChoice(**expected, weights="/home/me/w.pth")


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd"])
@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_every_encoder_trains(kind: Any, name: str, method: str) -> None:
    """A round after the first, in which DMML-KD does all it does."""
    trained = learner(kind, name, method)
    block, choice = f"encoder.{kind}", trained.settings.encoder_choice
    expected = make_encoder(Modality(kind, SHAPES[kind]), FEATURES, choice)
    assert trained.block_lengths()[block] == num_parameters(expected)
    before = trained.state()[block]
    outcome = trained.run_round(Plan(2, 2, evaluate=True), {})
    after = outcome.payload[block]
    assert outcome.metrics["train.loss"] > 0
    assert bool(after.isfinite().all()) and not torch.equal(after, before)


@pytest.mark.parametrize("method", ["fedcmi", "harmony"])
def test_other_models_make_the_same_choice(method: str) -> None:
    lengths = learner("sequence", "gru", method).block_lengths()
    expected = make_encoder(Modality("sequence", (4, 10)), FEATURES, EncoderChoice(series="gru"))
    assert lengths["encoder.sequence"] == num_parameters(expected)


def test_a_gru_is_billed_by_its_operations() -> None:
    """12 steps of 3 channels -> 192 and 64 -> 192, of which the first has a constant state."""
    flops = 4 * 12 * 3 * 192 + (6 * 12 - 2) * 64 * 192 + 6 * 64 * FEATURES
    work = measure_work(learner("series", "gru", "dpsgd"))
    assert work.joint == work.solo["series"] == BATCH * (flops + HEADS)


@pytest.mark.parametrize(("kind", "channels", "steps"), [("series", 3, 12), ("sequence", 3, 10)])
def test_convolutions_are_billed_by_their_operations(kind: str, channels: int, steps: int) -> None:
    """12 steps become 6, then stay; 10 become 5."""
    left = steps // 2
    flops = 4 * 5 * channels * 16 * left + 6 * 5 * (16 * 32 + 32 * 64) * left + 6 * 64 * FEATURES
    assert measure_work(learner(kind, "conv1d", "dpsgd")).joint == BATCH * (flops + HEADS)


@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_devices_train_together_as_they_do_alone(kind: str, name: str) -> None:
    """To the last bit; and as row by row, up to rounding."""
    plan, tiny = Plan(1, 3), {"batch_size": 2} if "resnet" in name else {}
    together = [learner(kind, name, "dpsgd", k, **tiny) for k in range(3)]
    assert len({likeness(device, plan) for device in together} - {None}) == 1
    for number, result in enumerate(run_together(together, [plan] * 3)):
        assert not isinstance(result, Exception)
        alone = learner(kind, name, "dpsgd", number, **tiny).run_round(plan, {})
        exact = learner(kind, name, "dpsgd", number, exact=True, **tiny).run_round(plan, {})
        assert result.metrics == alone.metrics
        loss = exact.metrics["train.loss"]
        assert result.metrics["train.loss"] == pytest.approx(loss, rel=1e-4)
        for block, value in alone.payload.items():
            assert torch.equal(result.payload[block], value), block
            assert torch.allclose(exact.payload[block], value, rtol=1e-3, atol=1e-4), block


@pytest.mark.parametrize("name", ENCODERS["sequence"])
def test_sequences_in_mixed_precision(name: str) -> None:
    full, mixed = (
        learner("sequence", name, "dpsgd", mixed_precision=mixed).run_round(Plan(1, 3), {})
        for mixed in (False, True)
    )
    loss = full.metrics["train.loss"]
    assert loss != mixed.metrics["train.loss"] == pytest.approx(loss, rel=0.1)


DOCS = ROOT / "docs" / "encoders.md"


def rows() -> list[list[str]]:
    """Return the cells of the table of figures in the docs."""
    lines = [line.strip("| ").split(" | ") for line in DOCS.read_text().splitlines()]
    return [cells for cells in lines if len(cells) == 7 and cells[0] in ENCODERS]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[2]}")
def test_the_figures_of_the_docs(row: list[str]) -> None:
    kind, size, name, parameters, kib, forward, training = row
    shape = tuple(int(n) for n in size.split(" x "))
    encoder = ENCODERS[kind][name.strip("`")](shape, 64)
    assert parameters == f"{num_parameters(encoder):,}"
    assert kib == f"{4 * num_parameters(encoder) / 1024:,.1f}"
    for passes, figure in ((1, forward), (2, training)):
        with FlopCounter() as counter:
            features = encoder(torch.zeros(1, *shape))
            if passes == 2:
                features.sum().backward()
        assert figure == f"{counter.flops / 1e6:.3g}"


def test_the_docs_have_every_encoder() -> None:
    assert {(row[0], row[2].strip("`")) for row in rows()} == set(CHOICES)
