"""What methods make of neighbours' statistics under robust aggregation: no back door for a liar."""

from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.clients import Ccl
from flwr_dmml.gossip.aggregation.median import median_of_those
from flwr_dmml.learning.label_shares import LabelShares, within
from flwr_dmml.learning.learner import Learner
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.methods.dmml_kd import DmmlKd
from flwr_dmml.methods.fedproto import FedProto
from flwr_dmml.methods.soft_labels import SoftLabels, average
from flwr_dmml.payload.blocks import STATISTICS, flatten
from flwr_dmml.payload.plan import Payload, Plan


def device(method: str, aggregation: str = "ios", **more: Any) -> Learner:
    config = {**FAST, "num-nodes": 5, "modality-pattern": "audio+image", "assume-liars": 1}
    return make_learner({**config, "method": method, "aggregation": aggregation, **more})


def test_the_median_of_those_who_are_there() -> None:
    """Of 1 and 3, of 1, 3 and 9, of 5 alone, of nobody."""
    x = torch.tensor([[1.0, 1, 5, 2], [3.0, 3, 6, 2], [9.0, 9, 7, 2]])
    there = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]]).bool()
    assert median_of_those(x, there).tolist() == [2, 3, 5, 0]


def test_counts_stay_between_those_of_honest_devices() -> None:
    """Class 0: of +6, +9, +1 and -2 with one liar, +9 and -2 go. Class 1: only one is below."""
    away = torch.tensor([[6.0, 1.0], [9.0, 2.0], [1.0, 3.0], [-2.0, -5.0]])
    assert within(away, 1).tolist() == [[6, 1], [0, 2], [1, 0], [0, 0]]
    assert within(away, 0) is away
    honest = LabelShares(torch.tensor([10, 0]), "network", lambda neighbours: 1)
    for _ in range(50):
        reports = [[12.0, 2.0, 4.0], [9.0, 1.0, 4.0], [1e6, 1e6, 0.0]]
        honest.hear(reports, 4)
    assert 8.9 < float(honest._mean[0]) < 12.1 and 0 <= float(honest._mean[1]) < 2.1
    trusting = LabelShares(torch.tensor([10, 0]), "network")
    trusting.hear(reports, 4)
    assert float(trusting._mean[0]) > 1e5


def test_near_speeds_are_medians() -> None:
    speeds = {1: 0.4, 2: 0.3, 3: 1000.0}
    inbox: dict[int, Payload] = {j: {SPEEDS: torch.tensor([v, 0.0])} for j, v in speeds.items()}
    near, _ = device("dpsgd").speedometer.near(("audio", "image"), inbox)
    assert near == pytest.approx({"near.audio": 0.4})
    near, _ = device("dpsgd", "mean").speedometer.near(("audio", "image"), inbox)
    assert near["near.audio"] > 300


def test_soft_labels_are_medians() -> None:
    """Of (.6 .4 0), (.8 .2 0) and a lie (0 0 1): (.6 .2 0) / .8. Where none agree: the mean."""
    index = torch.tensor([4, 7])
    rows = [[[0.6, 0.4, 0], [1, 0, 0]], [[0.8, 0.2, 0], [0, 1, 0]], [[0.0, 0, 1], [0, 0, 1]]]
    senders = [SoftLabels.of(index, torch.tensor(own, dtype=torch.float32)) for own in rows]
    found = average(senders, 9, 3, robust=True).labels.double()
    assert found[0].tolist() == pytest.approx([0.75, 0.25, 0], abs=1e-3)
    assert found[1].tolist() == pytest.approx([1 / 3] * 3, abs=1e-3)
    alone = average(senders[:1], 9, 3, robust=True).labels
    assert torch.equal(alone, senders[0].labels)


def test_prototypes_are_medians_over_those_who_have_the_class() -> None:
    learner = device("fedproto", **{"common-dim": 2, "specific-dim": 1})
    assert isinstance(learner, FedProto)

    def told(first: list[float], count: float) -> Payload:
        p, n = torch.zeros(10, 2), torch.zeros(10)
        p[3], n[3] = torch.tensor(first), count
        return {STATISTICS + "prototypes": p, STATISTICS + "prototype-counts": n}

    inbox = {1: told([1, 5], 3), 2: told([2, 7], 1), 3: told([-9, 9], 1e6), 4: told([8, 8], 0)}
    learner.before_training(Plan(2, 1), inbox)
    assert learner._prototypes[3].tolist() == [1, 7]
    assert learner._has.nonzero().flatten().tolist() == [3]


def test_cross_features_are_medians_and_dropped_encoders_do_not_teach() -> None:
    """Encoders at 1, 2, 3 and at -900, which is dropped; features of class 3 at 5, 7 and -900."""
    learner = device("ccl", **{"common-dim": 2, "specific-dim": 1})
    assert isinstance(learner, Ccl)
    block = "encoder.audio"
    length, weights = learner.block_lengths()[block], (0.2,) * 5
    learner.load_state({name: torch.zeros(n) for name, n in learner.block_lengths().items()})

    def told(value: float, feature: float, count: float) -> Payload:
        means, counts = torch.zeros(10, 3), torch.zeros(10)
        means[3], counts[3] = feature, count
        key = f"{STATISTICS}ccl-"
        return {
            block: torch.full((length,), float(value)),
            f"{key}means.audio.0": means,
            f"{key}counts.audio.0": counts,
        }

    inbox = {1: told(1, 5, 3), 2: told(2, 7, 1), 3: told(3, 9, 0), 4: told(-900, -900, 1e6)}
    plan = Plan(2, 1, neighbours=(1, 2, 3, 4), weights={block: weights})
    learner.mix(plan, inbox)
    learner.before_training(plan, inbox)
    taught_by = [next(x.parameters()).flatten()[0].item() for x in learner._near["audio"]]
    assert taught_by == [1, 2, 3]
    own = float(learner._means("audio", learner.encoders()["audio"])[1][3])
    assert own > 0  # its own features are those of an encoder of zeros: the median of 5, 7, -900, f
    feature = learner._means("audio", learner.encoders()["audio"])[0][3]
    expected = torch.stack([feature, *(torch.full((3,), x) for x in (5.0, 7.0, -900.0))])
    assert torch.allclose(learner._goal["audio"][3], expected.quantile(0.5, dim=0))


def test_dropped_heads_do_not_teach_and_counts_are_bounded() -> None:
    """Four neighbours, of whom one sends a head that is far away and claims a million samples."""
    learner = device("dmml-kd", gossip="dpsgd")
    assert isinstance(learner, DmmlKd)
    block = "head.common"
    own = flatten(learner.model.head_common)
    learner.counts = torch.tensor([10.0, *[0.0] * 9])
    near = 0.01 * torch.randn(4, len(own), generator=torch.Generator().manual_seed(0))
    heads = {j: own + near[j - 1] for j in range(1, 5)}
    heads[4] = -50 * own
    inbox: dict[int, Payload] = {j: {block: head} for j, head in heads.items()}
    for j, count in ((1, 8.0), (2, 30.0), (3, 0.0), (4, 1e6)):
        inbox[j][STATISTICS + "label-counts"] = torch.tensor([count, *[0.0] * 9])
    plan = Plan(2, 1, neighbours=(1, 2, 3, 4), weights={block: (0.2,) * 5})
    learner.mix(plan, inbox)
    assert learner.mixer.shares[block] == pytest.approx({1: 0.25, 2: 0.25, 3: 0.25, 4: 0.0})
    learner.before_training(plan, inbox)
    assert len(learner._heads) == 3
    # own 10, 8 and 30, of whom the middle one has 10: 10, 8, 10 and 0
    expected = torch.tensor([10.0, 8, 10, 0]) / 28
    assert torch.allclose(learner._omega[:, 0], expected, atol=1e-6)


def test_a_rule_without_weights_lets_no_neighbours_head_teach() -> None:
    learner = device("dmml-kd", "median", gossip="dpsgd")
    assert isinstance(learner, DmmlKd)
    block, head = "head.common", flatten(learner.model.head_common)
    plan = Plan(2, 1, neighbours=(1, 2, 3), weights={block: (0.25,) * 4})
    inbox: dict[int, Payload] = {j: {block: head.clone()} for j in (1, 2, 3)}
    learner.mix(plan, inbox)
    learner.before_training(plan, inbox)
    assert learner._heads == [] and len(learner._omega) == 1


def test_the_generator_is_a_block_and_goes_through_the_rule() -> None:
    learner = device("dmml-kd", gossip="dpsgd")
    assert "generator" in learner.block_names
    length = learner.block_lengths()["generator"]
    learner.load_state({"generator": torch.zeros(length)})
    inbox: dict[int, Payload] = {
        j: {"generator": torch.full((length,), 0.1 * j)} for j in (1, 2, 3)
    }
    inbox[3]["generator"] += 1000
    learner.mix(Plan(2, 1, neighbours=(1, 2, 3), weights={"generator": (0.25,) * 4}), inbox)
    assert float(learner.state()["generator"].max()) == pytest.approx(0.1)
