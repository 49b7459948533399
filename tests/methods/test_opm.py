"""OPM: who is ahead, what is dropped, and what is left of the loss."""

from dataclasses import replace
from math import log, tanh
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from torch import nn

from flwr_dmml.clients import Batch, Opm, OpmOptions
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.alone import leads
from flwr_dmml.methods.opm import chances
from flwr_dmml.payload.plan import Plan

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
WIDTHS = {"common-dim": 10, "specific-dim": 1}


class Echo(nn.Module):
    """An encoder that returns its input: features are set by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def opm(config: dict[str, Any] = CONFIG, node: int = 0, server_round: int = 9, **own: Any) -> Opm:
    options = {f"opm.{k.replace('_', '-')}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "opm", **options}, node)
    assert isinstance(learner, Opm)
    learner.server_round = server_round
    learner.before_training(Plan(server_round, 1), {})
    return learner


def scores(**given: float) -> dict[str, torch.Tensor]:
    return {m: torch.tensor(s) for m, s in given.items()}


def test_how_far_ahead_by_hand():
    """Of .6 .3 .1 the first stands against the mean .2, the sum .4 or the least .1."""
    given = scores(a=0.6, b=0.3, c=0.1)
    found = {how: float(leads(given, how)["a"]) for how in ("mean", "sum", "weakest")}  # type: ignore[arg-type]
    assert found == pytest.approx({"mean": 3.0, "sum": 1.5, "weakest": 6.0})
    pair = scores(a=0.6, b=0.3)
    assert all(float(leads(pair, how)["a"]) == pytest.approx(2) for how in found)  # type: ignore[arg-type]
    assert leads(scores(a=0.6)) == {}


def test_the_chances_by_hand():
    """s = .6, .3: rho = 2 - 1 = 1: q = .5 (1 + .5 tanh 1); the other is behind: 0."""
    found = chances(scores(a=0.6, b=0.3), OpmOptions())
    assert float(found["a"]) == pytest.approx(0.5 * (1 + 0.5 * tanh(1)))
    assert float(found["b"]) == 0
    assert {float(q) for q in chances(scores(a=0.4, b=0.4), OpmOptions()).values()} == {0.0}
    certain = chances(scores(a=0.9, b=0.1), OpmOptions(base=0.9, strength=5.0))
    assert float(certain["a"]) == 1.0


def test_with_three_modalities_only_one_that_beats_the_sum_is_dropped_or_the_mean():
    given = scores(a=0.5, b=0.4, c=0.2)  # sum of the others .6, mean .3; of b .7 and .35
    assert {float(q) for q in chances(given, OpmOptions()).values()} == {0.0}
    found = chances(given, OpmOptions(against="mean"))
    assert float(found["a"]) == pytest.approx(0.5 * (1 + 0.5 * tanh(0.5 / 0.3 - 1)))
    assert float(found["b"]) == pytest.approx(0.5 * (1 + 0.5 * tanh(0.4 / 0.35 - 1)))
    assert float(found["c"]) == 0


def test_the_loss_by_hand():
    """Heads that pass on the common features: audio (ln 9 at the class), image flat.

    s = .5 = 9/18 and .1: rho = 4, q = .5 (1 + .5 tanh 4) =: q, theta = q / 2. Sample 0 keeps both:
    ln 9 / 2 / (1 - theta) at its class; sample 1 loses audio: flat, ln 10; sample 2 loses both (the
    image cannot: q = 0), so its luck does not matter.
    """
    learner = opm({**CONFIG, **WIDTHS})
    learner.model.encoders["audio"] = learner.model.encoders["image"] = Echo()
    with torch.no_grad():
        learner.model.head_common.weight.copy_(torch.eye(10))
        learner.model.head_common.bias.zero_()
        for m in ("audio", "image"):
            learner.model.heads[m].weight.zero_()
    y = torch.tensor([4, 7])
    audio = torch.zeros(2, 11)
    audio[0, 4] = audio[1, 7] = log(9)
    luck = torch.tensor([[0.9, 0.1], [0.0, 0.0]])
    given = {"drops": torch.tensor(True), "luck": luck}
    batch = Batch({"audio": audio, "image": torch.zeros(2, 11)}, y, given=given)
    q = 0.5 * (1 + 0.5 * tanh(4))
    high = log(9) / 2 / (1 - q / 2)
    expected = (log(torch.tensor(high).exp().item() + 9) - high + log(10)) / 2
    assert learner.local_loss(batch).item() == pytest.approx(expected, abs=1e-5)
    quiet = replace(batch, given={"drops": torch.tensor(False), "luck": luck})
    task = learner.task_loss(learner.model.encode(batch.inputs), y)
    assert learner.local_loss(quiet).item() == pytest.approx(task.item(), abs=1e-6)


def test_samples_that_lost_everything_do_not_count():
    """Of three modalities two are ahead of the others' mean; a sample may lose both, not all."""
    learner = opm()
    logits, y = torch.zeros(3, 10), torch.tensor([0, 1, 2])
    logits[2, 2] = 50.0
    one = learner.cross_entropy(logits, y, torch.tensor([True, False, True]))
    assert one.item() == pytest.approx(log(10) / 2)
    assert learner.cross_entropy(logits, y, torch.zeros(3) > 0).item() == 0


def test_nothing_is_dropped_in_the_warm_up_and_of_one_modality():
    learner = opm(server_round=1)  # of 30: progress 0 < .05
    batch = Batch(dict(learner.train_data.inputs), learner.train_data.labels)
    assert not any(bool(learner.draw(batch)["drops"]) for _ in range(50))
    assert learner.draw(batch.only(["audio"])) == {}
    begun = opm()
    drops = [bool(begun.draw(batch)["drops"]) for _ in range(400)]
    assert sum(drops) / 400 == pytest.approx(0.7, abs=0.08)


def test_draws_depend_on_seed_node_and_round_only():
    def luck(**how: Any) -> torch.Tensor:
        config = {**CONFIG, "seed": how.pop("seed", 0)}
        learner = opm(config, **how)
        batch = Batch(dict(learner.train_data.inputs), learner.train_data.labels)
        return learner.draw(batch)["luck"]

    assert torch.equal(luck(), luck())
    for other in (luck(node=1), luck(server_round=2), luck(seed=1)):
        assert not torch.equal(luck(), other)


def test_the_scores_are_paid_for():
    """A forward pass of two heads of each modality more."""
    plain, found = (
        measure_work(make_learner({**CONFIG, "method": m})).joint for m in ("dpsgd", "opm")
    )
    assert plain < found < 1.02 * plain
