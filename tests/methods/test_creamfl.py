"""CreamFL: the ensemble by hand, the three terms, and what travels."""

from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers

from flwr_dmml.clients import Batch, CreamFl
from flwr_dmml.learning.work import measure_work
from flwr_dmml.losses import alignment_loss
from flwr_dmml.methods.creamfl import FEATURES, ensemble, others
from flwr_dmml.methods.moon import contrastive_loss
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "modality-pattern": "audio+image",
    "public.samples": 30,
}


def device(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> CreamFl:
    options = {f"creamfl.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "creamfl", **options}, node)
    assert isinstance(learner, CreamFl)
    return learner


def test_the_ensemble_by_hand():
    """Other features e_1, e_2. The first device has them right: each log(e / (e + 1)).

    The second has them the other way round: log(1 / (e + 1)). Weights e : 1.
    """
    right, wrong = torch.eye(2), torch.eye(2).flip(0)
    w = exp(1) / (exp(1) + 1)
    found = ensemble([right, wrong], torch.eye(2))
    assert found.flatten().tolist() == pytest.approx([w, 1 - w, 1 - w, w])
    liar = torch.full((2, 2), -1.0)
    assert torch.equal(ensemble([right, right, liar], torch.eye(2), robust=True), right)


def test_the_other_modality_is_the_mean_of_the_others():
    given = {m: torch.full((1, 1), x) for m, x in (("a", 1.0), ("b", 2.0), ("c", 6.0))}
    assert float(others(given, "a")) == 4 and float(others(given, "c")) == 1.5
    assert float(others({"a": given["a"]}, "a")) == 1


def test_the_loss_is_the_sum_of_its_terms():
    learner = device(weight=0.5, distil=2.0)
    learner.before_training(Plan(1, 1), {})
    rows = learner.train_data.subset(torch.arange(8))
    batch = Batch(dict(rows.inputs), rows.labels)
    given = learner.draw(batch)
    task = learner.task_loss(learner.model.encode(batch.inputs), batch.labels)
    expected = task.item()
    z = learner.model.encode({m: given[f"public.{m}"] for m in batch.inputs})
    for m in batch.inputs:
        x = torch.cat([z.common[m], z.specific[m]], dim=-1)
        expected += 0.5 * alignment_loss(x, given[f"other.{m}"], 0.5).item()
        near, old = given[f"own.{m}"], given[f"old.{m}"]
        expected += 0.5 * contrastive_loss(x, near, old, 0.5).item()
        length = x.norm(dim=-1, keepdim=True)
        expected += 2 * (x / length - near).square().mean().item()
    found = learner.local_loss(Batch(batch.inputs, batch.labels, given=given))
    assert found.item() == pytest.approx(expected, abs=1e-4)
    contrast = contrastive_loss(torch.eye(2), torch.eye(2), torch.eye(2), 0.5)
    assert contrast.item() == pytest.approx(log(2))  # in the first round


def test_features_travel_and_make_the_goals():
    learner, other = device(), device(node=1)
    own = learner.run_round(Plan(1, 3), {}).payload
    theirs = other.run_round(Plan(1, 3), {}).payload
    key = f"{STATISTICS}{FEATURES}audio"
    assert own[key].shape == (30, 64)
    assert torch.allclose(own[key].norm(dim=1), torch.ones(30), atol=1e-4)
    learner.before_training(Plan(2, 1), {1: theirs})
    assert torch.equal(learner._goals["old.audio"], own[key])
    fresh = learner.memory[FEATURES + "audio"]
    now = torch.stack([fresh, theirs[key]])
    goal = learner._goals["own.audio"]
    assert bool((goal <= now.amax(dim=0) + 1e-5).all() and (goal >= now.amin(dim=0) - 1e-5).all())
    bad = {1: theirs | {key: 5 * theirs[key]}, 2: theirs | {key: theirs[key][:4]}}
    learner.rejected = []
    learner.before_training(Plan(2, 1), bad)
    assert [line.partition(":")[0] for line in learner.rejected] == ["1", "2"]


def test_a_microphone_learns_from_pictures():
    config = {**CONFIG, "modality-pattern": "audio,image"}
    audio, image = device(config), device(config, 1)
    audio.before_training(Plan(1, 1), {})
    assert torch.equal(audio._goals["other.audio"], audio._goals["own.audio"])
    told = image.run_round(Plan(1, 2), {}).payload
    audio.before_training(Plan(2, 1), {1: told})
    seen = told[f"{STATISTICS}{FEATURES}image"]
    assert torch.allclose(audio._goals["other.audio"], seen, atol=1e-4)
    assert set(audio.memory) == {FEATURES + "audio"}


def test_features_alone_and_a_run_with_different_sensors():
    config = {**CONFIG, "method": "creamfl", "creamfl.blocks": False, "num-nodes": 4}
    config |= {"modality-pattern": "audio,image,audio+image", "missing.train-share": 0.4}
    payload = device(blocks=False).run_round(Plan(1, 2), {}).payload
    assert not any(payload[k].numel() for k in device().block_names)
    peers = run_peers({**config, "stagger": 0.5}, num_rounds=2, evaluate_every=1)
    assert not any(record.failed for record in peers.records)
    assert not any(node.rejected for record in peers.records for node in record.nodes)


def test_at_most_so_many_pairs():
    learner = device(pairs=7)
    assert learner.run_round(Plan(1, 1), {}).payload[f"{STATISTICS}{FEATURES}image"].shape == (
        7,
        64,
    )


def test_state_survives_and_rounds_are_the_same():
    one, two, again = device(), device(), device()
    for learner in (one, again):
        learner.run_round(Plan(1, 3), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b, c = (x.run_round(Plan(2, 3), {}).payload for x in (one, two, again))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


def test_public_samples_are_paid_for():
    """A mini-batch of them in each iteration, and all of them once a round."""
    found = measure_work(device())
    plain = measure_work(make_learner({**CONFIG, "method": "dpsgd"}))
    assert 1.9 * plain.joint < found.joint < 2.1 * plain.joint
    assert found.per_round > 0
