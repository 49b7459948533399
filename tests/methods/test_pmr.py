"""PMR: distances to prototypes, who is pulled, and what travels."""

from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_work import AUDIO_FORWARD, IMAGE_FORWARD
from torch import nn

from flwr_dmml.clients import Batch, Pmr
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.pmr import REBALANCE, PmrOptions, closeness, weights
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
PLAN = Plan(2, 3, phase=REBALANCE)


class Echo(nn.Module):
    """An encoder that returns its input: features are set by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def pmr(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> Pmr:
    options = {f"pmr.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "pmr", **options}, node)
    assert isinstance(learner, Pmr)
    return learner


def test_closeness_by_hand():
    """z = (3, 4, 0, 0), p = 0 and (3, 0, 0, 0): 5 / 2 and 4 / 2; a class without prototype."""
    z, p = torch.tensor([[3.0, 4, 0, 0]]), torch.zeros(3, 4)
    p[1, 0] = 3
    found = closeness(z, p, torch.tensor([True, True, False]))
    assert found[0].tolist() == pytest.approx([-2.5, -2.0, -1e4])


def test_the_gradient_at_a_prototype_is_finite():
    z = torch.zeros(1, 4, requires_grad=True)
    closeness(z, torch.zeros(2, 4), torch.ones(2) > 0).sum().backward()
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_who_is_pulled():
    """Of two the weaker one, of equals nobody; of three by how far it is from the best."""
    a, b, c = (torch.tensor(x) for x in (0.8, 0.4, 0.2))
    assert {m: float(w) for m, w in weights({"a": a, "b": b}).items()} == {"a": 0, "b": 1}
    assert {m: float(w) for m, w in weights({"a": a, "b": a}).items()} == {"a": 0, "b": 0}
    found = {m: float(w) for m, w in weights({"a": a, "b": b, "c": c}).items()}
    assert found == pytest.approx({"a": 0.0, "b": 0.5, "c": 0.75})


def test_the_loss_by_hand():
    """Two features each. Audio: the sample at p_0, p_1 is sqrt(2) 2 / sqrt(2) = 2 away.

    Image: both prototypes are 2 away: softmax 1/2 < 1 / (1 + e^-2): it is weak, alpha log 2.
    """
    learner = pmr({**CONFIG, "common-dim": 1, "specific-dim": 1}, alpha=0.5)
    learner.model.encoders["audio"] = learner.model.encoders["image"] = Echo()
    learner._rebalances = True
    p, has = torch.zeros(10, 2), torch.arange(10) < 2
    p[1] = torch.tensor([2.0, 2.0])
    batch = Batch({m: torch.zeros(1, 2) for m in ("audio", "image")}, torch.tensor([0]))
    batch.inputs["image"] = torch.tensor([[0.0, 2.0]])
    learner.prototypes = {f"prototypes.{m}": p for m in batch.inputs}
    learner.prototypes |= {f"has.{m}": has for m in batch.inputs}
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    assert (learner.loss_of(batch) - task).item() == pytest.approx(0.5 * log(2), abs=1e-4)
    batch.inputs["image"] = torch.tensor([[2.0, 2.0]])  # at the wrong one
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    expected = 0.5 * log(1 + exp(2 * sqrt(2) / sqrt(2) - 1e-3))  # no distance is below .001
    assert (learner.loss_of(batch) - task).item() == pytest.approx(expected, abs=1e-4)


def test_prototypes_are_averaged_by_samples_and_some_of_the_old_are_kept():
    """Own class 3: n samples at p; theirs 3 n at p + 4: p + 3. Then .2 (p + 3) + .8 p."""
    learner = pmr()
    learner.before_training(PLAN, {})
    own = learner.prototypes["prototypes.audio"].clone()
    counts = learner.memory["prototype-counts.audio"]
    told = {f"{STATISTICS}prototypes.audio": own + 4}
    told[f"{STATISTICS}prototype-counts.audio"] = 3 * counts
    fresh = pmr()
    fresh.before_training(PLAN, {1: told})
    there = fresh.prototypes["has.audio"]
    assert torch.equal(there, counts > 0)
    found = fresh.prototypes["prototypes.audio"]
    assert torch.allclose(found[there], own[there] + 3, atol=1e-5)
    fresh.before_training(PLAN, {})
    found = fresh.prototypes["prototypes.audio"]
    assert torch.allclose(found[there], own[there] + 0.6, atol=1e-5)


def test_prototypes_are_of_the_mixed_encoders_and_travel():
    """A device with one sensor trains as D-PSGD does, and sends its own."""
    config = {**CONFIG, "modality-pattern": "audio"}
    learner, plain = pmr(config), make_learner({**config, "method": "dpsgd"})
    with torch.no_grad():
        z = torch.cat([*learner.model.encode(learner.train_data.inputs).common.values()])
    payload = learner.run_round(PLAN, {}).payload
    expected = plain.run_round(PLAN, {}).payload
    assert all(torch.equal(payload[k], expected[k]) for k in expected)
    p = payload[f"{STATISTICS}prototypes.audio"]
    y = int(learner.train_data.labels[0])
    mean = z[learner.train_data.labels == y].mean(dim=0)
    assert torch.allclose(p[y, : len(mean)], mean, atol=1e-5)


def test_the_loss_ends_after_some_rounds():
    options = PmrOptions()
    assert [bool(options.phase(t, 12)) for t in range(1, 13)] == [True] * 8 + [False] * 4
    assert not PmrOptions(alpha=0.0).phase(1, 12)


def test_prototypes_are_not_sent_after_the_last_round_with_the_loss():
    learner = pmr()
    plans = Plan(1, 3, phase=REBALANCE), Plan(2, 3)
    sent = [learner.run_round(plan, {}).payload for plan in plans]
    own = {f"{STATISTICS}prototype{kind}.audio" for kind in ("s", "-counts")}
    assert own <= sent[0].keys()
    assert not any(name.startswith(f"{STATISTICS}prototype") for name in sent[1])


def test_state_survives_and_rounds_are_the_same():
    one, two, again = pmr(), pmr(), pmr()
    for learner in (one, again):
        for t in (1, 2):
            learner.run_round(Plan(t, 3, phase=REBALANCE), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    third = Plan(3, 3, phase=REBALANCE)
    a, b, c = (x.run_round(third, {}).payload for x in (one, two, again))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


def test_prototypes_are_paid_for_in_rounds_that_have_them():
    learner = pmr()
    found, samples = measure_work(learner), len(learner.train_data)
    assert found.per_round == 0
    assert found.in_phase == {REBALANCE: samples * (AUDIO_FORWARD + IMAGE_FORWARD)}
