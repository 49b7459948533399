"""Baselines that balance the modalities of a device: OGM-GE, the greedy learner, ModDrop."""

from collections import Counter
from dataclasses import replace
from math import tanh
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_together
from torch import nn
from torch.nn import functional as F

from flwr_dmml.clients import Batch, Greedy, GreedyOptions, Learner, ModalityDropout, OgmGe
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.methods.ogm_ge import OgmGeOptions, coefficients
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
BOTH = ("audio", "image")
PLAN = Plan(1, 1)


def learner_of(method: str, node: int = 0, server_round: int = 2, **options: Any) -> Learner:
    """Return a device of CONFIG that is about to begin its local iterations."""
    own = {f"{method}.{key}": value for key, value in options.items()}
    learner = make_learner({**CONFIG, "method": method, **own}, node)
    learner.server_round = server_round
    learner.before_training(Plan(server_round, 1), {})
    return learner


def batch_for(learner: Learner) -> Batch:
    samples = learner.train_data.subset(torch.arange(8))
    return Batch(dict(samples.inputs), samples.labels)


def gradients(learner: Learner, modality: str) -> list[torch.Tensor]:
    return [w.grad.clone() for w in learner.encoders()[modality].parameters()]


# OGM-GE


def ogm(**options: Any) -> OgmGe:
    learner = learner_of("ogm-ge", **options)
    assert isinstance(learner, OgmGe)
    return learner


def modulated(learner: OgmGe, audio: float, image: float) -> dict[str, list[torch.Tensor]]:
    """Return the gradients before (``.old``) and after, where the scores are as given."""
    batch = batch_for(learner)
    learner.model.zero_grad()
    learner.task_loss(learner.model.encode(batch.inputs), batch.labels).backward()
    old = {f"{m}.old": gradients(learner, m) for m in BOTH}
    learner._scores = {"audio": [torch.full((8,), audio)], "image": [torch.full((8,), image)]}
    learner.modulate(BOTH, replace(batch, given=learner.draw(batch)))
    return old | {m: gradients(learner, m) for m in BOTH}


def k_of(alpha: float, **scores: float) -> dict[str, float]:
    found = coefficients({m: torch.tensor(s) for m, s in scores.items()}, alpha)
    return {m: float(k) for m, k in found.items()}


def test_the_coefficients_by_hand():
    """rho = 0.6 / 0.3 = 2: k = 1 - tanh(0.5 * 2). The other has rho = 1/2: k = 1."""
    assert k_of(0.5, audio=0.6, image=0.3) == pytest.approx({"audio": 1 - tanh(1.0), "image": 1.0})
    assert k_of(0.5, audio=0.4, image=0.4) == {"audio": 1.0, "image": 1.0}
    assert k_of(0.5, audio=0.6) == {}


def test_the_coefficients_of_devices_in_a_stack_are_their_own():
    """Device 0 as above, device 1 the other way round, device 2 in balance."""
    scores = {"audio": torch.tensor([0.6, 0.3, 0.4]), "image": torch.tensor([0.3, 0.6, 0.4])}
    found = {m: k.tolist() for m, k in coefficients(scores, alpha=0.5).items()}
    k = 1 - tanh(1.0)
    assert found["audio"] == pytest.approx([k, 1.0, 1.0])
    assert found["image"] == pytest.approx([1.0, k, 1.0])


def test_more_than_two_modalities_stand_against_the_mean_of_the_others():
    """0.6 against (0.3 + 0.1) / 2: rho = 3. 0.3 against 0.35 and 0.1 against 0.45 are behind."""
    found = k_of(0.2, a=0.6, b=0.3, c=0.1)
    assert found == pytest.approx({"a": 1 - tanh(0.6), "b": 1.0, "c": 1.0})


def test_or_against_the_weakest_of_the_others():
    """0.6 against 0.1: rho = 6. 0.3 against 0.1: rho = 3."""
    given = {"a": torch.tensor(0.6), "b": torch.tensor(0.3), "c": torch.tensor(0.1)}
    found = {m: float(k) for m, k in coefficients(given, 0.2, "weakest").items()}
    assert found == pytest.approx({"a": 1 - tanh(1.2), "b": 1 - tanh(0.6), "c": 1.0})


def test_the_encoder_that_is_ahead_gets_smaller_gradients():
    found = modulated(ogm(alpha=0.5, noise=False), audio=0.6, image=0.3)
    for new, old in zip(found["audio"], found["audio.old"], strict=True):
        assert torch.allclose(new, (1 - tanh(1.0)) * old, rtol=1e-4, atol=1e-9)
    assert all(map(torch.equal, found["image"], found["image.old"]))


def test_the_noise_has_the_deviation_of_the_gradient_and_hits_convolutions_only():
    """(g' - k g) / std(g) is what the round's generator draws: first audio's, then the image's."""
    learner = ogm(alpha=0.5)
    found = modulated(learner, audio=0.3, image=0.6)
    rng, k, convolutions = learner.rng("noise"), 1 - tanh(1.0), 0
    sizes = {m: [w.numel() for w in found[m] if w.dim() == 4] for m in BOTH}
    drawn = torch.randn(sum(map(sum, sizes.values())), generator=rng)[sum(sizes["audio"]) :]
    for new, old in zip(found["image"], found["image.old"], strict=True):
        noise = (new - k * old) / old.std(correction=0)
        if new.dim() == 4:
            own, drawn = drawn[: new.numel()], drawn[new.numel() :]
            assert torch.allclose(noise, own.view(new.shape), atol=1e-3)
            convolutions += 1
        else:
            assert float(noise.abs().max()) < 1e-3
    assert convolutions == 2
    assert all(map(torch.equal, found["audio"], found["audio.old"]))


def test_the_noise_depends_on_seed_node_and_round_only():
    def noisy(node: int = 0, server_round: int = 1, **config: Any) -> torch.Tensor:
        learner = make_learner({**CONFIG, "method": "ogm-ge", **config}, node)
        learner.server_round = server_round
        learner.before_training(Plan(server_round, 1), {})
        assert isinstance(learner, OgmGe)
        return torch.randn(5, generator=learner._rng)

    assert torch.equal(noisy(), noisy())
    for other in (noisy(node=1), noisy(server_round=2), noisy(seed=1)):
        assert not torch.equal(noisy(), other)


def test_noise_is_the_same_in_every_run_and_can_be_left_out():
    def payload(**options: Any) -> dict[str, torch.Tensor]:
        own = {f"ogm-ge.{k}": v for k, v in options.items()}
        return make_learner({**CONFIG, "method": "ogm-ge", **own}).run_round(Plan(1, 8), {}).payload

    one, again, without = payload(), payload(), payload(noise=False)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], without[name]) for name in one)


@pytest.mark.parametrize("together", [False, True])
def test_the_noise_hits_convolutions_of_series(together: bool):
    """Alone and in a stack of two: with noise and without, only their weights differ."""
    source = {"a": Modality("series", (2, 16)), "b": Modality("image", (1, 8, 8))}

    def device(node: int, noise: bool) -> OgmGe:
        inputs = {m: torch.randn(16, *form.shape, generator=rng) for m, form in source.items()}
        samples = Samples(inputs, torch.arange(16) % 4)
        partition = Partition(node, tuple(source), samples, samples, source, 4, samples)
        settings = Settings(num_nodes=2, momentum=0.0, clip_norm=0.0, exact=not together)
        return OgmGe(partition, settings, OgmGeOptions(alpha=0.5, noise=noise))

    for m in source:  # each ahead in turn
        found = list[list[OgmGe]]()
        for noise in (True, False):
            rng = torch.Generator().manual_seed(0)
            learners = [device(node, noise) for node in (0, 1)]
            for learner in learners:
                learner.watched = lambda m=m, own=learner.watched: {  # type: ignore[method-assign]
                    n: x * 0 + (0.6 if n == m else 0.3) for n, x in own().items()
                }
            assert not any(isinstance(x, Exception) for x in run_together(learners, [PLAN] * 2))
            found.append(learners)
        for a, b in zip(*found, strict=True):
            weights = zip(a.model.parameters(), b.model.parameters(), strict=True)
            changed = {id(x) for x, y in weights if not torch.equal(x, y)}
            layers = [x for x in a.encoders()[m].modules() if isinstance(x, nn.Conv1d | nn.Conv2d)]
            assert len(layers) > 1 and changed == {id(x.weight) for x in layers}


@pytest.mark.parametrize("until, modulates", [(0.5, False), (0.51, True)])
def test_rounds_after_until_are_those_of_dpsgd(until: float, modulates: bool):
    """Two of four rounds are over."""
    plan = Plan(3, 4, num_rounds=4, evaluate=True)
    own = {"method": "ogm-ge", "ogm-ge.until": until}
    learner, plain = (make_learner({**CONFIG, **x}) for x in (own, {"method": "dpsgd"}))
    found, expected = (x.run_round(plan, {}) for x in (learner, plain))
    same = all(torch.equal(found.payload[k], x) for k, x in expected.payload.items())
    assert found.payload.keys() == expected.payload.keys() and same != modulates
    assert (found.metrics == expected.metrics) != modulates


def test_a_score_is_the_probability_of_the_true_classes_from_one_modality_alone():
    learner = ogm()
    batch = batch_for(learner)
    assert torch.equal(
        learner.local_loss(batch), F.cross_entropy(learner.model(batch.inputs), batch.labels)
    )
    with torch.no_grad():
        for m in BOTH:
            p = torch.softmax(learner.model({m: batch.inputs[m]}), dim=1)
            expected = torch.stack([p[i, y] for i, y in enumerate(batch.labels.tolist())])
            (found,) = learner._scores[m]
            assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad


def test_rows_with_one_modality_have_no_say_and_scores_end_with_the_iteration():
    learner = ogm()
    batch = batch_for(learner)
    learner.local_loss(batch.only(["audio"]))
    assert learner._scores == {}
    learner.local_loss(batch)
    learner.local_loss(batch)
    assert [len(true) for true in learner._scores["image"]] == [8, 8]
    learner.modulate(BOTH, replace(batch, given=learner.draw(batch)))
    assert learner._scores == {}


# The greedy learner


def greedy(server_round: int = 2, **options: Any) -> Greedy:
    """Return a device whose encoders' weights are all 2."""
    learner = learner_of("greedy", server_round=server_round, **options)
    assert isinstance(learner, Greedy)
    with torch.no_grad():
        for w in learner.trained_parameters():
            w.fill_(2.0)
    return learner


def modulate(learner: Greedy, *modalities: str) -> set[str]:
    """Modulate as an iteration does, and keep what it brings up to date; return who steps."""
    running = {name: value.clone() for name, value in learner.running().items()}
    batch = replace(batch_for(learner), given=running)
    resting = learner.modulate(modalities, batch)
    learner.memory |= running
    assert set(resting) <= {f"encoder.{m}" for m in modalities}
    rest = {name.removeprefix("encoder.") for name, rests in resting.items() if bool(rests)}
    return set(learner.partition.modalities) - rest


def iterate(learner: Greedy, audio: float, image: float, *modalities: str) -> set[str]:
    """Give every weight of an encoder this gradient; return whose encoder does not rest."""
    for m, value in (("audio", audio), ("image", image)):
        for w in learner.encoders()[m].parameters():
            w.grad = torch.full_like(w, value)
    return modulate(learner, *(modalities or BOTH))


def speeds(learner: Greedy) -> list[float]:
    return [float(learner.memory[f"speed.{m}"]) for m in BOTH]


def test_the_faster_encoder_is_frozen_for_five_iterations():
    """Gradients 1 and 0.5 on weights of 2: M = 1/4 and 1/16, d = log10 4 = 0.602 > 0.01.

    The iteration that finds it is trained in full; then five without audio, which are not measured;
    the next one is again, whatever its gradients: M = 1/4 + 1/4, 1/16 + 1/16.
    """
    learner = greedy()
    assert iterate(learner, 1.0, 0.5) == {"audio", "image"}
    assert speeds(learner) == pytest.approx([1 / 4, 1 / 16])
    for _ in range(5):
        assert iterate(learner, 1.0, 0.5) == {"image"}
        assert speeds(learner) == pytest.approx([1 / 4, 1 / 16])
    assert iterate(learner, 1.0, 0.5) == {"audio", "image"}
    assert speeds(learner) == pytest.approx([1 / 2, 1 / 8])
    assert iterate(learner, 1.0, 0.5) == {"image"}


def test_a_difference_below_the_threshold_freezes_nobody():
    """Gradients 1 and 0.98: d = 2 log10(1 / 0.98) = 0.0175."""
    for threshold, kept in ((0.018, {"audio", "image"}), (0.017, {"image"})):
        learner = greedy(threshold=threshold)
        iterate(learner, 1.0, 0.98)
        assert iterate(learner, 1.0, 0.98) == kept


def test_round_one_measures_only_and_solo_iterations_do_neither():
    learner = greedy(server_round=1)
    for _ in range(3):
        assert iterate(learner, 1.0, 0.5) == {"audio", "image"}
    assert speeds(learner) == pytest.approx([3 / 4, 3 / 16])
    learner.server_round = 2
    iterate(learner, 1.0, 0.5)
    before = dict(learner.memory)
    assert iterate(learner, 1.0, 0.5, "audio") == {"audio", "image"}
    assert learner.memory == before
    assert iterate(learner, 1.0, 0.5) == {"image"}


def test_of_three_modalities_all_but_the_slowest_wait():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    learner = Greedy(partition, Settings(), GreedyOptions(steps=1))
    learner.server_round = 2

    def kept() -> set[str]:
        for m, value in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
            for w in learner.encoders()[m].parameters():
                w.data.fill_(1.0)
                w.grad = torch.full_like(w, value)
        return modulate(learner, *"abc")

    assert kept() == {"a", "b", "c"}
    assert kept() == {"a"}
    assert kept() == {"a", "b", "c"}


def test_a_frozen_encoder_does_not_move_and_stays_frozen_in_another_process():
    """Frozen in one learner, taken up by another, for as long as it says there."""
    learner = greedy(steps=7)
    iterate(learner, 1.0, 0.5)
    fresh = make_learner({**CONFIG, "method": "greedy", "greedy.steps": 7})
    fresh.load_state({name: value.clone() for name, value in learner.state().items()})
    before = {m: flatten(encoder) for m, encoder in fresh.encoders().items()}
    fresh.run_round(Plan(2, 6), {})
    after = {m: flatten(encoder) for m, encoder in fresh.encoders().items()}
    assert torch.equal(before["audio"], after["audio"])
    assert not torch.equal(before["image"], after["image"])
    assert int(fresh.memory["frozen.audio"]) == 1
    fresh.run_round(Plan(3, 2), {})  # the last frozen iteration, and one in full
    assert not torch.equal(after["audio"], flatten(fresh.encoders()["audio"]))


# ModDrop


def dropped(steps: int = 4000, node: int = 0, server_round: int = 1, **options: Any) -> Counter:
    """Return how often each set of modalities is trained, of all joint iterations."""
    learner = learner_of("modality-dropout", node, server_round, **options)
    return Counter(learner.steps(dict.fromkeys(BOTH, steps)))


def test_how_often_a_modality_is_dropped():
    """p = 0.3: both stay in 0.7^2, one alone in 0.7 * 0.3 and half of the 0.3^2 left by both."""
    found = dropped(p=0.3)
    assert found[BOTH] / 4000 == pytest.approx(0.49, abs=0.03)
    for m in BOTH:
        assert found[m,] / 4000 == pytest.approx(0.21 + 0.045, abs=0.03)
    assert sum(found.values()) == 4000


def test_one_modality_is_always_left():
    found = dropped(p=1.0)
    assert set(found) == {("audio",), ("image",)}
    assert found["audio",] / 4000 == pytest.approx(0.5, abs=0.03)
    assert dropped(p=0.0) == {BOTH: 4000}


def test_which_are_dropped_depends_on_seed_node_and_round_only():
    def steps(node: int = 0, server_round: int = 1, **config: Any) -> list[tuple[str, ...]]:
        learner = make_learner({**CONFIG, "method": "modality-dropout", **config}, node)
        learner.server_round = server_round
        return learner.steps(dict.fromkeys(BOTH, 30))

    assert steps() == steps()
    for other in (steps(node=1), steps(server_round=2), steps(seed=1)):
        assert steps() != other


def test_solo_iterations_are_left_as_they_are():
    """Four common updates, and three of audio alone."""
    learner = learner_of("modality-dropout", p=1.0)
    found = learner.steps({"audio": 7, "image": 4})
    assert len(found) == 7 and all(len(step) == 1 for step in found)
    assert found.count(("audio",)) >= 3


def test_an_encoder_that_is_always_dropped_does_not_move(monkeypatch: pytest.MonkeyPatch):
    """And is not counted as trained: it has no speed."""
    monkeypatch.setattr(ModalityDropout, "_kept", lambda self, step, rng: ("image",))
    learner = learner_of("modality-dropout", server_round=1)
    before = {m: flatten(encoder) for m, encoder in learner.encoders().items()}
    metrics = learner.run_round(Plan(1, 5), {}).metrics
    assert torch.equal(before["audio"], flatten(learner.encoders()["audio"]))
    assert not torch.equal(before["image"], flatten(learner.encoders()["image"]))
    assert "speed.image" in metrics and "speed.audio" not in metrics


@pytest.mark.parametrize("method", ["greedy", "modality-dropout"])
def test_iterations_that_leave_something_out_are_paid_for_in_full(method: str):
    plain, found = (measure_work(learner_of(m)) for m in ("dpsgd", method))
    assert found == plain
