"""PmcmFL: slots are filled without the label; contrasts; what is kept and what travels."""

from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers

from flwr_dmml.clients import Batch, PmcmFl, PmcmFlOptions
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.models import SlotClassifier
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}


def device(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> PmcmFl:
    options = {f"pmcmfl.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "pmcmfl", **options}, node)
    assert isinstance(learner, PmcmFl)
    return learner


def slots(**how: Any) -> SlotClassifier:
    """Return a model of a, two classes and features of two; W_a = I, W_b = 10 I, b = 0."""
    forms = {"a": Modality("vector", (2,))}
    model = SlotClassifier(forms, ("a", "b"), 2, width=2, **how)
    with torch.no_grad():
        model.fusion.layers["a"].weight.copy_(torch.eye(2))
        model.fusion.layers["b"].weight.copy_(10 * torch.eye(2))
        model.fusion.bias.zero_()
    return model


def test_a_slot_holds_the_prototype_that_is_expected():
    """z = (ln 3, 0): q = 3/4, 1/4; p_0 = (4, 0), p_1 = (0, 8): (3, 2). With p_0 alone (4, 0)."""
    model, z = slots(), {"a": torch.tensor([[log(3), 0.0]])}
    assert float(model.filled(z)["b"].abs().sum()) == 0
    p = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
    model.prototypes.put("b", p, torch.tensor([1.0, 0.0]))
    assert model.filled(z)["b"][0].tolist() == pytest.approx([4, 0])
    model.prototypes.put("b", p, torch.tensor([1.0, 1.0]))
    assert model.filled(z)["b"][0].tolist() == pytest.approx([3, 2])
    assert model.fusion(model.filled(z))[0].tolist() == pytest.approx([log(3) + 30, 20])
    assert set(slots(fill=False).filled(z)) == {"a"}


def test_prototypes_that_nobody_has_any_more_are_kept():
    model = slots()
    model.prototypes.put("b", torch.full((2, 2), 5.0), torch.tensor([3.0, 0.0]))
    model.prototypes.put("b", torch.full((2, 2), 7.0), torch.tensor([0.0, 2.0]))
    values, known = model.prototypes.of("b")
    assert values.tolist() == [[5, 5], [7, 7]] and known.tolist() == [1, 1]


def test_no_label_gets_into_a_slot():
    """Whatever the labels of a mini-batch: the same slots, and no gradient through them."""
    learner = device({**CONFIG, "modality-pattern": "audio,image"})
    learner.before_training(Plan(1, 1), {})
    learner.model.prototypes.put("image", torch.randn(10, 64), torch.ones(10))
    rows = learner.train_data.subset(torch.arange(8))
    seen: list[torch.Tensor] = []
    filled = learner.model.filled

    def watched(features: Any) -> Any:
        found = filled(features)
        seen.append(found["image"])
        return found

    learner.model.filled = watched  # type: ignore[method-assign]
    for labels in (rows.labels, 9 - rows.labels):
        learner.loss_of(Batch(dict(rows.inputs), labels))
    assert torch.equal(*seen) and not seen[0].requires_grad and bool(seen[0].any())


def test_the_loss_by_hand():
    """z^a = (1, 0), p_0 = (1, 0), p_1 = (0, 1): NCE = ln(1 + e^(-1/T)); T = 1/2.

    Slots (1, 0, .., ..) with b's prototypes (1, 0) and (-1, 0): q from logits (1, 0).
    """
    learner = device(weight=0.5, **{"fused-weight": 2.0, "temperature": 0.5})
    forms = {m: Modality("vector", (2,)) for m in ("a",)}
    learner.model = SlotClassifier(forms, ("a", "b"), 2, width=2)
    learner.model.load_state_dict(slots().state_dict())
    learner.model.encode = lambda inputs: dict(inputs)  # type: ignore[method-assign, assignment]
    learner.model.prototypes.put("a", torch.eye(2), torch.ones(2))
    learner.model.prototypes.put("b", torch.tensor([[1.0, 0], [-1, 0]]), torch.ones(2))
    q = exp(1) / (exp(1) + 1)
    b = 2 * q - 1
    gap = 1 + 10 * b  # logits (1 + 10 b, 0)
    norm = (1 + b * b) ** 0.5 * 2**0.5
    cosines = (1 + b) / norm, -b / norm
    fused = log(1 + exp(2 * (cosines[1] - cosines[0])))
    expected = log(1 + exp(-gap)) + 0.5 * log(1 + exp(-2)) + 2 * fused
    batch = Batch({"a": torch.tensor([[1.0, 0.0]])}, torch.tensor([0]))
    assert learner.local_loss(batch).item() == pytest.approx(expected, abs=1e-4)


def test_without_its_terms_it_is_cross_entropy_on_the_slots():
    learner = device(fill=False, weight=0.0, **{"fused-weight": 0.0})
    learner.before_training(Plan(1, 1), {})
    rows = learner.train_data.subset(torch.arange(8))
    logits = learner.model(rows.inputs)
    batch = Batch(dict(rows.inputs), rows.labels)
    assert torch.equal(learner.loss_of(batch), learner.cross_entropy(logits, rows.labels))


def test_prototypes_are_kept_by_the_model_and_not_mixed():
    """A microphone hears of pictures, fills their slot, and sends its own prototypes only."""
    config = {**CONFIG, "modality-pattern": "audio,image"}
    audio, image = device(config), device(config, 1)
    told = image.run_round(Plan(1, 2), {}).payload
    assert set(audio.block_names) == {"fusion", "encoder.audio"}
    payload = audio.run_round(Plan(2, 2), {1: told}).payload
    assert "prototypes" not in payload and f"{STATISTICS}prototypes.image" not in payload
    values, known = audio.model.prototypes.of("image")
    assert torch.equal(known > 0, told[f"{STATISTICS}prototype-counts.image"] > 0)
    assert torch.equal(values, told[f"{STATISTICS}prototypes.image"])
    fresh = device(config)
    fresh.load_state({name: value.clone() for name, value in audio.state().items()})
    assert torch.equal(fresh.model.prototypes.of("image")[0], values)
    one, two = (x.run_round(Plan(3, 2), {}).payload for x in (audio, fresh))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_three_modalities_with_samples_that_lack_some():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    present = {"a": torch.ones(8) > 0, "b": torch.arange(8) > 2, "c": torch.arange(8) < 5}
    inputs = {m: torch.randn(8, 3) for m in source}
    samples = Samples(inputs, torch.arange(8) % 4, present=present)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    learner = PmcmFl(partition, Settings(local_iterations=2, batch_size=4), PmcmFlOptions())
    metrics = learner.run_round(Plan(1, 2, evaluate=True), {}).metrics
    assert 0 <= metrics["test.without.a"] <= 1 and metrics["train.loss"] > 0


def test_a_run_with_different_sensors():
    config = {**CONFIG, "method": "pmcmfl", "num-nodes": 4, "missing.train-share": 0.4}
    config["modality-pattern"] = "audio,image,audio+image"
    peers = run_peers({**config, "stagger": 0.5}, num_rounds=3, evaluate_every=1)
    assert not any(record.failed for record in peers.records)
    assert not any(node.rejected for record in peers.records for node in record.nodes)


def test_filling_and_prototypes_are_paid_for():
    """A slot of 64 numbers for each of 16 samples: 10 products, and the head on it once more."""
    config = {**CONFIG, "modality-pattern": "audio"}
    found, plain = (measure_work(device(config, fill=fill)) for fill in (True, False))
    assert found.joint > plain.joint and found.per_round == plain.per_round > 0
