"""MMPareto: the direction between two gradients, its length, and what it costs."""

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_work import AUDIO, AUDIO_FORWARD, BATCH, HEAD, HEAD_FORWARD, IMAGE, IMAGE_FORWARD

from flwr_dmml.clients import Batch, MmPareto, MmParetoOptions
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.mmpareto import pareto
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}


def device(method: str = "mmpareto", **config: Any) -> Any:
    return make_learner({**CONFIG, "method": method, **config})


def direction(one: list[float], two: list[float], gamma: float = 1.0) -> list[float]:
    (found,) = pareto([torch.tensor(one)], [torch.tensor(two)], 0, gamma)
    return found.tolist()


def test_without_conflict_it_is_the_sum():
    assert direction([1.0, 0.0], [1.0, 2.0]) == pytest.approx([2.0, 2.0])
    assert direction([1.0, 0.0], [1.0, 2.0], gamma=1.5) == pytest.approx([3.0, 3.0])


def test_in_conflict_the_shortest_vector_at_the_length_of_the_sum():
    """(2, 0) and (-1, 1): dot -2; k = (2 + 2) / (4 + 2 + 4) = .4.

    h = .8 (2, 0) + 1.2 (-1, 1) = (.4, 1.2) of length sqrt 1.6; the sum (1, 1) of sqrt 2.
    """
    factor = sqrt(2) / sqrt(1.6)
    assert direction([2.0, 0.0], [-1.0, 1.0]) == pytest.approx([0.4 * factor, 1.2 * factor])


def test_a_longer_one_is_not_cut():
    """(1, 0), (-.9, .1): k = (.82 + .9) / (1 + .82 + 1.8), h longer than (.1, .1)."""
    k = (0.82 + 0.9) / (1 + 0.82 + 1.8)
    h = [2 * k - 1.8 * (1 - k), 0.2 * (1 - k)]
    found = direction([1.0, 0.0], [-0.9, 0.1])
    length, total = (sqrt(a * a + b * b) for a, b in (h, (0.1, 0.1)))
    factor = max(1.0, total / length)
    assert found == pytest.approx([factor * x for x in h], rel=1e-4)


def test_the_length_is_that_of_each_parameter_and_each_device_has_its_own():
    """k is of all parameters together: device 0 as above, device 1 without conflict."""
    one = [torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0], [4.0]])]
    two = [torch.tensor([[-1.0, 1.0], [1.0, 2.0]]), torch.tensor([[0.0], [1.0]])]
    first, second = pareto(one, two, 1, 1.0)
    factor = sqrt(2) / sqrt(1.6)
    assert first[0].tolist() == pytest.approx([0.4 * factor, 1.2 * factor])
    assert first[1].tolist() == pytest.approx([2.0, 2.0])
    assert second.flatten().tolist() == pytest.approx([0.0, 5.0])


def test_the_encoders_get_it_and_the_heads_the_plain_gradient():
    learner = device()
    learner.before_training(Plan(1, 1), {})
    rows = learner.train_data.subset(torch.arange(8))
    batch = Batch(dict(rows.inputs), rows.labels)
    learner.model.zero_grad()
    learner.local_loss(batch).backward()
    learner.modulate(("audio", "image"), batch)
    plain = device("dpsgd")

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        plain.model.zero_grad()
        loss.backward()
        return {n: w.grad.clone() for n, w in plain.model.named_parameters() if w.grad is not None}

    fused = lambda: plain.cross_entropy(plain.model(batch.inputs), batch.labels)  # noqa: E731
    first = gradients(fused())
    heads = dict.fromkeys(first, 0.0)
    for m in ("audio", "image"):
        own = gradients(plain.cross_entropy(plain.model({m: batch.inputs[m]}), batch.labels))
        names = [n for n in first if n.startswith(f"encoders.of_{m}.")]
        expected = pareto([first[n] for n in names], [own[n] for n in names], 0)
        for n, g in zip(names, expected, strict=True):
            found = learner.model.get_parameter(n).grad
            assert torch.allclose(found, g, rtol=1e-3, atol=1e-6)
        heads = {n: heads[n] + own.get(n, 0.0) for n in heads}
    for n in (n for n in first if n.startswith("head")):
        assert torch.allclose(learner.model.get_parameter(n).grad, first[n] + heads[n], atol=1e-6)


def test_without_modality_losses_it_is_dpsgd_bit_for_bit():
    a, b = (device(m, **{"modality-loss": 0.0, "stagger": 0.5}) for m in ("mmpareto", "dpsgd"))
    for t in (1, 2):
        one, two = (x.run_round(Plan(t, 6), {}) for x in (a, b))
        assert one.metrics == two.metrics
        assert all(torch.equal(one.payload[k], two.payload[k]) for k in two.payload)


def test_a_device_with_one_sensor_is_dpsgd_bit_for_bit():
    a, b = (device(m, **{"modality-pattern": "audio"}) for m in ("mmpareto", "dpsgd"))
    one, two = (x.run_round(Plan(1, 6), {}).payload for x in (a, b))
    assert all(torch.equal(one[k], two[k]) for k in two)


def test_rows_that_lack_a_modality_count_to_the_first_gradient():
    """A mini-batch in parts is the mean over its rows: with gamma 1 and no conflict, D-PSGD's."""
    more = {"missing.train-share": 0.4, "batch-size": 20, "modality-loss": 1.0}
    learner = device(**more, **{"mmpareto.gamma": 1.0})
    learner.before_training(Plan(1, 1), {})
    batch = next(iter(learner.batches(1)))
    assert batch.others
    for part in batch.parts:
        learner.local_loss(part)
    noted = learner._own
    assert sum(n for n, _ in noted) == 20
    assert any(not found for _, found in noted) and any(found for _, found in noted)
    assert learner.run_round(Plan(1, 3), {}).metrics["train.loss"] > 0


def test_three_modalities_and_the_same_numbers_again():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    settings = Settings(local_iterations=3, batch_size=4, learning_rate=0.01)
    one, two = (MmPareto(partition, settings, MmParetoOptions()) for _ in range(2))
    two.load_state({k: v.clone() for k, v in one.state().items()})
    a, b = (x.run_round(Plan(1, 3), {}).payload for x in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_several_backwards_are_paid_for():
    """Besides the loss's, one of each modality's own through its heads and its encoder."""
    found, plain = measure_work(device()), measure_work(device("dpsgd", **{"modality-loss": 1.0}))
    assert plain.joint == BATCH * (AUDIO + IMAGE + 7 * HEAD)
    again = AUDIO - AUDIO_FORWARD + IMAGE - IMAGE_FORWARD + 4 * HEAD_FORWARD
    assert found.joint == plain.joint + BATCH * again
    assert found.solo == plain.solo
    assert replace(found, joint=plain.joint) == plain
