"""ModalityMirror: its stages, its losses on steady networks, its teacher, its state.

Steady networks say the same of every input: their heads have no weights, only biases.
"""

from dataclasses import replace
from math import isfinite, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_staged import SENSORS, copied, same, steady, step
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Batch, MirrorOptions, ModalityMirror
from flwr_dmml.losses import distillation_loss
from flwr_dmml.payload.plan import Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings

BOTH: dict[str, Any] = {
    **FAST, "method": "modality-mirror", "modality-pattern": "audio+image", "num-nodes": 3,
}  # fmt: skip
TAUGHT = {"modality-mirror.margin": 0.0}
STAGES = ("uni-modal", "fusion", "distil")
TEACHER = {"teacher.encoder.audio", "teacher.encoder.image", "teacher.head"}
NONE, THREE = 0.0, log(3)  # logits (0, ln 3) are the probabilities 1/4 and 3/4


# The plan


@pytest.mark.parametrize(
    ("shares", "rounds", "expected"),
    [
        ((0.5, 0.2), 10, (5, 2, 3)),
        ((0.5, 0.2), 30, (15, 6, 9)),
        ((0.25, 0.25), 4, (1, 1, 2)),
        ((0.34, 0.33), 3, (1, 1, 1)),  # until rounds 1.02 -> 1 and 2.01 -> 2
        ((0.9, 0.05), 20, (18, 1, 1)),
        ((0.5, 0.4), 3, (2, 1, 0)),  # until 1.5 -> 2 and 2.7 -> 3: nothing is left
    ],
)
def test_stages_by_hand(
    shares: tuple[float, float], rounds: int, expected: tuple[int, int, int]
) -> None:
    options = MirrorOptions(uni_modal=shares[0], fusion=shares[1])
    stages = [options.phase(t, rounds) for t in range(1, rounds + 1)]
    assert stages == [s for s, n in zip(STAGES, expected, strict=True) for _ in range(n)]


@pytest.mark.parametrize(
    ("options", "stage", "trained"),
    [
        ({}, "uni-modal", {"a": "a", "i": "i", "ai": "ai", "gi": "gi"}),
        ({}, "fusion", {"a": "", "i": "", "ai": "ai", "gi": "gi"}),
        ({}, "distil", {"a": "a", "i": "i", "ai": "a", "gi": "gi"}),
        ({"student": "i"}, "distil", {"a": "a", "i": "i", "ai": "i", "gi": "i"}),
        ({"all_nodes": False}, "distil", {"a": "", "i": "", "ai": "a", "gi": ""}),
        ({"all_nodes": False}, "fusion", {"a": "", "i": "", "ai": "ai", "gi": "gi"}),
    ],
)
def test_who_trains_what(options: dict[str, Any], stage: str, trained: dict[str, str]) -> None:
    """Devices with sensors a, i, both, and i with another, g; a is the student's."""
    plan = MirrorOptions(**{"student": "a", **options})
    assert {has: "".join(plan.trained(stage, tuple(has))) for has in trained} == trained


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"num-server-rounds": 2}, ["num-server-rounds = 2", "no round is left for the stage"]),
        ({"modality-mirror.uni-modal": 0.8}, ["the stage 'distil'", "num-server-rounds = 6"]),
        ({"modality-pattern": "audio,image"}, ["modality-pattern = 'audio,image'", "two modal"]),
        (
            {"modality-shares": "audio=0.5,image=0.5"},
            ["modality-shares = 'audio=0.5,image=0.5': no device has two modalities"],
        ),
        (
            {"modality-mirror.student": "lidar"},
            ["modality-mirror.student = 'lidar'", "there are audio+image"],
        ),
        ({"validation-fraction": 0.0}, ["validation-fraction = 0", "judged"]),
    ],
)
def test_runs_that_are_refused(setting: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        config = {"method": "modality-mirror", "num-server-rounds": 6, **setting}
        parse_settings(config, find_parts())
    _, *problems = str(error.value).split("\n")
    assert len(problems) == 1 and all(text in problems[0] for text in expected)


def test_a_fleet_that_cannot_be_told_is_named_once() -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings({"method": "modality-mirror", "modality-pattern": "sonar"}, find_parts())
    assert len(str(error.value).split("\n")) == 2 and "sonar" in str(error.value)


# Losses by hand

ALONE = {"audio": (NONE, 2 * THREE), "image": (NONE, NONE)}


def loss_of(device: Any, label: int, *modalities: str) -> float:
    inputs = {m: torch.zeros(1, *SENSORS[m].shape) for m in modalities}
    return float(device.loss_of(Batch(inputs, torch.tensor([label]))).detach())


def test_uni_modal_and_fusion_losses_by_hand() -> None:
    """Audio says (1/10, 9/10), the image (1/2, 1/2), both together (7/8, 1/8); y = 1.

    Apart: ln(10/9) + ln 2 = 0.10536 + 0.69315. Fused: ln 8 = 2.07944.
    """
    device = steady(ModalityMirror, MirrorOptions(), ALONE, (log(7), 0.0))
    for phase, expected in (("", 0.79851), ("uni-modal", 0.79851), ("fusion", 2.07944)):
        device.after_mixing(Plan(1, 1, phase=phase), {})
        assert loss_of(device, 1, "audio", "image") == pytest.approx(expected, abs=1e-5)
    device.after_mixing(Plan(1, 1, phase="uni-modal"), {})
    assert loss_of(device, 1, "image") == pytest.approx(log(2))
    alone = steady(ModalityMirror, MirrorOptions(), {"audio": (NONE, THREE)})
    alone.after_mixing(Plan(1, 1, phase="fusion"), {})
    assert loss_of(alone, 0, "audio") == pytest.approx(log(4))


def test_distillation_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln(2)/2 + ln(2/3)/2 = ln(4/3)/2 = 0.14384; T = 2: 4 times."""
    student, teacher = torch.tensor([[NONE, THREE]]), torch.zeros(1, 2)
    assert float(distillation_loss(student, teacher, 1.0)) == pytest.approx(log(4 / 3) / 2)
    assert float(distillation_loss(2 * student, teacher, 2.0)) == pytest.approx(2 * log(4 / 3))
    two = distillation_loss(torch.cat([student, teacher]), torch.zeros(2, 2), 1.0)
    assert float(two) == pytest.approx(log(4 / 3) / 4)  # the mean over samples


@pytest.mark.parametrize(("lam", "expected"), [(0.5, 0.34036), (0.25, 0.22286), (1.0, 0.57536)])
def test_the_student_s_loss_by_hand(lam: float, expected: float) -> None:
    """Student (0, 2 ln 3), teacher (0, 0), T = 2, y = 1.

    CE = ln(10/9) = 0.10536 at T = 1; 4 KL = 2 ln(4/3) = 0.57536 at T = 2. Halves: 0.34036.
    """
    device = steady(
        ModalityMirror, MirrorOptions(lam=lam), ALONE, (NONE, NONE), labels=(1,), held_out=(0,)
    )
    plan = Plan(3, 1, phase="distil")
    device.after_mixing(plan, {})
    device.before_training(plan, {})
    (batch,) = device.batches(1)
    assert batch.labels.tolist() == [0, 0]  # a sample is drawn again: positions, not classes
    found = device.loss_of(batch.only(["audio"]))
    assert float(found.detach()) == pytest.approx(expected, abs=1e-5)
    others = device.loss_of(batch.only(["image"]))  # its own loss, where it is asked for
    assert float(others.detach()) == pytest.approx(log(2))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_a_student_like_its_teacher_has_no_gradient(temperature: float) -> None:
    teacher = torch.randn(20, 10, generator=torch.Generator().manual_seed(1)) * 5
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6) and float(gradient.abs().max()) < 1e-6


def test_a_student_like_its_teacher_stays_where_it_is() -> None:
    """With lam = 1 nothing else moves it, whatever the labels."""
    options = MirrorOptions(lam=1.0, margin=0.0)
    device = steady(ModalityMirror, options, ALONE, ALONE["audio"], learning_rate=0.5)
    before = device.state()
    step(device, 3, "distil")
    for name in ("encoder.audio", "head.audio"):
        assert torch.allclose(device.state()[name], before[name], atol=1e-6)
    assert device.memory["passed"] == 1


# The teacher


@pytest.mark.parametrize(("margin", "passed"), [(0.1, 1), (0.11, 0), (0.0, 1), (1.0, 0)])
def test_the_margin_by_hand(margin: float, passed: int) -> None:
    """Of ten held-out samples the teacher, always 0, has three right, the student, always 1, two.

    0.3 - 0.2 is 0.1, if only just below it in floating point.
    """
    device = steady(
        ModalityMirror,
        MirrorOptions(margin=margin),
        {"audio": (0.0, 9.0, 0.0), "image": (0.0, 0.0, 9.0)},
        (9.0, 0.0, 0.0),
        held_out=(0, 0, 0, 1, 1, 2, 2, 2, 2, 2),
    )
    outcome = step(device, 3, "distil")
    assert outcome.metrics["teacher.lead"] == pytest.approx(0.1)
    assert device.memory["passed"] == passed
    again = step(device, 4, "distil")  # judged once
    assert "teacher.lead" not in again.metrics and device.memory["passed"] == passed


def rounds(config: dict[str, Any], phases: list[str]) -> list[Outcome]:
    device = make_learner(config)
    return [step(device, t, phase, evaluate=True) for t, phase in enumerate(phases, start=1)]


PHASES = ["uni-modal", "fusion", "fusion", "distil", "distil", ""]


def test_without_a_teacher_the_labels_alone_teach_bit_for_bit() -> None:
    """lam = 0, a teacher that never passes, and a learner that has never heard of lessons."""

    class LabelsOnly(ModalityMirror):
        name = "labels-only"

        def before_training(self, plan: Plan, inbox: Any) -> None:
            return

    zero = rounds({**BOTH, "modality-mirror.lam": 0.0}, PHASES)
    failed = rounds({**BOTH, "modality-mirror.margin": 1.0}, PHASES)
    taught = rounds({**BOTH, **TAUGHT}, PHASES)
    like = make_learner(BOTH)
    only = LabelsOnly(like.partition, like.settings, like.options)
    plain = [step(only, t, phase, evaluate=True) for t, phase in enumerate(PHASES, start=1)]
    for one, two, three in zip(zero, failed, plain, strict=True):
        two.metrics.pop("teacher.lead", None)
        assert one.metrics == two.metrics == three.metrics
        assert same(one.payload, two.payload) and same(one.payload, three.payload)
    assert not same(taught[3].payload, zero[3].payload)


def test_the_teacher_is_frozen_in_the_last_stage() -> None:
    """It moves in the fusion stage, is mixed once more, and then stays; so does the image's net."""
    device, neighbour = make_learner({**BOTH, **TAUGHT}, 0), make_learner({**BOTH, **TAUGHT}, 1)
    start = device.state()
    for learner in (device, neighbour):
        step(learner, 1, "uni-modal")
    assert same({n: device.state()[n] for n in TEACHER}, {n: start[n] for n in TEACHER})
    before = device.state()
    sent = step(neighbour, 2, "fusion").payload
    step(device, 2, "fusion")
    trained = device.state()
    assert all(not torch.equal(trained[n], before[n]) for n in TEACHER)
    assert all(torch.equal(trained[n], before[n]) for n in device.model.blocks())
    half = dict.fromkeys(device.blocks(), (0.5, 0.5))
    first = step(device, 3, "distil", {1: sent}, neighbours=(1,), weights=half)
    mixed = device.state()
    for name in TEACHER:
        mean = (trained[name].double() + sent[name].double()) / 2
        assert torch.equal(mixed[name], mean.float())
        assert not len(first.payload[name])
    again = step(device, 4, "distil", {1: first.payload}, neighbours=(1,), weights=half)
    assert not again.rejected and same({n: device.state()[n] for n in TEACHER}, {
        n: mixed[n] for n in TEACHER
    })  # fmt: skip
    assert not torch.equal(device.state()["encoder.audio"], mixed["encoder.audio"])


def test_a_teacher_begins_as_the_mixed_uni_modal_encoders() -> None:
    device, neighbour = make_learner(BOTH, 0), make_learner(BOTH, 1)
    step(device, 1, "uni-modal")
    sent, half = step(neighbour, 1, "uni-modal").payload, dict.fromkeys(device.blocks(), (0.5, 0.5))
    trained = device.state()
    given = {"audio": 0, "image": 0}  # parked: it only begins
    step(device, 2, "fusion", {1: sent}, given, neighbours=(1,), weights=half)
    for m in ("audio", "image"):
        mean = (trained[f"encoder.{m}"].double() + sent[f"encoder.{m}"].double()) / 2
        assert torch.equal(device.state()[f"teacher.encoder.{m}"], mean.float())


def test_predictions_by_hand() -> None:
    """Audio (1/10, 9/10), image (3/4, 1/4): the mean is (0.425, 0.575), class 1; fused, class 0.

    The fusion decides from the round after its first, which has published it.
    """
    alone = {"audio": (NONE, 2 * THREE), "image": (THREE, NONE)}
    device = steady(ModalityMirror, MirrorOptions(), alone, (2.0, 1.0), held_out=(0, 0))
    subsets = [("audio", "image"), ("audio",), ("image",)]

    def classes() -> list[int]:
        inputs: dict[str, Tensor] = dict(device.test_data.inputs)
        return [int(found[0].argmax()) for found in device.scores(inputs, subsets)]

    assert classes() == [1, 1, 0]
    parked = {"audio": 0, "image": 0}
    metrics = step(device, 1, "fusion", updates=parked, evaluate=True).metrics
    assert metrics["test.accuracy"] == 0  # still by the mean
    assert classes() == [0, 1, 0]
    assert step(device, 2, "distil", updates=parked, evaluate=True).metrics["test.accuracy"] == 1


def test_more_iterations_than_usual_have_their_lessons_too() -> None:
    """A rule may give a modality more than local-iterations, 2 here: all 36 samples are drawn."""
    device = make_learner(BOTH)
    device.memory["passed"] = torch.tensor([1])
    outcome = step(device, 3, "distil", updates={"audio": 5, "image": 0})
    assert outcome.metrics["train.iterations"] == 5 and isfinite(outcome.metrics["train.loss"])


def test_a_plan_without_a_stage_goes_on_with_the_last() -> None:
    device = make_learner(BOTH)
    assert not len(step(device, 1, "").payload["teacher.head"])
    step(device, 2, "fusion")
    begun = device.state()
    assert len(step(device, 3, "").payload["teacher.head"])
    assert not torch.equal(device.state()["teacher.head"], begun["teacher.head"])


# The state


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
def test_a_state_that_went_through_flower_goes_on_bit_for_bit(done: int) -> None:
    config = {**BOTH, **TAUGHT}
    device = make_learner(config)
    for t in range(1, done + 1):
        step(device, t, PHASES[t - 1])
    other = copied(device, config)
    assert same(device.state(), other.state())
    for t in range(done + 1, len(PHASES) + 1):
        one, two = (step(d, t, PHASES[t - 1], evaluate=True) for d in (device, other))
        assert one.metrics == two.metrics and same(one.payload, two.payload)
        assert same(device.state(), other.state())


# Samples that lack modalities


@pytest.mark.parametrize(("lacks", "lead"), [((), 0.0), ((1,), 1.0), ((0, 1), None)])
def test_the_teacher_is_judged_where_the_student_hears(
    lacks: tuple[int, ...], lead: float | None
) -> None:
    """Of the classes 0 and 1 the student always says 1, the teacher 0: 1/2 each, or 0 and 1.

    Without a sample to judge it on the teacher does not teach.
    """
    device = steady(ModalityMirror, MirrorOptions(), ALONE, (2.0, 0.0))
    has = {m: torch.ones(2, dtype=torch.bool) for m in SENSORS}
    has["audio"][list(lacks)] = False
    device.validation_data = replace(device.validation_data, present=has)
    plan = Plan(3, 1, phase="distil")
    device.after_mixing(plan, {})
    device.before_training(plan, {})
    assert device.measured.get("teacher.lead") == lead
    assert device.memory["passed"] == int(lead == 1.0)
