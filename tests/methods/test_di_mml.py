"""DI-MML: effective features, the one-way contrast, and what trains what."""

from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_work import AUDIO, AUDIO_FORWARD, BATCH, HEAD, HEAD_FORWARD, IMAGE, IMAGE_FORWARD
from torch import nn

from flwr_dmml.clients import Batch, DiMml, DiMmlOptions
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.losses import alignment_loss
from flwr_dmml.methods.di_mml import CHOOSE, MEASURE, told
from flwr_dmml.models import weigh
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}


class Echo(nn.Module):
    """An encoder that returns its input: features are set by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def device(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> DiMml:
    options = {f"di-mml.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "di-mml", **options}, node)
    assert isinstance(learner, DiMml)
    return learner


def test_the_contrast_by_hand():
    """Cosines of 1 at the own sample and 0 at the other, T = 1/2: log(1 + e^-2). Zeros: log 2."""
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert float(alignment_loss(z, z, 0.5)) == pytest.approx(log(1 + exp(-2)), abs=1e-5)
    assert float(alignment_loss(z, z.flip(0), 0.5)) == pytest.approx(log(1 + exp(2)), abs=1e-5)
    assert float(alignment_loss(0 * z, z, 0.5)) == pytest.approx(log(2))


def test_which_features_tell_the_class_by_hand():
    """Means 0 and 4 of the first feature, 4 and 0 of the second; class 2 has no samples.

    Samples (1, 1) of class 0, (3, 1) of class 1 and (3, 3) of class 1: the first tells all three,
    the second (1, 1) wrongly as 1, (3, 1) rightly, (3, 3) wrongly as 0.
    """
    means = torch.tensor([[0.0, 4.0], [4.0, 0.0], [3.0, 3.0]])
    z = torch.tensor([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0]])
    found = told(z, torch.tensor([0, 1, 1]), means, torch.tensor([5.0, 5.0, 0.0]))
    assert found.tolist() == [3, 1]


def test_the_loss_by_hand():
    """Heads of zeros: ln 10 of each term: two own, two shared by beta, one fused."""
    learner = device({**CONFIG, "common-dim": 1, "specific-dim": 1}, beta=0.5, weight=3.0)
    learner.model.encoders["audio"] = learner.model.encoders["image"] = Echo()
    with torch.no_grad():
        for name, block in learner.blocks().items():
            for p in block.parameters() if not name.startswith("encoder") else ():
                p.zero_()
    audio, image = torch.tensor([[2.0, 5.0], [0.0, -1.0]]), torch.tensor([[1.0, 7.0], [-1.0, 3.0]])
    batch = Batch({"audio": audio, "image": image}, torch.tensor([0, 1]))
    plain = (2 + 2 * 0.5 + 1) * log(10)
    assert learner.loss_of(batch).item() == pytest.approx(plain, abs=1e-5)
    effective = {"audio": torch.tensor([0.0, 1.0]), "image": torch.tensor([1.0, 1.0])}
    learner.memory = {f"effective.{m}": e for m, e in effective.items()}
    # audio <- image in the first feature only: (2, 0) with (1, -1): cosines 1 -1 and 0 0
    duc = (log(1 + exp(-2)) + log(2)) / 2
    assert learner.loss_of(batch).item() == pytest.approx(plain + 3 * duc, abs=1e-4)
    assert learner.loss_of(batch.only(["audio"])).item() == pytest.approx(1.5 * log(10), abs=1e-5)


def test_the_fused_head_and_the_teacher_do_not_train_encoders():
    learner = device(beta=0.0)
    rows = learner.train_data.subset(torch.arange(8))
    z = learner.model.encode(rows.inputs)
    learner.model.fuse(z).sum().backward()
    assert all(p.grad is None for p in learner.model.encoders.parameters())
    learner.model.zero_grad()
    learner.memory = {"effective.audio": torch.zeros(64), "effective.image": torch.ones(64)}
    learner._contrast(learner.model.encode(rows.inputs), learner.fixed()).backward()
    moved = {
        m: any(bool(p.grad.any()) for p in encoder.parameters() if p.grad is not None)
        for m, encoder in learner.encoders().items()
    }
    assert moved == {"audio": True, "image": False}


def test_experts_decide():
    learner = device()
    inputs = dict(learner.test_data.inputs)
    z = learner.model.encode(inputs)
    experts = [*learner.model.alone(z).values(), learner.model.fuse(z)]
    assert torch.equal(learner.model(inputs), weigh(experts, "certainty"))
    (alone,) = learner.scores({"audio": inputs["audio"]}, [("audio",)])
    assert torch.allclose(alone, experts[0], atol=1e-6)


def test_rounds():
    """Of 30 the fourth and the fifth; nothing without the contrast."""
    options = DiMmlOptions()
    found = {t: options.phase(t, 30) for t in range(1, 31) if options.phase(t, 30)}
    assert found == {4: MEASURE, 5: CHOOSE}
    assert DiMmlOptions(begin=0.0).phase(1, 5) == MEASURE
    assert not any(DiMmlOptions(weight=0.0).phases(30))


def test_class_means_travel_once_and_features_are_chosen_by_those_of_all():
    learner, other = device(), device(node=1)
    first = learner.run_round(Plan(1, 2, phase=MEASURE), {}).payload
    theirs = other.run_round(Plan(1, 2, phase=MEASURE), {}).payload
    names = {f"{STATISTICS}prototypes.{m}" for m in ("audio", "image")}
    assert names < first.keys() and names < theirs.keys()
    second = learner.run_round(Plan(2, 2, phase=CHOOSE), {1: theirs}).payload
    assert not any(k.startswith(f"{STATISTICS}proto") for k in second)
    for m in ("audio", "image"):
        chosen = learner.memory[f"effective.{m}"]
        assert 0 < float(chosen.sum()) < 64
    missed = device(node=2)
    missed.run_round(Plan(2, 2, phase=CHOOSE), {1: theirs})
    assert missed.memory == {} and float(missed.fixed()["audio image"].sum()) == 0


def test_a_device_with_one_sensor():
    """Its own head and the shared one; it tells its class means."""
    learner = device({**CONFIG, "modality-pattern": "audio"})
    assert learner.block_names == ("head", "encoder.audio", "head.audio")
    payload = learner.run_round(Plan(1, 2, phase=MEASURE), {}).payload
    assert f"{STATISTICS}prototypes.audio" in payload
    learner.run_round(Plan(2, 2, phase=CHOOSE), {})
    assert learner.memory == {} and learner.fixed() == {}


def test_three_modalities_and_the_state_survives():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    settings = Settings(local_iterations=2, batch_size=4)
    one, two = (DiMml(partition, settings, DiMmlOptions()) for _ in range(2))
    one.run_round(Plan(1, 2, phase=MEASURE), {})
    one.run_round(Plan(2, 2, phase=CHOOSE), {})
    assert len(one.fixed()) == 6
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b = (x.run_round(Plan(3, 2, evaluate=True), {}) for x in (one, two))
    assert a.metrics == b.metrics and all(
        torch.equal(a.payload[k], b.payload[k]) for k in a.payload
    )


def test_all_heads_and_both_rounds_are_paid_for():
    """Three heads of 64 features each, the fused one without the gradient of its input."""
    learner = device(weight=0.0)
    found, head = measure_work(learner), 2 * HEAD
    fused = head - 2 * HEAD_FORWARD
    assert found.joint == BATCH * (AUDIO + IMAGE + 2 * (2 * head + fused))
    assert found.solo["audio"] == BATCH * (AUDIO + 2 * head)
    learner = device()
    n, found = len(learner.train_data), measure_work(learner)
    forward = n * (AUDIO_FORWARD + IMAGE_FORWARD)
    assert found.in_phase == {MEASURE: forward, CHOOSE: forward}
