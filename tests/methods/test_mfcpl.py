"""MFCPL: the three terms by hand, prototypes of modalities one lacks, prototypes alone."""

from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import nn

from flwr_dmml.clients import Batch, Mfcpl
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.prototypes import contrast
from flwr_dmml.payload.blocks import STATISTICS, flatten
from flwr_dmml.payload.plan import Plan

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}


class Echo(nn.Module):
    """An encoder that returns its input: features are set by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def mfcpl(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> Mfcpl:
    options = {f"mfcpl.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "mfcpl", **options}, node)
    assert isinstance(learner, Mfcpl)
    return learner


def by_hand(**own: Any) -> tuple[Mfcpl, Batch]:
    """Return a device with a common feature and a specific one, and a sample of class 0."""
    weights = {"shared": 0.0, "specific": 0.0, "alignment": 0.0, **own}
    learner = mfcpl({**CONFIG, "common-dim": 1, "specific-dim": 1}, **weights)
    learner.model.encoders["audio"] = learner.model.encoders["image"] = Echo()
    p = {"audio": [[1.0, 0.0], [0.0, 1.0]], "image": [[3.0, 3.0], [0.0, 2.0]]}
    told = {}
    for m, values in p.items():
        means, counts = torch.zeros(10, 2), torch.zeros(10)
        means[:2], counts[:2] = torch.tensor(values), 5.0
        told |= {f"prototypes.{m}": means, f"prototype-counts.{m}": counts}
    learner.find_prototypes = lambda: learner.memory.update(told)  # type: ignore[method-assign]
    learner.before_training(Plan(2, 1), {})
    inputs = {"audio": torch.tensor([[1.0, 1.0]]), "image": torch.tensor([[5.0, 0.0]])}
    return learner, Batch(inputs, torch.tensor([0]))


def more(learner: Mfcpl, batch: Batch) -> float:
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    return (learner.loss_of(batch) - task).item()


def test_the_distance_to_the_shared_prototypes():
    """P_0 = (1 + 3) / 2 = 2: audio 1 away, the image 3: (1 + 9) / 2; alone 1."""
    learner, batch = by_hand(shared=0.5)
    assert more(learner, batch) == pytest.approx(2.5, abs=1e-5)
    assert more(learner, batch.only(["audio"])) == pytest.approx(0.5, abs=1e-5)


def test_the_contrast_with_the_own_prototypes():
    """Audio (1, 1): both cosines 1/sqrt 2: ln 2. Image (5, 0): 1/sqrt 2 and 0, T = 1/2."""
    learner, batch = by_hand(specific=1.0)
    expected = (log(2) + log(1 + exp(-2 / sqrt(2)))) / 2
    assert more(learner, batch) == pytest.approx(expected, abs=1e-4)


def test_the_distance_of_the_modalities():
    """Common features 1 and 5: 16. A single modality has none."""
    learner, batch = by_hand(alignment=1.0)
    assert more(learner, batch) == pytest.approx(16.0, abs=1e-5)
    assert more(learner, batch.only(["image"])) == pytest.approx(0.0, abs=1e-6)


def test_a_class_without_prototype_adds_nothing():
    z, p = torch.ones(2, 2), torch.eye(2)
    found = contrast(z, p, torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), 0.5)
    assert float(found) == pytest.approx(0.0, abs=1e-6)
    found = contrast(z, p, torch.tensor([True, True]), torch.tensor([0, 1]), 0.5)
    assert float(found) == pytest.approx(log(2))


def test_a_camera_hears_of_sounds():
    """P is the mean over both modalities where a neighbour has sent the other's."""
    config = {**CONFIG, "modality-pattern": "audio,image"}
    audio, image = mfcpl(config), mfcpl(config, 1)
    payload = audio.run_round(Plan(1, 2), {}).payload
    image.before_training(Plan(2, 1), {0: payload})
    heard, own = (image.prototypes[f"prototypes.{m}"][:, :32] for m in ("audio", "image"))
    has = {m: image.prototypes[f"has.{m}"] for m in ("audio", "image")}
    both = has["audio"] & has["image"]
    assert both.any() and torch.equal(heard, payload[f"{STATISTICS}prototypes.audio"][:, :32])
    shared = image.prototypes["shared"]
    assert torch.allclose(shared[both], (heard + own)[both] / 2, atol=1e-6)
    only = has["audio"] & ~has["image"]
    assert torch.equal(shared[only], heard[only])
    image.run_round(Plan(2, 2), {0: payload})


def test_prototypes_are_medians_under_robust_aggregation():
    """Of p, p + 1 and p + 2 with a million samples: p + 1."""
    learner = mfcpl({**CONFIG, "aggregation": "median"})
    learner.find_prototypes()
    key, count = "prototypes.audio", "prototype-counts.audio"
    own, there = learner.memory[key].clone(), learner.memory[count] > 0
    inbox = {
        j: {STATISTICS + key: own + j, STATISTICS + count: torch.full((10,), n)}
        for j, n in ((1, 1.0), (2, 1e6))
    }
    learner.before_training(Plan(2, 1), inbox)
    assert torch.allclose(learner.prototypes[key][there], (own + 1)[there], atol=1e-5)


def test_prototypes_only():
    """Blocks are neither sent nor mixed; prototypes are."""
    learner = mfcpl(blocks=False)
    plan = Plan(2, 2, neighbours=(1,), weights=dict.fromkeys(learner.blocks(), (0.5, 0.5)))
    before = {k: flatten(b) for k, b in learner.blocks().items()}
    learner.mix(plan, {1: {k: torch.ones(len(x)) for k, x in before.items()}})
    assert all(torch.equal(flatten(b), before[k]) for k, b in learner.blocks().items())
    payload = learner.run_round(Plan(1, 2), {}).payload
    assert sum(payload[k].numel() for k in learner.block_names) == 0
    assert payload[f"{STATISTICS}prototypes.audio"].shape == (10, 64)
    config = {**CONFIG, "method": "mfcpl", "mfcpl.blocks": False, "num-nodes": 4}
    config["modality-pattern"] = "audio,image,audio+image"
    peers = run_peers({**config, "local-iterations": 2}, num_rounds=2, evaluate_every=1)
    assert not any(record.failed for record in peers.records)
    assert not any(node.rejected for record in peers.records for node in record.nodes)


def test_state_survives_and_rounds_are_the_same():
    one, two, again = mfcpl(), mfcpl(), mfcpl()
    for learner in (one, again):
        learner.run_round(Plan(1, 3), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b, c = (x.run_round(Plan(2, 3), {}).payload for x in (one, two, again))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


def test_prototypes_are_paid_for():
    plain, found = (measure_work(make_learner({**CONFIG, "method": m})) for m in ("dpsgd", "mfcpl"))
    assert found.per_round > 0 and found.joint == plain.joint
