"""MLA: turns, the projection, and predictions by entropy; QMF's rank loss."""

from collections.abc import Mapping
from dataclasses import replace
from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_work import AUDIO, BATCH, HEAD, IMAGE

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Batch, Mla, MlaOptions
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.losses import cross_entropies, rank_loss
from flwr_dmml.methods.mla import narrowed
from flwr_dmml.models import weigh
from flwr_dmml.models.experts import confidence
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}


def mla(node: int = 0, **config: Any) -> Mla:
    learner = make_learner({**CONFIG, "method": "mla", **config}, node)
    assert isinstance(learner, Mla)
    return learner


def batch_for(learner: Mla, *modalities: str) -> Batch:
    rows = learner.train_data.subset(torch.arange(8))
    batch = Batch(dict(rows.inputs), rows.labels)
    return batch.only(modalities) if modalities else batch


def test_the_projection_by_hand():
    """P = I, r = (1, 0), a = .1: I - (1, 0)(1, 0)^T / 1.1 = diag(1/11, 1)."""
    p, r, a = torch.eye(2), torch.tensor([1.0, 0.0]), torch.tensor(0.1)
    length = sqrt(1 / 121 + 1)
    assert narrowed(p, r, a, length).flatten().tolist() == pytest.approx([1 / 11, 0, 0, 1])
    assert float(narrowed(p, r, a, 1.0).square().sum()) == pytest.approx(1.0)
    both = narrowed(torch.stack([p, p]), torch.stack([r, r.flip(0)]), torch.stack([a, a]), length)
    assert both[1].flatten().tolist() == pytest.approx([1, 0, 0, 1 / 11])


def test_predictions_are_weighed_by_entropy():
    """(ln 3, 0): 3/4 and 1/4, entropy .5623; (0, 0): ln 2. And by certainty, 3/4 and 1/2."""
    one, two = torch.tensor([[log(3), 0.0]]), torch.zeros(1, 2)
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25))
    w = exp(-entropy) / (exp(-entropy) + exp(-log(2)))
    assert weigh([one, two], "entropy")[0].tolist() == pytest.approx([w * log(3), 0])
    w = exp(0.75) / (exp(0.75) + exp(0.5))
    assert weigh([one, two], "certainty")[0].tolist() == pytest.approx([w * log(3), 0])
    assert weigh([one, two], "energy")[0].tolist() == pytest.approx([log(4) / 10 * log(3), 0])
    assert weigh([-9 - one], "energy")[0].tolist() == [0, 0]


def test_the_weights_carry_no_gradient():
    o = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weigh([o, torch.zeros(1, 2)], "entropy").sum().backward()
    w = float(weigh([torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)], "entropy")[0, 0])
    assert o.grad is not None and o.grad[0].tolist() == pytest.approx([w, w])


def test_iterations_are_turns():
    learner = mla()
    assert learner.steps({"audio": 4, "image": 4}).count(("audio",)) == 4
    assert all(len(step) == 1 for step in learner.steps({"audio": 4, "image": 4}))
    assert learner.block_names == ("head", "encoder.audio", "encoder.image")


def turn(learner: Mla, given: Mapping[str, torch.Tensor], m: str) -> list[torch.Tensor]:
    """Return the gradient of the head's weights before and after an iteration of m."""
    batch = replace(batch_for(learner, m), given=dict(given))
    learner.model.zero_grad()
    learner.local_loss(batch).backward()
    weight = learner.model.head.weight
    assert weight.grad is not None
    before = weight.grad.clone()
    learner.modulate((m,), batch)
    return [before, weight.grad.clone()]


def test_the_first_gradient_is_left_as_it_is_and_the_others_are_projected():
    """In iteration b of 4: a = .1^(1 + b / 4); the projection has read the mean feature."""
    learner = mla()
    learner.before_training(Plan(1, 2), {})
    given = learner.running() | learner.fixed()
    assert int(given["all"]) == 4
    before, after = turn(learner, given, "audio")
    assert torch.equal(before, after) and int(given["turns"]) == 1
    p = torch.eye(64)
    for b, m in ((0, "audio"), (1, "image")):
        with torch.no_grad():
            r = learner.model.encode(batch_for(learner, m).inputs)[m].mean(dim=0)
        if m == "image":
            assert torch.allclose(given["projection"], p, atol=1e-6)
            before, after = turn(learner, given, m)
        p = narrowed(p, r, torch.tensor(0.1 ** (1 + b / 4)), 1.0)
    assert torch.allclose(given["projection"], p, atol=1e-6)
    assert torch.allclose(after, before @ p.T, atol=1e-6)


def test_a_device_with_one_sensor_has_no_projection():
    learner = mla(**{"modality-pattern": "audio"})
    learner.run_round(Plan(1, 3), {})
    assert learner.running() == {} and learner.memory == {}
    batch = batch_for(learner)
    logits = learner.model(batch.inputs)
    expected = learner.cross_entropy(logits, batch.labels)
    assert learner.loss_of(batch).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("unit", [True, False])
def test_the_projection_survives_and_rounds_are_the_same(unit: bool):
    config = {"mla.unit-norm": unit}
    one, two, again = (mla(**config) for _ in range(3))
    for learner in (one, again):
        learner.run_round(Plan(1, 3), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b, c = (x.run_round(Plan(2, 3), {}).payload for x in (one, two, again))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)
    assert int(one.memory["turns"]) == 12
    norm = float(one.memory["projection"].norm())
    assert norm == pytest.approx(1.0 if unit else 8.0, rel=1e-4)


def rank(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return rank_loss(confidence(logits), cross_entropies(logits, labels))


def test_the_rank_loss_by_hand():
    """Losses ln 2 and ln(4/3) / scaled 1 and 0; energies ln 2 / 10 and ln 4 / 10.

    Pairs (0, 1) and (1, 0): 1 (ln 2 - ln 4) / 10 + 1 twice.
    """
    logits = torch.tensor([[0.0, 0.0], [log(3), 0.0]])
    found = rank(logits, torch.tensor([0, 0]))
    assert float(found) == pytest.approx(1 - log(2) / 10)
    assert float(rank(logits[:1], torch.tensor([0]))) == 0


def test_qmf_by_hand():
    learner = mla(**{"mla.variant": "qmf", "stagger": 0.0, "mla.rank-weight": 0.5})
    batch = batch_for(learner)
    alone = learner.model.alone(learner.model.encode(batch.inputs))
    expected = learner.cross_entropy(weigh(list(alone.values()), "energy"), batch.labels)
    for o in alone.values():
        expected = expected + learner.cross_entropy(o, batch.labels) + 0.5 * rank(o, batch.labels)
    assert learner.loss_of(batch).item() == pytest.approx(expected.item(), abs=1e-5)
    assert set(learner.block_names) > {"head.audio", "head.image"}
    learner.run_round(Plan(1, 2), {})


def test_qmf_needs_joint_iterations():
    with pytest.raises(SettingsError, match=r"mla\.variant = 'qmf'"):
        mla(**{"mla.variant": "qmf"})


def test_three_modalities():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    learner = Mla(partition, Settings(local_iterations=2, batch_size=4), MlaOptions())
    outcome = learner.run_round(Plan(1, 2, evaluate=True), {})
    assert outcome.metrics["train.iterations"] == 6 and "test.without.a" in outcome.metrics


def test_a_turn_is_an_encoder_and_the_head():
    """64 features -> 10 classes: twice a head of 32."""
    found = measure_work(mla())
    assert found.solo == {
        "audio": BATCH * (AUDIO + 2 * HEAD),
        "image": BATCH * (IMAGE + 2 * HEAD),
    }
    assert found.joint == sum(found.solo.values())
