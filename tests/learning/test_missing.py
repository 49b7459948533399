"""Missing modalities: accuracies by hand, the loss of a batch by hand, and runs that train."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.base.seeding import numpy_generator
from flwr_dmml.clients import DPSGD, Learner, find_methods
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.data.missing import draw_present, drop
from flwr_dmml.learning import work
from flwr_dmml.learning.batch import BATCH, batch_of, mean_over
from flwr_dmml.learning.evaluation import accuracy_metrics
from flwr_dmml.learning.label_shares import LabelShares
from flwr_dmml.learning.options import Options
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "method": "dpsgd"}
BOTH = {**CONFIG, "modality-pattern": "audio+image"}
HALF = {**BOTH, "missing.train-share": 0.5, "missing.test-share": 0.5}

# Accuracies by hand: a stub that is right on the rows below, from each subset

A, B, C = "audio", "image", "radar"
RIGHT: dict[tuple[str, ...], list[int]] = {  # of six test samples
    (A, B, C): [1, 1, 1, 1, 1, 0],
    (A,): [1, 0, 0, 0, 0, 1],
    (B,): [1, 1, 0, 0, 0, 0],
    (C,): [0, 0, 0, 0, 0, 0],
    (B, C): [0, 1, 1, 1, 1, 0],
    (A, C): [0, 0, 0, 1, 1, 1],
    (A, B): [1, 0, 1, 0, 1, 0],
}


class Stub:
    """Predicts the label (0) where its table says so, by the row numbers in the inputs."""

    def __init__(self, right: Mapping[tuple[str, ...], list[int]]) -> None:
        self.right, self.asked = right, list[list[tuple[str, ...]]]()

    def __call__(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        self.asked.append(list(subsets))
        rows = next(iter(inputs.values()))[:, 0].long()
        return [F.one_hot(1 - torch.tensor(self.right[s])[rows % 6], 2) for s in subsets]


def numbered(names: Sequence[str], n: int = 6) -> Samples:
    rows = torch.arange(float(n))[:, None]
    return Samples(dict.fromkeys(names, rows), torch.zeros(n, dtype=torch.int64))


def masks(names: Sequence[str], *lacking: str) -> dict[str, Tensor]:
    """Return who has what where sample i lacks ``lacking[i]`` ("" for nothing)."""
    return {m: torch.tensor([name != m for name in lacking]) for m in names}


def measure(
    names: Sequence[str], present: Mapping[str, Tensor] | None, n: int = 6
) -> tuple[dict[str, float], Stub]:
    stub = Stub(RIGHT)
    return measured(stub, names, numbered(names, n), present), stub


def measured(
    stub: Stub, names: Sequence[str], test: Samples, present: Mapping[str, Tensor] | None
) -> dict[str, float]:
    """Return a device's metrics without those that test_evaluation is about."""
    nothing = test.subset(torch.arange(0))
    part = Partition(0, tuple(names), nothing, nothing, {}, 2, test, present)
    equal = LabelShares(torch.tensor([5, 5]), "off")
    metrics = accuracy_metrics(stub, part, test, nothing, equal)
    assert metrics.pop("test.accuracy_own_shares") == metrics["test.accuracy"]
    metrics.pop("test.ece_uncalibrated", None)
    assert metrics.pop("test.uar") == metrics["test.accuracy"]  # there is one class
    assert metrics.pop("test.macro_f1") <= metrics["test.accuracy"]
    return metrics


def test_three_modalities_by_hand() -> None:
    """Missing by row: all 1, without audio 1, without image 0, all 1, without radar 1, all 0."""
    metrics, stub = measure((A, B, C), masks((A, B, C), "", A, B, "", C, ""))
    assert metrics == {
        "test.accuracy": 5 / 6,
        "test.accuracy.audio": 2 / 6,
        "test.accuracy.image": 2 / 6,
        "test.accuracy.radar": 0,
        "test.without.audio": 4 / 6,
        "test.without.image": 3 / 6,
        "test.without.radar": 3 / 6,
        "test.missing": 4 / 6,
    }
    assert stub.asked == [[(A, B, C), (A,), (B,), (C,), (B, C), (A, C), (A, B)]]


def test_of_two_modalities_one_missing_is_the_other_alone() -> None:
    """Rows of (A, B): 1 0 1 0 1 0. Missing by row: B 1, A 0, all 1, B 0, A 0, all 0."""
    metrics, stub = measure((A, B), masks((A, B), A, B, "", A, B, ""))
    assert metrics == {
        "test.accuracy": 3 / 6,
        "test.accuracy.audio": 2 / 6,
        "test.accuracy.image": 2 / 6,
        "test.without.audio": 2 / 6,
        "test.without.image": 2 / 6,
        "test.missing": 2 / 6,
    }
    assert stub.asked == [[(A, B), (A,), (B,)]]  # nothing is predicted twice


def test_which_one_is_missing_is_not_mixed_up() -> None:
    """From audio alone 2 of 6, from image alone none: image missing, audio missing."""
    for lacking, accuracy in ((B, 2 / 6), (A, 0)):
        right = {(A, B): [0] * 6, (A,): [1, 0, 0, 0, 0, 1], (B,): [0] * 6}
        test = numbered((A, B))
        present = masks((A, B), *[lacking] * 6)
        metrics = measured(Stub(right), (A, B), test, present)
        assert metrics["test.missing"] == metrics[f"test.without.{lacking}"] == accuracy


def test_one_modality_cannot_be_missing() -> None:
    plain, stub = measure((A,), None)
    assert plain == {"test.accuracy": 2 / 6, "test.accuracy.audio": 2 / 6}
    assert stub.asked == [[(A,)]]
    metrics, _ = measure((A,), masks((A,), *[""] * 6))
    assert metrics == {**plain, "test.missing": 2 / 6}


def test_without_a_test_share_there_is_no_figure_for_it() -> None:
    metrics, _ = measure((A, B), None)
    assert "test.missing" not in metrics and "test.without.audio" in metrics


def test_over_several_batches() -> None:
    """2 1/2 batches of 6-row patterns, of which every 6th sample lacks audio and is right."""
    n = 6 * (5 * BATCH // 12)
    present = {A: torch.arange(n) % 6 != 1, B: torch.ones(n, dtype=torch.bool)}
    metrics, stub = measure((A, B), present, n)
    assert len(stub.asked) == 3
    assert metrics["test.accuracy"] == 3 / 6 and metrics["test.missing"] == 4 / 6


# On a real model


def trained(config: Mapping[str, Any], node: int = 2, **plan: Any) -> Learner:
    learner = make_learner(config, node)
    learner.run_round(Plan(1, 20, **plan), {})
    learner.model.eval()
    return learner


@torch.no_grad()
def alone(learner: Learner, data: Samples, present: Mapping[str, Tensor]) -> list[bool]:
    """Predict every sample by itself, from what it has; return where that is right."""
    right = []
    for i in range(len(data)):
        inputs = {m: x[i : i + 1] for m, x in data.inputs.items() if bool(present[m][i])}
        right.append(int(learner.model(inputs).argmax()) == int(data.labels[i]))
    return right


def test_test_time_accuracy_is_that_of_each_sample_by_itself() -> None:
    learner = trained(HALF)
    metrics, present = learner.evaluate(), learner.partition.test_present
    assert present is not None and not all(bool(has.all()) for has in present.values())
    right = alone(learner, learner.test_data, present)
    assert metrics["test.missing"] == sum(right) / len(right)
    assert metrics["test.without.audio"] == metrics["test.accuracy.image"]
    assert metrics["test.without.image"] == metrics["test.accuracy.audio"]
    assert len({metrics[key] for key in ("test.missing", "test.accuracy")}) == 2


def test_a_device_with_one_sensor_has_its_plain_accuracy() -> None:
    metrics = trained({**CONFIG, "missing.test-share": 0.5}, node=0).evaluate()
    assert metrics["test.missing"] == metrics["test.accuracy"]
    assert not any(key.startswith("test.without") for key in metrics)


def vectors(train_share: float) -> Learner:
    """Return a device with three sensors of 6 values and samples that can be learnt."""
    names, n = (A, B, C), 90
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    inputs = {
        m: torch.randn(n, 6, generator=rng) + 2 * F.one_hot(labels, 6).roll(k, dims=1)
        for k, m in enumerate(names)
    }
    whole, source = Samples(inputs, labels), dict.fromkeys(names, Modality("vector", (6,)))
    train = drop(whole, train_share, names, numpy_generator(0, "train"))
    present = draw_present(whole, 0.5, names, numpy_generator(0, "test"))
    partition = Partition(0, names, train, whole, source, 3, whole, present)
    return DPSGD(partition, Settings(), Options())


def test_three_sensors_on_a_real_model() -> None:
    learner = vectors(0.5)
    learner.run_round(Plan(1, 30), {})
    metrics, data = learner.evaluate(), learner.test_data
    everything = {m: torch.ones(len(data), dtype=torch.bool) for m in data.inputs}
    for m in data.inputs:
        right = alone(learner, data, everything | {m: torch.zeros(len(data), dtype=torch.bool)})
        assert metrics[f"test.without.{m}"] == sum(right) / len(right)
    right = alone(learner, data, learner.partition.test_present or {})
    assert metrics["test.missing"] == sum(right) / len(right) > 0.5
    assert metrics["test.without.audio"] != metrics["test.accuracy.image"]


# The loss of a batch with missing rows


def mixed_batch(config: Mapping[str, Any]) -> tuple[Learner, Samples]:
    """Return a device and 12 of its training samples, of all patterns."""
    learner = make_learner({**config, "missing.train-share": 0.5}, 2)
    learner.server_round = 1
    learner.before_training(Plan(1, 1), {})
    samples = learner.train_data.subset(torch.arange(12))
    lacking = {m: int((~has).sum()) for m, has in (samples.present or {}).items()}
    assert all(lacking.values()) and sum(lacking.values()) < 12
    return learner, samples


def row_losses(learner: Learner, samples: Samples, *modalities: str) -> list[Tensor]:
    """Return the cross-entropy of each row by itself, from what it has of ``modalities``."""
    losses = []
    for i in range(len(samples)):
        has = {m: bool(samples.present[m][i]) for m in modalities}  # type: ignore[index]
        inputs = {m: samples.inputs[m][i : i + 1] for m in modalities if has[m]}
        if inputs:
            losses.append(F.cross_entropy(learner.model(inputs), samples.labels[i : i + 1]))
    return losses


@pytest.mark.parametrize("modalities", [(A, B), (A,), (B,)])
def test_the_loss_is_the_mean_over_rows_by_hand(modalities: tuple[str, ...]) -> None:
    """Joint: over all 12, each from what it has. Solo: over the rows that have that modality."""
    learner, samples = mixed_batch(BOTH)
    rows = row_losses(learner, samples, *modalities)
    expected = len(samples)
    if len(modalities) == 1:
        expected = int(samples.present[modalities[0]].sum())  # type: ignore[index]
    assert len(rows) == expected
    loss = mean_over(batch_of(samples).only(modalities), learner.local_loss)
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_rows() -> None:
    learner, samples = mixed_batch(BOTH)
    parameters = learner.trained_parameters()
    torch.stack(row_losses(learner, samples, A, B)).mean().backward()
    by_hand = [p.grad.clone() for p in parameters if p.grad is not None]
    learner.model.zero_grad()
    mean_over(batch_of(samples), learner.local_loss).backward()
    found = [p.grad for p in parameters if p.grad is not None]
    assert len(found) == len(by_hand) == len(parameters)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, by_hand, strict=True))


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd"])
def test_what_is_missing_is_never_read(method: str) -> None:
    """The input of a missing modality may be anything: loss and weighting stay."""
    learner, samples = mixed_batch({**BOTH, "method": method})
    noise = {m: x.clone() for m, x in samples.inputs.items()}
    for m, has in (samples.present or {}).items():
        noise[m][~has] = 1e3
    for modalities in ((A, B), (A,), (B,)):
        losses = [
            mean_over(batch_of(s).only(modalities), learner.local_loss).item()
            for s in (samples, replace(samples, inputs=noise))
        ]
        assert losses[0] == losses[1] and isfinite(losses[0])


def test_dmml_kd_weighs_the_losses_of_the_parts_by_rows() -> None:
    learner, samples = mixed_batch({**BOTH, "method": "dmml-kd"})
    patterns = {A: (True, False), B: (False, True), A + B: (True, True)}
    total = 0.0
    for name, (audio, image) in patterns.items():
        has = samples.present or {}
        rows = torch.nonzero((has[A] == audio) & (has[B] == image)).squeeze(1)
        part = samples.subset(rows)
        owned = {m: part.inputs[m] for m in (A, B) if m in name}
        total += len(rows) * learner.local_loss(batch_of(Samples(owned, part.labels))).item()
    loss = mean_over(batch_of(samples), learner.local_loss).item()
    assert loss == pytest.approx(total / 12, rel=1e-5)


def test_a_solo_iteration_without_a_row_of_its_modality_trains_nothing() -> None:
    learner = make_learner(HALF, 2)
    rows = torch.nonzero(~learner.train_data.present[A]).squeeze(1)[:4]  # type: ignore[index]
    loss = mean_over(batch_of(learner.train_data.subset(rows)).only([A]), learner.local_loss)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None for p in learner.trained_parameters())


def test_a_batch_of_no_rows_has_no_parts() -> None:
    """kd and idkd may draw a mini-batch of public samples only."""
    none = make_learner(HALF, 2).train_data.subset(torch.arange(0))
    assert none.present is not None and batch_of(none).parts == []


# Runs


def lines(config: Mapping[str, Any], **strategy: Any) -> list[dict[str, Any]]:
    peers = run_peers(config, evaluate_every=1, **strategy)
    return [json.loads(json.dumps(record.to_json())) for record in peers.records]


def test_shares_of_zero_change_nothing() -> None:
    """Bit for bit, whatever is named as allowed to be missing."""
    defaults = {"missing.train-share": 0.0, "missing.test-share": 0.0, "missing.modalities": ""}
    plain = lines(CONFIG)
    assert plain == lines(CONFIG | defaults)
    assert plain == lines(CONFIG | {"missing.modalities": "image"})
    assert all(line["accuracy_missing"] is None for line in plain)


def test_the_test_share_changes_no_training() -> None:
    plain, half = lines(CONFIG), lines(CONFIG | {"missing.test-share": 0.5})
    for a, b in zip(plain, half, strict=True):
        assert b["accuracy_missing"] is not None
        for line in (a, b, *a["nodes"], *b["nodes"]):
            line.pop("accuracy_missing")
        assert a == b


def finite(value: Any) -> bool:
    """Return whether every number in a record is finite."""
    if isinstance(value, dict):
        return all(finite(x) for x in value.values())
    if isinstance(value, list):
        return all(finite(x) for x in value)
    return not isinstance(value, float) or isfinite(value)


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd"])
@pytest.mark.parametrize("stagger", [0.0, 0.5, 1.0])
def test_runs_train_with_missing_samples(method: str, stagger: float) -> None:
    config = {
        **CONFIG,
        "method": method,
        "stagger": stagger,
        "dmml-kd.generator-steps": 20,
        "batch-size": 5,  # parts of one row, and solo iterations with none
        "local-iterations": 15,
        "missing.train-share": 0.5,
        "missing.test-share": 0.5,
    }
    first, *_, last = records = lines(config, num_rounds=10)
    assert all(finite(line) and line["failed"] == {} for line in records)
    assert [len(line["nodes"]) for line in records] == [3] * 10
    assert all(line["accuracy_missing"] is not None for line in records)
    assert set(last["accuracy_without"]) == {A, B}
    assert last["accuracy"] > first["accuracy"] + 0.1
    both = last["nodes"][2]
    assert both["modalities"] == "audio+image" and both["updates"] == {A: 15, B: 15}
    assert set(both["accuracy_without"]) == {A, B}
    assert last["nodes"][0]["accuracy_missing"] == last["nodes"][0]["accuracy"]


def test_runs_repeat_bit_for_bit() -> None:
    config = {**CONFIG, "missing.train-share": 0.5, "missing.test-share": 0.5}
    assert lines(config) == lines(config)


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_an_iteration_costs_what_one_on_complete_samples_does(method: str, share: float) -> None:
    """On every device, also where a mini-batch may hold no complete sample."""
    config = {**BOTH, "method": method}
    plain = measure_work(make_learner(config, 0))
    for node in range(3):
        learner = make_learner({**config, "missing.train-share": share}, node)
        present = learner.train_data.present
        work._measured.clear()
        assert measure_work(learner) == plain
        assert learner.train_data.present is present is not None


@pytest.mark.parametrize("method", ["idkd", "modality-mirror"])
def test_held_out_samples_cost_as_if_they_were_complete(method: str) -> None:
    """These methods go over them when a round begins."""
    config = {**BOTH, "method": method, "num-server-rounds": 10, "validation-fraction": 0.5}
    plain = measure_work(make_learner(config, 0))
    learner = make_learner(config, 0)
    held_out = learner.validation_data
    half = {m: (torch.arange(len(held_out)) % 2 == k) for k, m in enumerate(held_out.inputs)}
    learner.validation_data = replace(held_out, present=half)
    work._measured.clear()
    assert measure_work(learner) == plain and plain.in_phase
    assert learner.validation_data.present is half


@pytest.mark.parametrize("method", ["kd", "idkd"])
def test_mini_batches_of_public_samples_only_train_as_well(method: str) -> None:
    config = {
        **BOTH,
        "method": method,
        "num-server-rounds": 4,
        "batch-size": 1,
        "local-iterations": 6,
        f"{method}.exchange-every": 1,
        f"{method}.start": 0.0,
        "missing.train-share": 0.5,
    }
    records = lines(config, num_rounds=4)
    assert all(finite(line) and line["failed"] == {} for line in records)


# Devices that have lost a modality for good


@pytest.mark.parametrize("method", sorted(find_methods()))
def test_every_method_trains_devices_that_have_lost_a_modality(method: str) -> None:
    """What they have lost they take over from others, and are tested with it."""
    config = {
        **FAST,
        "num-nodes": 3,
        "modality-pattern": "audio+image",
        "method": method,
        "topology": "line",
        "public.samples": 60,
        "missing.device-rate": 1.0,
    }
    records = run_peers(config, num_rounds=2, evaluate_every=1).records
    assert not any(record.failed for record in records)
    for node in records[-1].nodes:
        assert set(node.accuracy_by_modality) == {"audio", "image"}
        assert node.train_loss is not None and isfinite(node.train_loss)


def test_a_device_does_not_train_what_it_has_lost() -> None:
    config = {**FAST, "num-nodes": 1, "modality-pattern": "audio+image", "method": "local"}
    learner = make_learner({**config, "missing.device-rate": 1.0})
    (gone,) = (m for m, has in learner.train_data.present.items() if not has.any())
    (rest,) = {"audio", "image"} - {gone}
    before = learner.flat.copy()
    learner.run_round(Plan(1, 4, num_rounds=2), {})
    after = learner.flat.copy()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.common", f"encoder.{rest}", f"head.{rest}"}
