"""AGM: how far a modality is ahead, against what is usual for it."""

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.clients import Batch
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.agm import ratios
from flwr_dmml.payload.plan import Plan

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
    """First 2 and 1/2 against 1: e^-.5 and e^.25 with alpha .5.

    Then the same scores are what is usual, and nothing is scaled. The means of both are theirs.
    Then .3 and .6 against that: 1/2 and 2 against 2 and 1/2, e^.75 and e^-.75.
    """
    learner = device(**{"agm.alpha": 0.5})
    samples = learner.train_data.subset(torch.arange(8))
    running = {name: value.clone() for name, value in learner.running().items()}
    batch = Batch(dict(samples.inputs), samples.labels)
    expected = [(exp(-0.5), exp(0.25)), (1.0, 1.0), (exp(0.75), exp(-0.75))]
    for (audio, image), factors in zip([(0.6, 0.3), (0.6, 0.3), (0.3, 0.6)], expected, strict=True):
        learner.model.zero_grad()
        learner.task_loss(learner.model.encode(batch.inputs), batch.labels).backward()
        old = {m: [w.grad.clone() for w in learner.encoders()[m].parameters()] for m in BOTH}
        learner._scores = {"audio": [torch.full((8,), audio)], "image": [torch.full((8,), image)]}
        learner.modulate(BOTH, replace(batch, given=running))
        for m, factor in zip(BOTH, factors, strict=True):
            for w, before in zip(learner.encoders()[m].parameters(), old[m], strict=True):
                torch.testing.assert_close(w.grad, factor * before, rtol=1e-4, atol=1e-9)
    assert float(running["agm"]) == 3
    assert float(running["agm.audio"]) == pytest.approx((2 * log(0.6) + log(0.3)) / 3)


def test_means_go_on_from_round_to_round_and_with_the_state() -> None:
    one, two = device(), device()
    one.run_round(Plan(1, 3), {})
    assert float(one.memory["agm"]) == 3 and float(one.memory["agm.audio"]) < 0
    two.load_state({k: v.clone() for k, v in one.state().items()})
    a, b = (x.run_round(Plan(2, 3), {}).payload for x in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a) and float(one.memory["agm"]) == 6


def test_looking_at_each_modality_alone_is_paid_for() -> None:
    found, plain = measure_work(device()), measure_work(device("dpsgd"))
    assert found.joint > plain.joint and found.solo == plain.solo
    assert found.joint == measure_work(device("ogm-ge")).joint
