"""FedProto: what is averaged, what is published, and what is refused."""

import re
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from torch import nn

from flwr_dmml.clients import Batch, FedProto
from flwr_dmml.data import Samples
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "modality-pattern": "audio+image",
    "method": "fedproto",
}
PROTOTYPES, COUNTS = STATISTICS + "prototypes", STATISTICS + "prototype-counts"


def device(config: dict[str, Any] = CONFIG, node: int = 0, **options: Any) -> FedProto:
    own = {f"fedproto.{key}": value for key, value in options.items()}
    learner = make_learner({**config, **own}, node)
    assert isinstance(learner, FedProto)
    return learner


class Echo(nn.Module):
    """An encoder that returns its input: features are set by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def proto(**options: Any) -> FedProto:
    """Return a device with 2 common and 1 specific features, equal to what is fed in."""
    learner = device({**CONFIG, "common-dim": 2, "specific-dim": 1}, **options)
    learner.model.encoders["audio"] = learner.model.encoders["image"] = Echo()
    return learner


def statistics(prototypes: dict[int, list[float]], counts: dict[int, float]):
    """Return a payload with these prototypes and counts of classes."""
    p, n = torch.zeros(10, 2), torch.zeros(10)
    for y, values in prototypes.items():
        p[y], n[y] = torch.tensor(values), counts[y]
    return {PROTOTYPES: p, COUNTS: n}


def test_prototypes_are_averaged_by_their_samples():
    """Class 0: 1 sample at (0, 4) here, 3 at (4, 0) there: (3, 1). Class 2: theirs alone."""
    learner = proto()
    own = statistics({0: [0.0, 4.0]}, {0: 1})
    learner.memory = {k.removeprefix(STATISTICS): v for k, v in own.items()}
    theirs = statistics({0: [4.0, 0.0], 2: [5.0, 6.0]}, {0: 3, 2: 2})
    learner.before_training(Plan(2, 1), {1: theirs, 2: {}})
    assert learner._prototypes[[0, 2]].tolist() == [[3.0, 1.0], [5.0, 6.0]]
    assert learner._has.tolist() == [True, False, True] + [False] * 7
    assert learner.rejected == []


def test_the_distance_to_the_prototypes_by_hand():
    """P_0 = (1, 0). Sample of class 0: audio (1, 2): 4, image (3, 0): 4; their mean is 4.

    The second sample is of class 1, without a prototype: 0. Over the batch 2, times 0.5.
    """
    learner = proto(weight=0.5)
    learner.before_training(Plan(2, 1), {1: statistics({0: [1.0, 0.0]}, {0: 1})})
    audio = torch.tensor([[1.0, 2.0, 0.0], [9.0, 9.0, 0.0]])
    image = torch.tensor([[3.0, 0.0, 0.0], [9.0, 9.0, 0.0]])
    batch = Batch({"audio": audio, "image": image}, torch.tensor([0, 1]))
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    assert (learner.loss_of(batch) - task).item() == pytest.approx(1.0, abs=1e-5)
    alone = batch.only(["audio"])  # 4 of audio, over two samples
    task = learner.task_loss(learner.model.encode(alone.inputs), alone.labels)
    assert (learner.loss_of(alone) - task).item() == pytest.approx(1.0, abs=1e-5)
    only = Batch({"image": torch.tensor([[1.0, 3.0, 0.0]])}, torch.tensor([0]))  # 9
    task = learner.task_loss(learner.model.encode(only.inputs), only.labels)
    assert (learner.loss_of(only) - task).item() == pytest.approx(4.5, abs=1e-5)


def test_prototypes_are_the_mean_common_features_of_the_own_samples():
    """Class 3: (1, 2) and (3, 4) of one sample's modalities, (5, 7) of one with audio only.

    The first has the mean (2, 3), so the prototype is (3.5, 5). Class 1: (8, 8) from the image.
    """
    learner = proto()
    learner.model.encoders["audio"] = nn.Dropout(0.5)  # not while prototypes are made
    learner.train_data = Samples(
        {
            "audio": torch.tensor([[1.0, 2.0, 0.0], [5.0, 7.0, 0.0], [0.0, 0.0, 0.0]]),
            "image": torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [8.0, 8.0, 0.0]]),
        },
        torch.tensor([3, 3, 1]),
        present={"audio": torch.tensor([True, True, False]), "image": torch.tensor([1, 0, 1]) > 0},
    )
    learner.after_training(Plan(1, 1), {})
    expected = statistics({3: [3.5, 5.0], 1: [8.0, 8.0]}, {3: 2, 1: 1})
    assert torch.equal(learner.statistics()["prototypes"], expected[PROTOTYPES])
    assert torch.equal(learner.statistics()["prototype-counts"], expected[COUNTS])


def test_prototypes_are_those_of_the_trained_model_and_cross_modalities():
    """A microphone publishes its own; a camera that hears them has a goal for their classes."""
    config = {**CONFIG, "modality-pattern": "audio,image"}
    audio, image = (device(config, node) for node in (0, 1))
    assert audio.statistics() == {}
    payload = audio.run_round(Plan(1, 5), {}).payload
    data = audio.train_data
    with torch.no_grad():
        common = audio.model.encode(data.inputs).common["audio"]
    for y in range(10):
        rows = data.labels == y
        assert int(payload[COUNTS][y]) == int(rows.sum())
        if rows.any():
            assert torch.allclose(payload[PROTOTYPES][y], common[rows].mean(dim=0), atol=1e-5)
    image.before_training(Plan(2, 1), {0: payload})
    assert torch.equal(image._has, payload[COUNTS] > 0)


@pytest.mark.parametrize("method", ["fedproto", "mfcpl", "pmcmfl", "pmr"])
def test_a_device_that_rests_sends_no_prototypes(method: str):
    learner = make_learner({**CONFIG, "method": method})
    parked, names = {"audio": 0, "image": 0}, list[bool]()
    for t, by_modality in enumerate([{}, parked, {}], start=1):
        plan = Plan(t, 2, by_modality=by_modality, phase=learner.options.phase(t, 9))
        payload = learner.run_round(plan, {}).payload
        names.append(any(name.startswith(f"{STATISTICS}prototype") for name in payload))
    assert names == [True, False, True]


@pytest.mark.parametrize(
    "bad, words",
    [
        ({PROTOTYPES: torch.zeros(2, 10)}, r"prototypes has shape \(2, 10\) instead of \(10, 2\)"),
        ({PROTOTYPES: torch.zeros(20)}, r"prototypes has shape \(20,\)"),
        ({PROTOTYPES: torch.full((10, 2), float("nan"))}, "prototypes holds NaN"),
        ({PROTOTYPES: torch.full((10, 2), 1e30)}, "prototypes holds values beyond"),
        ({PROTOTYPES: torch.zeros(10, 2, dtype=torch.int64)}, "prototypes has type"),
        ({COUNTS: torch.full((10,), -1.0)}, "prototype-counts holds negative"),
        ({COUNTS: torch.full((10,), float("inf"))}, "prototype-counts holds NaN or inf"),
        ({COUNTS: torch.ones(3)}, r"prototype-counts has shape \(3,\)"),
        ({COUNTS: torch.empty(0)}, r"prototype-counts has shape \(0,\)"),
    ],
)
def test_bad_prototypes_are_named_and_left_out(bad: dict[str, torch.Tensor], words: str):
    good = statistics({4: [1.0, 2.0]}, {4: 5})
    learner = proto()
    learner.before_training(Plan(2, 1), {1: good | bad, 2: good})
    assert learner._prototypes[4].tolist() == [1.0, 2.0] and int(learner._has.sum()) == 1
    (line,) = learner.rejected
    assert re.match(f"1: {words}", line)


def test_far_prototypes_are_refused_and_near_ones_are_not():
    """Own ones up to 3: neighbours' may reach 30. Without own ones: 10."""
    learner = proto()
    theirs = {
        1: statistics({4: [30.0, -30.0]}, {4: 1}),
        2: statistics({4: [0.0, 30.5]}, {4: 1}),
        3: statistics({5: [1e6, 0.0]}, {5: 1e6}),
    }
    own = statistics({4: [3.0, -3.0]}, {4: 1})
    learner.memory = {k.removeprefix(STATISTICS): v for k, v in own.items()}
    learner.before_training(Plan(2, 1), theirs)
    assert learner._prototypes[4].tolist() == [16.5, -16.5] and not learner._has[5]
    outside = "prototypes holds values outside of -30 to 30"
    assert learner.rejected == [f"2: {outside}", f"3: {outside}"]
    learner.memory, learner.rejected = {}, []
    learner.before_training(Plan(2, 1), {1: theirs[1], 2: statistics({4: [10.0, 0.0]}, {4: 1})})
    assert learner._prototypes[4].tolist() == [10.0, 0.0]
    assert learner.rejected == ["1: prototypes holds values outside of -10 to 10"]


def test_a_liar_is_as_if_it_were_silent():
    """Without clipping, too, where a far prototype would leave NaN."""
    found = []
    for value in (None, 100.0, 1e6):
        learner = device({**CONFIG, "clip-norm": 0.0})
        learner.run_round(Plan(1, 4), {})
        lie = {PROTOTYPES: torch.full((10, 32), value or 0.0), COUNTS: torch.full((10,), 1e6)}
        outcome = learner.run_round(Plan(2, 4), {1: lie} if value else {})
        assert bool(outcome.rejected) == bool(value)
        found.append(outcome.metrics["train.loss"])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("key", [PROTOTYPES, COUNTS])
def test_half_of_what_prototypes_need_is_not_enough(key: str):
    learner = proto()
    payload = statistics({4: [1.0, 2.0]}, {4: 5})
    learner.before_training(Plan(2, 1), {1: {key: payload[key]}})
    assert len(learner.rejected) == 1 and not learner._has.any()


def test_bad_prototypes_are_in_the_outcome():
    learner = device()
    inbox = {1: {PROTOTYPES: torch.zeros(7), COUNTS: torch.ones(10)}}
    (line,) = learner.run_round(Plan(2, 2), inbox).rejected
    assert line.startswith("1: prototypes has shape (7,)")


def test_prototypes_pull_the_common_features_together():
    """Mean squared distance to the class mean after 6 rounds, with the term against without."""

    def spread(weight: float) -> float:
        learner = device(weight=weight)
        for t in range(1, 7):
            learner.run_round(Plan(t, 20), {})
        with torch.no_grad():
            common = learner.model.encode(learner.train_data.inputs).common
        goal = learner.memory["prototypes"][learner.train_data.labels]
        return float(torch.stack([((c - goal) ** 2).sum(1) for c in common.values()]).mean())

    assert spread(1.0) < 0.3 * spread(0.0)
