"""AGM: how far a modality is ahead, against what is usual for it."""

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.clients import Batch
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.agm import Agm, AgmOptions, ratios
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
BOTH = ("audio", "image")


def device(method: str = "agm", **config: Any) -> Any:
    learner = make_learner({**CONFIG, "method": method, **config})
    learner.before_training(Plan(2, 1), {})
    return learner


def test_the_ratios_by_hand() -> None:
    """log .6 against log .3: 2 and 1/2. Of 0, -1 and -2 the mean is -1: e^(3/2), 1, e^(-3/2)."""
    two = ratios({"audio": torch.tensor(log(0.6)), "image": torch.tensor(log(0.3))})
    assert {m: float(r) for m, r in two.items()} == pytest.approx({"audio": 2.0, "image": 0.5})
    three = ratios({m: torch.tensor(-float(i)) for i, m in enumerate("abc")})
    assert [float(r) for r in three.values()] == pytest.approx([exp(1.5), 1.0, exp(-1.5)])


def test_the_ratios_of_devices_in_a_stack_are_their_own() -> None:
    audio, image = torch.tensor([0.6, 0.3]).log(), torch.tensor([0.3, 0.6]).log()
    found = ratios({"audio": audio, "image": image})
    assert found["audio"].tolist() == pytest.approx([2.0, 0.5])


def test_gradients_follow_the_lead_against_the_usual_one() -> None:
    """At first nothing is usual, then the same scores are: nothing is scaled.

    Then .3 and .6 against 2 and 1/2: 1/2 and 2, e^.75 and e^-.75 with alpha .5.
    """
    learner = device(**{"agm.alpha": 0.5})
    samples = learner.train_data.subset(torch.arange(8))
    running = {name: value.clone() for name, value in learner.running().items()}
    batch = Batch(dict(samples.inputs), samples.labels)
    expected = [(1.0, 1.0), (1.0, 1.0), (exp(0.75), exp(-0.75))]
    for (audio, image), factors in zip([(0.6, 0.3), (0.6, 0.3), (0.3, 0.6)], expected, strict=True):
        learner.model.zero_grad()
        learner.task_loss(learner.model.encode(batch.inputs), batch.labels).backward()
        old = {m: [w.grad.clone() for w in learner.encoders()[m].parameters()] for m in BOTH}
        learner._scores = {"audio": [torch.full((8,), audio)], "image": [torch.full((8,), image)]}
        learner.modulate(BOTH, replace(batch, given=running))
        for m, factor in zip(BOTH, factors, strict=True):
            for w, before in zip(learner.encoders()[m].parameters(), old[m], strict=True):
                torch.testing.assert_close(w.grad, factor * before, rtol=1e-4, atol=1e-9)
    assert float(running["agm-count.audio"]) == 3
    assert float(running["agm.audio"]) == pytest.approx((2 * log(0.6) + log(0.3)) / 3)


def test_means_go_on_from_round_to_round_and_with_the_state() -> None:
    one, two = device(), device()
    one.run_round(Plan(1, 3), {})
    assert float(one.memory["agm-count.audio"]) == 3 and float(one.memory["agm.audio"]) < 0
    two.load_state({k: v.clone() for k, v in one.state().items()})
    a, b = (x.run_round(Plan(2, 3), {}).payload for x in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert float(one.memory["agm-count.audio"]) == 6


def test_a_modality_that_is_absent_first_has_a_mean_of_its_own() -> None:
    """Equally sure ones: nothing is scaled, whenever c comes; its mean is of two scores."""
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    learner = Agm(partition, Settings(), AgmOptions(alpha=1.0))
    batch = Batch({}, samples.labels, given=learner.running())
    for t, true in enumerate([0.5] * 9 + [0.25, 0.125]):
        seen = "abc" if t >= 9 else "ab"
        weights = [w for m in seen for w in learner.encoders()[m].parameters()]
        for w in weights:
            w.grad = torch.ones_like(w)
        learner._scores = {m: [torch.full((8,), true)] for m in seen}
        learner.modulate(tuple(seen), batch)
        if t != 10:
            assert all(torch.allclose(w.grad, torch.ones_like(w)) for w in weights)  # type: ignore[arg-type]
    given = {name: float(x) for name, x in batch.given.items()}
    assert given["agm-count.a"] == 11 and given["agm-count.c"] == 2
    assert given["agm.c"] == pytest.approx((log(0.25) + log(0.125)) / 2)
    assert given["agm.a"] == pytest.approx((9 * log(0.5) + log(0.25) + log(0.125)) / 11)


def test_looking_at_each_modality_alone_is_paid_for() -> None:
    found, plain = measure_work(device()), measure_work(device("dpsgd"))
    assert found.joint > plain.joint and found.solo == plain.solo
    assert found.joint == measure_work(device("ogm-ge")).joint
