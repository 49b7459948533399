"""CCL: cross-features of models and of data, by hand, on all engines' paths, with any rule."""

from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor, nn

from flwr_dmml.clients import Batch, Ccl, Learner
from flwr_dmml.data import Samples
from flwr_dmml.payload.blocks import STATISTICS, num_parameters
from flwr_dmml.payload.plan import Inbox, Plan

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "modality-pattern": "audio+image",
    "method": "ccl",
    "common-dim": 2,
    "specific-dim": 1,
}


def device(node: int = 0, **options: float) -> Ccl:
    own = {f"ccl.{key.replace('_', '-')}": value for key, value in options.items()}
    learner = make_learner({**CONFIG, **own}, node)
    assert isinstance(learner, Ccl)
    return learner


class Scaled(nn.Module):
    """An encoder whose features are three inputs, times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class OnThreeNumbers(Ccl):
    """Mixed with neighbours, its encoders are a number each."""

    name = "three"

    def build_model(self) -> Any:
        model = super().build_model()
        for m in model.encoders:
            model.encoders[m] = Scaled()
        return model


def three(samples: dict[str, list[list[float]]], labels: list[int], **options: float) -> Ccl:
    base = device(**options)
    learner = OnThreeNumbers(base.partition, base.settings, base.options, base.rule)
    inputs = {m: torch.tensor(x) for m, x in samples.items()}
    learner.train_data = Samples(inputs, torch.tensor(labels))
    return learner


def plan_for(learner: Learner, *neighbours: int, t: int = 2) -> Plan:
    share = 1 / (1 + len(neighbours))
    weights = dict.fromkeys(learner.block_names, (share,) * (1 + len(neighbours)))
    return Plan(t, 1, neighbours=neighbours, weights=weights, recipients=neighbours)


def sent(audio: float, image: float) -> dict[str, Tensor]:
    values = {"encoder.audio": audio, "encoder.image": image}
    return {name: torch.tensor([float(value)]) for name, value in values.items()}


def means_of(rows: dict[int, list[float]]) -> Tensor:
    found = torch.zeros(10, 3)
    for y, row in rows.items():
        found[y] = torch.tensor(row)
    return found


def added(learner: Ccl, batch: Batch) -> float:
    """Return what the cross-features add to the loss."""
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    return (learner.loss_of(batch) - task).item()


def test_the_distance_to_features_of_neighbours_models_by_hand() -> None:
    """Audio (1, 2, 3), by neighbour 1 twice as much, by 2 three times: mse 14/3 and 4 * 14/3.

    Image (0, 3, 0), of neighbour 2 alone: twice as much, 9/3. The mean over both modalities is
    (70/3 + 3)/2 = 79/6, times 0.5.
    """
    learner = three(
        {"audio": [[1, 2, 3]], "image": [[0, 3, 0]]}, [4], model_weight=0.5, data_weight=0
    )
    inbox: Inbox = {1: sent(2, 9) | {"encoder.image": torch.zeros(2)}, 2: sent(3, 2)}
    learner.before_training(plan_for(learner, 1, 2), inbox)
    batch = Batch(dict(learner.train_data.inputs), learner.train_data.labels)
    assert added(learner, batch) == pytest.approx(79 / 12, rel=1e-5)
    assert added(learner, batch.only(["audio"])) == pytest.approx(70 / 6, rel=1e-5)
    assert learner.stack_key() == (("audio", 2), ("image", 1)) and learner.statistics() == {}


def test_the_distance_to_a_classs_features_elsewhere_by_hand() -> None:
    """Class 0: own sample (3, 0, 0), and two there whose mean is (0, 3, 0): P = (1, 2, 0).

    The sample is (2, -2, 0) away: mse 8/3. Class 5 is known from elsewhere alone, class 7 is the
    own one, which is where it is: 0. Over the batch of two 4/3, times 0.3.
    """
    audio = [[3.0, 0, 0], [1.0, 1, 1]]
    learner = three({"audio": audio, "image": audio}, [0, 7], model_weight=0, data_weight=0.3)
    theirs = means_of({0: [0, 3, 0], 5: [1, 1, 1]})
    numbers = torch.zeros(10)
    numbers[0], numbers[5] = 2, 4
    told = {f"{STATISTICS}ccl-means.audio.0": theirs, f"{STATISTICS}ccl-counts.audio.0": numbers}
    learner.before_training(plan_for(learner, 1), {1: told | sent(1, 1)})
    assert torch.allclose(learner.fixed()["goal.audio"][0], torch.tensor([1.0, 2.0, 0.0]))
    assert learner.fixed()["has.audio"].nonzero().flatten().tolist() == [0, 5, 7]
    batch = Batch(dict(learner.train_data.inputs), learner.train_data.labels)
    assert added(learner, batch.only(["audio"])) == pytest.approx(0.4, rel=1e-5)
    assert learner.rejected == []


def test_a_device_tells_its_neighbours_of_their_models_on_its_data() -> None:
    """Neighbour 1's audio encoder doubles. Samples (1, 0, 0), (3, 0, 0) of class 2: (4, 0, 0)."""
    learner = three({"audio": [[1.0, 0, 0], [3.0, 0, 0]], "image": [[0.0] * 3] * 2}, [2, 2])
    learner.before_training(plan_for(learner, 1), {1: sent(2, 1)})
    told = learner.extras()
    assert told[f"{STATISTICS}ccl-means.audio.1"][2].tolist() == [4, 0, 0]
    assert told[f"{STATISTICS}ccl-counts.audio.1"].tolist() == [0, 0, 2] + [0] * 7
    again = device()
    again.load_state(
        learner.state() | {k: v for k, v in again.state().items() if k in again.flat.slices}
    )
    assert again.extras().keys() == told.keys()


@pytest.mark.parametrize(
    ("means", "counts", "words"),
    [
        (torch.zeros(10, 4), torch.zeros(10), "ccl-means has shape (10, 4) instead of (10, 3)"),
        (means_of({0: [float("nan")] * 3}), torch.zeros(10), "ccl-means holds NaN"),
        (torch.zeros(10, 3), torch.full((10,), -1.0), "ccl-counts holds negative values"),
        (torch.zeros(10, 3), None, "ccl-counts is missing"),
    ],
)
def test_rubbish_is_named_and_left_out(means: Tensor, counts: Tensor | None, words: str) -> None:
    learner = three({"audio": [[3.0, 0, 0]], "image": [[3.0, 0, 0]]}, [0])
    told = {f"{STATISTICS}ccl-means.audio.0": means}
    told |= {} if counts is None else {f"{STATISTICS}ccl-counts.audio.0": counts}
    learner.before_training(plan_for(learner, 1), {1: told | sent(1, 1)})
    assert len(learner.rejected) == 1 and learner.rejected[0].startswith(f"1: {words}")
    assert learner.fixed()["has.audio"].nonzero().flatten().tolist() == [0]


def test_without_weights_it_is_its_gossip_rule_bit_for_bit() -> None:
    def losses(method: str, **more: Any) -> list[float | None]:
        config = {**CONFIG, "modality-pattern": "audio,image,audio+image", "method": method, **more}
        peers = run_peers({**config, "num-nodes": 4}, num_rounds=3)
        assert not any(record.failed for record in peers.records)
        return [n.train_loss for record in peers.records for n in record.nodes]

    idle = losses("ccl", **{"ccl.model-weight": 0.0, "ccl.data-weight": 0.0})
    assert idle == losses("qg-dsgdm-n") != losses("ccl")


@pytest.mark.parametrize("rule", ["k-gt", "relaysgd", "gut"])
def test_it_reads_models_out_of_what_any_rule_sends(rule: str) -> None:
    """A neighbour's encoder, whatever else comes with it or to whom it is sent."""
    config = {**CONFIG, "gossip": rule, "topology": "line"}
    one, other = make_learner(config, 0), make_learner(config, 1)
    plan = Plan(1, 2, recipients=(0,))
    inbox = {1: other.run_round(plan, {}).payload}
    models = one.mixer.models("encoder.audio", plan_for(one, 1), inbox)
    trained = other.flat.vector[other.flat.slices["encoder.audio"]]
    assert torch.allclose(models[1], trained, atol=1e-6)
    assert len(models[1]) == num_parameters(one.encoders()["audio"])
    one.run_round(Plan(1, 2, recipients=(1,)), {})
    outcome = one.run_round(plan_for(one, 1), inbox)
    assert outcome.rejected == [] and f"{STATISTICS}ccl-means.audio.1" in outcome.payload
