"""KD and IDKD on one device: training on labels, modalities that not everybody has, and the state.

Models that give their input back (helpers_idkd), and real ones on ``digits``.
"""

from math import log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_idkd import echo, logs, message, sent, taught
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.clients import Batch, Idkd, Kd, Learner
from flwr_dmml.data import PublicSet, load_public
from flwr_dmml.learning.batch import draw_indices, mean_over
from flwr_dmml.learning.optimisers import Iteration
from flwr_dmml.methods import with_public
from flwr_dmml.methods.teaching import logits_of
from flwr_dmml.payload.plan import Outcome, Payload, Plan
from flwr_dmml.transport.messages import pack, unpack

NOTHING = torch.empty(0, 2)
NO_LABELS = torch.empty(0, dtype=torch.int64)


def both(own: Tensor, labels: list[int], public: Tensor, targets: list[list[float]]) -> Batch:
    """Return a batch of own rows with modalities a and b (zeros), and public rows with a alone."""
    soft = torch.tensor(targets, dtype=torch.float32).reshape(len(public), 2)
    inputs = {"a": own, "b": torch.zeros_like(own)}
    return Batch(inputs, torch.tensor(labels), (Batch({"a": public}, soft),))


OWN_ROW = torch.tensor([[log(2), 0.0]])  # (2/3, 1/3)
PUBLIC_ROWS = torch.tensor([[0.0, 0.0], [log(3), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
MIXED = both(OWN_ROW, [0], PUBLIC_ROWS, [[0.25, 0.75], [0.5, 0.5]])


def on_two() -> Kd:
    """Return a device of KD that owns a and b; the public set has a alone."""
    learner: Kd = echo(Kd, {"a": [[0.0, 0.0]]}, own={"a": [[0.0, 0.0]] * 3, "b": [[0.0, 0.0]] * 3})
    return learner


# One batch


def test_the_loss_of_a_batch_is_the_mean_over_own_and_public_rows_by_hand():
    """Own: -log(2/3). Public: log 2, and -(log(3/4) + log(1/4)) / 2 = log 4 - log(3) / 2.

    The mean of three rows, not of two parts.
    """
    rows = [log(1.5), log(2), log(4) - log(3) / 2]
    loss = mean_over(MIXED, on_two().local_loss)
    assert float(loss.detach()) == pytest.approx(sum(rows) / 3, rel=1e-6)
    assert float(loss.detach()) != pytest.approx((rows[0] + (rows[1] + rows[2]) / 2) / 2, rel=1e-2)


def test_a_part_without_rows_does_not_count():
    learner = on_two()
    own_only = both(OWN_ROW, [0], NOTHING, [])
    assert mean_over(own_only, learner.local_loss).item() == pytest.approx(log(1.5))
    public_only = both(NOTHING, [], PUBLIC_ROWS[:1], [[0.25, 0.75]])
    assert mean_over(public_only, learner.local_loss).item() == pytest.approx(log(2))


def test_a_solo_iteration_sees_one_modality_of_both_parts():
    seen = MIXED.only(["a"])
    assert set(seen.inputs) == set(seen.others[0].inputs) == {"a"}
    assert seen.labels is MIXED.labels and seen.others[0].labels is MIXED.others[0].labels
    joint = MIXED.only(m for m in ("b", "a"))  # an iterator is read once
    assert set(joint.inputs) == {"a", "b"} and set(joint.others[0].inputs) == {"a"}


def test_public_rows_that_lack_the_trained_modality_are_left_out():
    """Alone, b is (0, 0) in the own row: log 2, whatever the public rows are."""
    seen = MIXED.only(["b"])
    assert set(seen.inputs) == {"b"} and seen.others[0].inputs == {}
    assert mean_over(seen, on_two().local_loss).item() == pytest.approx(log(2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_row_at_all_steps_nothing(momentum: float):
    """Not even by momentum and weight decay: the iteration has nothing to say."""
    learner: Kd = echo(Kd, {"a": [[0.0, 0.0]]}, momentum=momentum, weight_decay=0.1)
    batch = both(NOTHING, [], PUBLIC_ROWS, [[0.25, 0.75], [0.5, 0.5]]).only(["b"])
    flat = learner.flat
    local = learner.local_steps([learner], Plan(1, 1), flat.rows)
    iteration = Iteration(flat.rows, flat.parameters)
    loss = mean_over(batch, learner.local_loss)
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, flat.parameters, allow_unused=True)
    local.take(iteration, gradients)
    local.clip(iteration)
    local.step(iteration)
    assert gradients == (None,) and iteration.gradients == {}
    assert float(learner.model.scale.detach()) == 1.0
    assert local.taken.tolist() == [[0]]


def test_one_hot_soft_labels_are_hard_labels():
    """The loss and its gradient, on the real model with its modalities' own losses."""
    config = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image", "method": "kd"}
    learner = make_learner({**config, "modality-loss": 0.5})
    rows = learner.train_data.subset(torch.arange(16))
    inputs = dict(rows.inputs)
    found = []
    for labels in (rows.labels, F.one_hot(rows.labels, 10).float()):
        learner.model.zero_grad()
        loss = learner.local_loss(Batch(inputs, labels))
        loss.backward()
        found.append((loss.detach(), learner.model.head_common.weight.grad.clone()))
    assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])


# Mini-batches


def drawn(learner: Learner, iterations: int) -> list[tuple[list[float], list[float]]]:
    """Return (row, target) of all that is drawn, own and public."""
    rows: list[tuple[list[float], list[float]]] = []
    for batch in learner.batches(iterations):
        assert batch.others == () and batch.labels.dtype == torch.float32
        assert len(batch.labels) == learner.settings.batch_size
        for x, y in zip(batch.inputs["a"], batch.labels, strict=True):
            rows.append((x.tolist(), y.tolist()))
    return rows


def test_a_pass_draws_every_own_and_every_labelled_row_once():
    """3 own rows and 3 of 5 public ones in batches of 2: 3 batches a pass; 1 and 4 have no label.

    Two passes, each row twice, each with its own target.
    """
    public = [[float(k), 0.0] for k in range(5)]
    own = [[10.0, 0.0], [11.0, 0.0], [12.0, 0.0]]
    learner = echo(Kd, {"a": public}, own={"a": own}, labels=[0, 1, 0], chosen=[], batch_size=2)
    labels = {0: [1.0, 0.0], 2: [0.25, 0.75], 3: [0.5, 0.5]}
    inbox = {1: message(labels)}
    learner.run_round(Plan(2, 1, neighbours=(1,)), inbox)
    expected = [([float(k), 0.0], target) for k, target in labels.items()]
    of_class = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    expected += list(zip(own, of_class, strict=True))
    learner.server_round = 3
    assert sorted(drawn(learner, 3)) == sorted(expected)
    assert sorted(drawn(learner, 6)) == sorted(expected * 2)
    order = drawn(learner, 3)
    learner.server_round = 4
    assert drawn(learner, 3) != order, "another round draws in another order"


def test_indices_are_drawn_in_whole_passes():
    """7 of 3 in batches of 7: two passes and one more; none at all for no batch."""
    generator = torch.Generator().manual_seed(0)
    (batch,) = draw_indices(3, 1, 7, generator)
    assert sorted(batch[:3].tolist()) == sorted(batch[3:6].tolist()) == [0, 1, 2]
    assert list(draw_indices(3, 0, 7, generator)) == []


# Devices that see different things


PAIR = {**FAST, "num-nodes": 2, "modality-pattern": "image,audio", "public.samples": 60}


def on_digits(node: int = 0, method: str = "kd", **more: Any) -> Kd:
    own = {k.replace("__", ".").replace("_", "-"): v for k, v in more.items()}
    learner = make_learner({**PAIR, "method": method, **own}, node)
    assert isinstance(learner, Kd)
    return learner


def label(learner: Learner, server_round: int = 1) -> Outcome:
    return learner.run_round(Plan(server_round, 2, phase="label"), {})


def through_flower(payload: Payload) -> Payload:
    return unpack(pack(payload))


def test_a_device_labels_from_what_it_owns():
    """Each from its own modality, in the order of the one public set."""
    for node, modality in enumerate(("image", "audio")):
        learner = on_digits(node)
        learner.model.train()
        assert set(learner.public.inputs) == {modality}
        shared = load_public(learner.settings.public, learner.settings.partition_options())
        with torch.no_grad():
            logits = learner.model({modality: shared.inputs[modality]})
        found = sent(label(learner).payload)
        assert torch.allclose(torch.tensor(list(found.values())), logits.softmax(dim=1), atol=1e-3)


def test_dropout_and_such_are_off_for_labels_and_on_for_training():
    """60 public samples and 4 held-out ones are looked at, then batches of 16 are trained on."""
    learner = on_digits(method="idkd")
    modes: list[tuple[int, bool]] = []
    learner.model.register_forward_pre_hook(
        lambda model, inputs: modes.append((inputs[0]["image"].shape[-4], model.training))
    )
    label(learner)
    assert modes == [(60, False), (4, False), (16, True), (16, True)]


def test_labels_cross_the_modality_gap():
    """IDKD. The microphone trains on tones with labels that only the camera's owner could give."""
    camera, microphone = (on_digits(k, "idkd", samples_per_node=100) for k in (0, 1))
    assert camera.partition.modalities == ("image",)
    assert microphone.partition.modalities == ("audio",)
    for learner in (camera, microphone):
        learner.run_round(Plan(1, 3), {})
    there, own = label(camera, 2).payload, label(microphone, 2).payload
    only_camera = set(sent(there)) - set(sent(own))
    assert only_camera and len(sent(there)) < 60
    outcome = microphone.run_round(Plan(3, 2, neighbours=(0,)), {0: through_flower(there)})
    labels = taught(microphone)
    assert outcome.rejected == [] and labels is not None
    assert set(labels) == set(sent(there)) | set(sent(own))
    assert all(labels[i] == pytest.approx(sent(there)[i], abs=1e-3) for i in only_camera)
    (batch,) = microphone.batches(1)
    assert batch.others == () and set(batch.inputs) == {"audio"} and microphone.stacks_now()


def test_a_device_that_sends_nothing_is_taught_by_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
):
    """The microphone's labels are then the camera's, and they change what it learns."""
    monkeypatch.setattr(Idkd, "choose", lambda self, logits: torch.empty(0, dtype=torch.int64))
    alone, microphone = on_digits(1, "idkd"), on_digits(1, "idkd")
    assert sent(label(microphone).payload) == sent(label(alone).payload) == {}
    there = label(on_digits(0, "kd")).payload
    outcome = microphone.run_round(Plan(2, 4, neighbours=(0,)), {0: through_flower(there)})
    other = alone.run_round(Plan(2, 4, neighbours=(0,)), {0: {}})
    assert taught(microphone) == sent(there) and taught(alone) == {}
    name = "encoder.audio"
    assert not torch.equal(outcome.payload[name], other.payload[name])


@pytest.mark.parametrize("method", ["kd", "idkd"])
@pytest.mark.parametrize("stagger", [0.0, 1.0])
def test_a_public_set_without_one_of_the_modalities(
    method: str, stagger: float, monkeypatch: pytest.MonkeyPatch
):
    """Images only: labels come from images; a solo iteration of audio has own rows only."""

    def images_only(*arguments: Any) -> PublicSet:
        whole = load_public(*arguments)
        return PublicSet({"image": whole.inputs["image"]}, whole.inside, whole.truth)

    monkeypatch.setattr(with_public, "load_public", images_only)
    learner = on_digits(method=method, modality_pattern="audio+image", stagger=stagger)
    public = learner.public_set.inputs["image"]
    with torch.no_grad():
        soft = learner.model({"image": public}).softmax(dim=1)
    found = sent(label(learner).payload)
    assert found, "the labels of an untrained model, but some"
    assert torch.allclose(torch.tensor(list(found.values())), soft[list(found)], atol=1e-3)
    outcome = learner.run_round(Plan(2, 6, evaluate=True), {})
    assert 0 < outcome.metrics["train.loss"] < 10 and set(taught(learner) or {}) == set(found)
    assert outcome.metrics["train.iterations"] == (12 if stagger else 6)
    assert not learner.stacks_now(), "own rows have both modalities, public ones the image"
    for batch in learner.batches(3):
        assert len(batch.others) == 1
        assert set(batch.others[0].inputs) == {"image"} and set(batch.inputs) == {"audio", "image"}
        own = Batch({"audio": batch.inputs["audio"]}, batch.labels)
        assert torch.equal(learner.local_loss(batch.only(["audio"])), learner.local_loss(own))


# The state between rounds


def moved(learner: Kd, **more: Any) -> Kd:
    """Return a fresh device of the same kind that takes up the learner's state, through Flower."""
    state = {name: value.clone() for name, value in learner.state().items()}
    fresh = on_digits(method=learner.name, **more)
    fresh.load_state(unpack(pack(state)))
    back = fresh.state()
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)
    return fresh


def same(a: Outcome, b: Outcome) -> bool:
    keys = a.payload.keys() == b.payload.keys()
    return (
        keys
        and a.metrics == b.metrics
        and all(torch.equal(a.payload[name], value) for name, value in b.payload.items())
    )


@pytest.mark.parametrize("method", ["kd", "idkd"])
def test_labels_survive_the_state_in_mid_phase(method: str):
    """Pending own labels after the labelling round, taught ones after the averaging: same bits."""
    learner = on_digits(method=method, samples_per_node=100)
    learner.run_round(Plan(1, 3, phase="train"), {})
    assert sent(label(learner, 2).payload)
    fresh = moved(learner, samples_per_node=100)
    assert {"memory.own.index", "memory.own.labels"} <= set(fresh.state())
    inbox = {1: label(on_digits(1, samples_per_node=100)).payload}
    third = Plan(3, 3, neighbours=(1,), phase="fine-tune")
    assert same(learner.run_round(third, inbox), fresh.run_round(third, inbox))
    fresh = moved(learner, samples_per_node=100)
    assert {"memory.taught.index", "memory.taught.labels"} <= set(fresh.state())
    assert "memory.own.index" not in fresh.state()
    for plan in (Plan(4, 3, phase="label"), Plan(5, 3, phase="fine-tune"), Plan(6, 0, True)):
        assert same(learner.run_round(plan, {}), fresh.run_round(plan, {}))
    assert taught(learner) == taught(fresh)


def test_no_labels_survive_the_state_too(monkeypatch: pytest.MonkeyPatch):
    """Empty arrays: a device that let nobody in, and was then taught nothing."""
    monkeypatch.setattr(Idkd, "choose", lambda self, logits: torch.empty(0, dtype=torch.int64))
    learner = on_digits(method="idkd")
    label(learner)
    fresh = moved(learner)
    assert fresh.state()["memory.own.labels"].shape == (0, 10)
    for t in (2, 3):
        plan = Plan(t, 2, phase="fine-tune")
        assert same(learner.run_round(plan, {}), fresh.run_round(plan, {}))
        fresh = moved(learner)
        assert fresh.state()["memory.taught.labels"].shape == (0, 10)


def test_a_fresh_start_forgets_all_labels():
    learner = on_digits()
    label(learner)
    learner.run_round(Plan(2, 1), {})
    learner.reset()
    assert not any("own." in name or "taught." in name for name in learner.state())
    assert next(learner.batches(1)).others == ()


def test_labelling_leaves_the_global_random_state_alone():
    learner = on_digits(method="idkd")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    label(learner)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_large_public_set_is_labelled_in_parts():
    """The model sees the public set in parts, in order."""
    learner = on_digits(public__samples=1100)
    sizes: list[int] = []
    learner.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]["image"])))
    found = logits_of(learner.model, learner.public)
    assert sizes == [500, 500, 100] and found.shape == (1100, 10) and not found.requires_grad
    with torch.no_grad():
        assert torch.allclose(found, learner.model(learner.public.inputs), atol=1e-5)


def test_logits_of_probabilities():
    """What the other tests rest on."""
    assert torch.tensor(logs([0.5, 0.25, 0.25])).softmax(dim=1)[0].tolist() == [0.5, 0.25, 0.25]
