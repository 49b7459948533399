"""Baselines: what all of them share, and FedProx, MOON and FedGen by hand."""

from functools import cache
from math import exp, isfinite, log
from typing import Any

import pytest
import torch
from helpers import FAST, FEW_STEPS, PLAIN, Recording, make_learner, run_peers

from flwr_dmml.clients import Batch, Learner, Moon, find_methods
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.moon import contrastive_loss, representation
from flwr_dmml.models import Features
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings
from flwr_dmml.tracking.records import RoundRecord

BASELINES = (
    *("fedgen", "fedproto", "fedprox", "greedy", "modality-dropout", "moon", "ogm-ge", "agm"),
    *("creamfl", "mfcpl", "opm", "pmr"),
)
CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "modality-pattern": "audio+image",
    "public.samples": 20,
}


def learner_of(method: str, node: int = 0, **options: Any) -> Learner:
    """Return a device of CONFIG with these options of the method."""
    own = {f"{method}.{key.replace('_', '-')}": value for key, value in options.items()}
    return make_learner({**CONFIG, "method": method, **own}, node)


def batch_for(learner: Learner) -> Batch:
    samples = learner.train_data.subset(torch.arange(8))
    return Batch(dict(samples.inputs), samples.labels, given=learner.fixed())


def prepared(learner: Learner, server_round: int = 2) -> Learner:
    """Bring a learner to where its local iterations begin."""
    learner.server_round = server_round
    learner.before_training(Plan(server_round, 1), {})
    return learner


# What all have in common


@pytest.mark.parametrize("method", BASELINES)
def test_three_rounds_on_devices_with_different_sensors(method: str):
    """And samples that lack a modality."""
    pattern = {"modality-pattern": "audio,image,audio+image", "missing.train-share": 0.4}
    config = {**CONFIG, **pattern, "method": method, "num-nodes": 6, "stagger": 0.3}
    peers = run_peers({**config, "local-iterations": 4}, num_rounds=3, evaluate_every=1)
    for record in peers.records:
        assert len(record.nodes) == 6 and not record.failed
        for node in record.nodes:
            assert node.train_loss is not None and isfinite(node.train_loss)
            assert node.accuracy is not None and 0 <= node.accuracy <= 1
            assert all(isfinite(speed) for speed in node.speed.values())


def finished(method: str, **options: Any) -> tuple[list[RoundRecord], dict[int, dict[str, Any]]]:
    """Run three rounds on a ring; return the records and every device's final blocks."""
    learner = type("Recorded", (Recording, find_methods()[method]), {"name": "recording"})
    own = {f"recording.{key}": value for key, value in options.items()}
    mixed = {"modality-pattern": "audio,image,audio+image", "stagger": 0.5, "modality-loss": 0.1}
    config = {**CONFIG, **mixed, "num-nodes": 6, "local-iterations": 5, "method": "recording"}
    Recording.final.clear()
    peers = run_peers({**config, **own}, learner, num_rounds=3, evaluate_every=1)
    return peers.records, dict(Recording.final)


@cache
def plain_dpsgd() -> tuple[list[RoundRecord], dict[int, dict[str, Any]]]:
    """Return what all are compared with."""
    return finished("dpsgd")


@pytest.mark.parametrize(
    "method, options",
    [
        ("creamfl", {"weight": 0.0, "distil": 0.0}),
        ("fedgen", {"generator": False, "distillation": False}),
        ("fedgen", {"guidance": 0.0, "generator-steps": 5}),
        ("fedproto", {"weight": 0.0}),
        ("fedprox", {"mu": 0.0}),
        ("greedy", {"steps": 0}),
        ("mfcpl", {"shared": 0.0, "specific": 0.0, "alignment": 0.0}),
        ("modality-dropout", {"p": 0.0}),
        ("moon", {"mu": 0.0}),
        ("ogm-ge", {"alpha": 0.0}),
        ("agm", {"alpha": 0.0}),
        ("opm", {"p": 0.0}),
        ("pmr", {"alpha": 0.0}),
    ],
)
def test_without_its_own_term_each_is_dpsgd_bit_for_bit(method: str, options: dict[str, Any]):
    """What is sent may be more (prototypes, an idle generator); every number else is the same."""
    records, final = finished(method, **options)
    expected, plain = plain_dpsgd()
    for found, wanted in zip(records, expected, strict=True):
        for a, b in zip(found.nodes, wanted.nodes, strict=True):
            assert a.train_loss == b.train_loss and a.speed == b.speed
            assert a.accuracy == b.accuracy and a.accuracy_by_modality == b.accuracy_by_modality
            if "guidance" not in options:  # the generators of devices differ
                assert a.disagreement == b.disagreement
    for device, blocks in plain.items():
        assert all(torch.equal(final[device][name], blocks[name]) for name in blocks)


@pytest.mark.parametrize("method", BASELINES)
def test_with_its_defaults_each_is_something_else(method: str):
    _, final = finished(method)
    _, plain = plain_dpsgd()
    assert any(not torch.equal(final[2][name], plain[2][name]) for name in plain[2])


@pytest.mark.parametrize("method", ["agm", "greedy", "modality-dropout", "ogm-ge", "opm"])
def test_what_balances_modalities_leaves_devices_with_one_alone(method: str):
    """Four rounds of a device with a microphone are those of D-PSGD."""
    config = {**CONFIG, "modality-pattern": "audio"}
    a, b = make_learner({**config, "method": method}), make_learner({**config, "method": "dpsgd"})
    for t in range(1, 5):
        found, expected = (x.run_round(Plan(t, 6), {}) for x in (a, b))
        assert found.metrics == expected.metrics
        assert all(torch.equal(found.payload[k], expected.payload[k]) for k in expected.payload)


@pytest.mark.parametrize("method", BASELINES)
def test_the_second_round_goes_on_from_the_state(method: str):
    """State -> a fresh learner -> the same rounds, bit for bit."""
    one, two = learner_of(method), learner_of(method)
    for t in (1, 2):
        one.run_round(Plan(t, 4), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b = one.run_round(Plan(3, 4), {}), two.run_round(Plan(3, 4), {})
    assert a.metrics == b.metrics
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)


@pytest.mark.parametrize("method", ["agm", "mfcpl", "ogm-ge", "opm", "pmr"])
def test_three_modalities_of_which_samples_lack_some(method: str):
    """Three rounds; the numbers of a second device with the same data are the same."""
    source = {m: Modality("vector", (3,)) for m in "abc"}
    inputs = {m: torch.randn(16, 3) for m in source}
    present = {m: torch.arange(16) % 4 != k for k, m in enumerate(source)}
    samples = Samples(inputs, torch.arange(16) % 4, present=present)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    kind = find_methods()[method]
    settings = Settings(local_iterations=3, batch_size=8, num_server_rounds=3)
    one, two = (kind(partition, settings, kind.options_type()) for _ in range(2))
    for t in (1, 2, 3):
        plan = Plan(t, 3, phase=one.options.phase(t, 3), evaluate=True)
        a, b = (learner.run_round(plan, {}) for learner in (one, two))
        assert a.metrics == b.metrics and isfinite(a.metrics["train.loss"])
        assert "test.without.b" in a.metrics


# FedProx


def test_the_gradient_of_the_proximal_term_by_hand():
    """mu = 0.5, w = w_mixed + 2, gradient 3: 3 + 0.5 * 2 = 4. What has none gets none."""
    learner = prepared(learner_of("fedprox", mu=0.5))
    audio, image = (learner.encoders()[m] for m in ("audio", "image"))
    with torch.no_grad():
        for w in learner.trained_parameters():
            w += 2
    for w in audio.parameters():
        w.grad = torch.full_like(w, 3.0)
    learner.modulate(("audio",), batch_for(learner))
    assert all(torch.allclose(w.grad, torch.tensor(4.0), atol=1e-6) for w in audio.parameters())
    assert all(w.grad is None for w in image.parameters())


def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance():
    learner = prepared(learner_of("fedprox", mu=0.7))
    start = [w.detach().clone() for w in learner.trained_parameters()]
    with torch.no_grad():
        for w in learner.trained_parameters():
            w.mul_(1.5)
    pairs = zip(learner.trained_parameters(), start, strict=True)
    (0.7 / 2 * torch.stack([((w - s) ** 2).sum() for w, s in pairs]).sum()).backward()
    expected = [w.grad.clone() for w in learner.trained_parameters()]
    for w in learner.trained_parameters():
        w.grad = torch.zeros_like(w)
    learner.modulate(("audio", "image"), batch_for(learner))
    for w, gradient in zip(learner.trained_parameters(), expected, strict=True):
        assert torch.allclose(w.grad, gradient, atol=1e-6)


def test_a_large_mu_holds_the_model_where_mixing_left_it():
    moved = []
    for mu in (0.0, 10.0):
        learner = learner_of("fedprox", mu=mu)
        before = flatten(learner.model)
        learner.run_round(Plan(1, 20), {})
        moved.append(float((flatten(learner.model) - before).norm()))
    assert moved[1] < 0.3 * moved[0]


# MOON


def test_the_contrastive_loss_by_hand():
    """tau = 1/2. z = (1, 0), lengths do not count.

    First: cos 1 to the mixed model, 0 to the last own: -log(e^2 / (e^2 + 1)) = log(1 + e^-2).
    Second: cos 0 and 1: log(1 + e^2). Third: both 1: log 2.
    """
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    z_glob = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    z_prev = torch.tensor([[0.0, 2.0], [5.0, 0.0], [1.0, 0.0]])
    expected = (log(1 + exp(-2)) + log(1 + exp(2)) + log(2)) / 3
    assert float(contrastive_loss(z, z_glob, z_prev, 0.5)) == pytest.approx(expected)


def test_the_representation_is_the_mean_common_feature_and_the_specific_ones():
    """(1 + 3) / 2 = 2 and (2 + 6) / 2 = 4, then 5 of audio and 7 of the image."""
    both = Features(
        {"audio": torch.tensor([[1.0, 2.0]]), "image": torch.tensor([[3.0, 6.0]])},
        {"audio": torch.tensor([[5.0]]), "image": torch.tensor([[7.0]])},
    )
    assert representation(both).tolist() == [[2.0, 4.0, 5.0, 7.0]]
    assert representation(both.only(["image"])).tolist() == [[3.0, 6.0, 7.0]]


def moon_after_a_round() -> tuple[Moon, dict[str, torch.Tensor], Batch]:
    """Return a device in round 2, mixed with a neighbour, and what it had published before."""
    learner, other = (learner_of("moon", node, mu=0.3) for node in (0, 1))
    published = learner.run_round(Plan(1, 4), {}).payload
    inbox = {1: other.run_round(Plan(1, 4), {}).payload}
    plan = Plan(2, 4, neighbours=(1,), weights=dict.fromkeys(learner.blocks(), (0.5, 0.5)))
    learner.server_round = 2
    learner.mix(plan, inbox)
    learner.before_training(plan, inbox)
    assert isinstance(learner, Moon)
    return learner, published, batch_for(learner)


def test_moon_compares_with_the_mixed_model_and_with_the_own_one_before_mixing():
    learner, published, batch = moon_after_a_round()
    with torch.no_grad():
        for w in learner.model.parameters():  # an iteration later
            w += 0.05 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    for m in ("audio", "image"):
        assert torch.equal(flatten(learner._previous.encoders[m]), published[f"encoder.{m}"])
        assert not torch.equal(flatten(learner._mixed.encoders[m]), published[f"encoder.{m}"])
    features = learner.model.encode(batch.inputs)
    z = representation(features)
    z_glob, z_prev = (
        representation(model.encode(batch.inputs)) for model in (learner._mixed, learner._previous)
    )
    near, far = (
        torch.exp((z * o).sum(1) / z.norm(dim=1) / o.norm(dim=1) / 0.5) for o in (z_glob, z_prev)
    )
    expected = learner.task_loss(features, batch.labels) - 0.3 * (near / (near + far)).log().mean()
    assert learner.local_loss(batch).item() == pytest.approx(expected.item(), abs=1e-5)


def test_moon_trains_none_of_the_frozen_models():
    learner, _, batch = moon_after_a_round()
    learner.local_loss(batch).backward()
    for frozen in (learner._mixed, learner._previous):
        assert all(w.grad is None and not w.requires_grad for w in frozen.parameters())
    assert all(w.grad is not None for w in learner.model.parameters())


def gradients(learner: Learner, batch: Batch) -> list[torch.Tensor]:
    learner.model.zero_grad()
    learner.local_loss(batch).backward()
    return [w.grad.clone() for w in learner.model.parameters()]


def test_moon_begins_with_the_second_training():
    """Round 1 is D-PSGD's; later, z_prev = z_glob of a device that never trained: no gradient."""
    plain = learner_of("dpsgd")
    batch = batch_for(plain)
    expected = gradients(plain, batch)
    first, late = prepared(learner_of("moon"), 1), prepared(learner_of("moon"), 7)
    assert all(map(torch.equal, gradients(first, batch), expected))
    for a, b in zip(gradients(late, batch), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert (late.local_loss(batch) - first.local_loss(batch)).item() == pytest.approx(log(2))


def test_the_frozen_models_of_moon_are_paid_for():
    """Two more forward passes in each iteration, though nothing is known when they are counted."""
    plain, moon = (measure_work(learner_of(m)) for m in ("dpsgd", "moon"))
    assert plain.joint < moon.joint < 2 * plain.joint
    assert all(plain.solo[m] < moon.solo[m] for m in plain.solo)


# FedGen


def test_fedgen_is_dmml_kd_without_its_decomposition():
    options = {"decomposition": False, "generator-steps": 50, "stagger": 0.0}
    kd = {f"dmml-kd.{k}": v for k, v in options.items() if k != "stagger"}
    config = {k: v for k, v in CONFIG.items() if k not in FEW_STEPS}  # with all its defaults
    one = make_learner({**config, "method": "fedgen"})
    two = make_learner({**config, **PLAIN, "method": "dmml-kd", "stagger": 0.0, **kd})
    for t in (1, 2, 3):
        a, b = (x.run_round(Plan(t, 4), {}) for x in (one, two))
        assert a.metrics == b.metrics
        assert all(torch.equal(a.payload[name], b.payload[name]) for name in b.payload)
    assert (one.settings.stagger, one.settings.allocation.rule) == (0.0, "uniform")
    assert "generator" in one.blocks()
