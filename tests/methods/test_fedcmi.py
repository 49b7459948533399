"""FedCMI: temperatures, dominance and infiltration by hand; what each weight of 0 leaves."""

from math import exp, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.clients import Batch, FedCmi
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.losses import class_temperatures, infiltration_loss
from flwr_dmml.methods.fedcmi import FedCmiOptions
from flwr_dmml.models import Projections, TwoProjectorClassifier
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

BOTH: dict[str, Any] = {
    **FAST,
    "method": "fedcmi",
    "num-nodes": 3,
    "modality-pattern": "audio+image",
}
MIXED: dict[str, Any] = {**BOTH, "num-nodes": 6, "modality-pattern": "audio,audio+image,image"}
SENSORS = {name: Modality("vector", (2,)) for name in ("audio", "image", "touch")}


def learner_of(config: dict[str, Any], partition: int = 0, **options: Any) -> FedCmi:
    named = {f"fedcmi.{key.replace('_', '-')}": value for key, value in options.items()}
    learner = make_learner({**config, **named}, partition)
    assert isinstance(learner, FedCmi)
    return learner


def begun(learner: FedCmi, server_round: int = 2) -> FedCmi:
    """Bring a learner to where a round's training begins."""
    learner.server_round = server_round
    learner.before_training(Plan(server_round, 1), {})
    return learner


def first(learner: FedCmi, count: int = 16) -> Batch:
    rows = learner.train_data.subset(torch.arange(count))
    return Batch(dict(rows.inputs), rows.labels, given=learner.fixed())


def leading(learner: FedCmi, p: Projections, labels: Tensor) -> str:
    """Return the modality that is ahead."""
    (d,) = (m for m, leads in learner.dominant(p, labels).items() if bool(leads))
    return d


# Temperatures and the loss


def test_class_temperatures_by_hand():
    """Ratios 4, 1, 1 have the mean 2: the first modality is ahead, R = 2, 1/2, 1/2.

    T = 1 / (1 + 0.5 ln 2) where R > 1, else 1. The other way round the ratios are 1/4, 1, 1 with
    the mean 3/4 < 1: R = (3/4) / ratio = 3, 3/4, 3/4.
    """
    strong, weak = torch.tensor([0.8, 0.5, 0.5]), torch.tensor([0.2, 0.5, 0.5])
    found = class_temperatures(strong, weak, slope=0.5)
    assert found.tolist() == pytest.approx([1 / (1 + 0.5 * log(2)), 1, 1])
    found = class_temperatures(weak, strong, slope=0.5)
    assert found.tolist() == pytest.approx([1 / (1 + 0.5 * log(3)), 1, 1])


def test_temperatures_are_bounded_and_one_where_nothing_is_known():
    """R = 8 / mean(8, 1) = 16/9 for the first; a slope of 100 would give T = 0.017."""
    strong = torch.tensor([0.8, 0.5, float("nan"), 0.5])
    weak = torch.tensor([0.1, 0.5, 0.5, 0.0])
    found = class_temperatures(strong, weak, slope=100.0, lowest=0.25)
    assert found.tolist() == [0.25, 1.0, 1.0, 1.0]
    free = class_temperatures(strong, weak, slope=100.0)
    assert float(free[0]) == pytest.approx(1 / (1 + 100 * log(8 / 4.5)), rel=1e-5)
    nothing = class_temperatures(torch.zeros(3), torch.ones(3), slope=1.0)
    assert nothing.tolist() == [1.0, 1.0, 1.0]


def test_infiltration_loss_by_hand():
    """T = 1/2 doubles the logits: teacher (ln 3, 0) -> (0.9, 0.1), student even.

    KL = 0.9 ln(0.9 / 0.5) + 0.1 ln(0.1 / 0.5).
    """
    teacher, student = torch.tensor([[log(3), 0.0]]), torch.zeros(1, 2)
    found = infiltration_loss(student, teacher, torch.tensor([0.5]))
    assert float(found) == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2), rel=1e-5)


def test_a_student_like_its_teacher_has_no_loss_and_no_gradient():
    teacher = torch.randn(8, 5)
    student = teacher.clone().requires_grad_()
    loss = infiltration_loss(student, teacher, torch.full((8,), 0.7))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert float(student.grad.abs().max()) < 1e-6  # type: ignore[union-attr]


def test_the_gradient_is_that_of_the_papers_cross_entropy():
    teacher, temperature = torch.randn(4, 3), torch.tensor([0.5, 1.0, 0.8, 1.0])
    gradients = []
    for form in ("kl", "ce"):
        student = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
        if form == "kl":
            loss = infiltration_loss(student, teacher, temperature)
        else:
            scale = temperature[:, None]
            target = F.softmax(teacher / scale, dim=1)
            loss = -(target * F.log_softmax(student / scale, dim=1)).sum(dim=1).mean()
        loss.backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-6)  # type: ignore[arg-type]


# The model


def filled(sensors: tuple[str, ...], fill: bool = True) -> TwoProjectorClassifier:
    owned = {m: SENSORS[m] for m in sensors}
    return TwoProjectorClassifier(owned, tuple(SENSORS), 2, width=1, fill=fill)


def test_a_missing_slot_is_filled_by_the_infiltration_of_those_present():
    """Slots audio, image, touch. Present: audio 1 (infiltrates 10), touch 3 (infiltrates 20).

    The image slot is their mean, 15; with weights 1, 2, 3 the logit is 1 + 30 + 9 = 40. Alone,
    audio gives 1 + 2 * 10 + 3 * 10 = 51. Without filling the missing slots are 0.
    """
    own = {"audio": torch.tensor([[1.0]]), "touch": torch.tensor([[3.0]])}
    infiltration = {"audio": torch.tensor([[10.0]]), "touch": torch.tensor([[20.0]])}
    for fill, both, alone in ((True, 40.0, 51.0), (False, 10.0, 1.0)):
        model = filled(("audio", "touch"), fill)
        with torch.no_grad():
            model.fusion.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
            model.fusion.bias.zero_()
        p = Projections(own, infiltration)
        assert model.fuse(p).tolist() == [[both, 0.0]]
        assert model.fuse(p.only(["audio"])).tolist() == [[alone, 0.0]]


@pytest.mark.parametrize("trained", [True, False])
def test_a_filled_slot_trains_the_fusion_head_only_where_it_is_to(trained: bool):
    """One logit ``w_a a + w_i f + w_t f`` with audio a = 2 and its infiltration f = 5.

    Its gradient by the weights is (2, 5, 5), or (2, 0, 0); by f it is w_i + w_t = 5 either way.
    """
    owned = {"audio": SENSORS["audio"]}
    model = TwoProjectorClassifier(owned, tuple(SENSORS), 1, width=1, train_filled=trained)
    with torch.no_grad():
        model.fusion.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    infiltration = torch.tensor([[5.0]], requires_grad=True)
    model.fuse(Projections({"audio": torch.tensor([[2.0]])}, {"audio": infiltration})).backward()
    assert model.fusion.weight.grad is not None and infiltration.grad is not None
    assert model.fusion.weight.grad.tolist() == [[2.0, 5.0, 5.0] if trained else [2.0, 0.0, 0.0]]
    assert infiltration.grad.tolist() == [[5.0]]


def test_blocks_start_alike_whatever_else_a_device_owns():
    one, three = filled(("image",)).blocks(), filled(("audio", "image", "touch")).blocks()
    assert set(one) == {"fusion", "encoder.image", "projectors.image", "head.image"}
    for name, module in one.items():
        for a, b in zip(module.parameters(), three[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_both_projectors_see_the_encoder_and_differ():
    model = filled(("audio",))
    p = model.encode({"audio": torch.randn(4, 2)})
    assert p.own["audio"].shape == p.infiltration["audio"].shape == (4, 1)
    assert not torch.allclose(p.own["audio"], p.infiltration["audio"])


# The learner


class Given(nn.Module):
    """Heads that give a projection back as logits."""

    def head(self, modality: str, projection: Tensor) -> Tensor:
        return projection


def test_dominance_is_decided_by_the_summed_true_class_probability():
    """Of classes 0 and 1: audio 0.9 + 0.2 = 1.1, image 0.6 + 0.6 = 1.2, though audio is surest."""
    learner = learner_of(BOTH)
    learner.model = Given()  # type: ignore[assignment]
    own = {
        "audio": torch.log(torch.tensor([[0.9, 0.1], [0.8, 0.2]])),
        "image": torch.log(torch.tensor([[0.6, 0.4], [0.4, 0.6]])),
    }
    p, labels = Projections(own, own), torch.tensor([[0, 1], [0, 0]])
    assert leading(learner, p, labels[0]) == "image"
    assert leading(learner, p, labels[1]) == "audio"  # 1.7, 1.0
    twice = {m: torch.stack([x, x]) for m, x in own.items()}
    of_both = learner.dominant(Projections(twice, twice), labels)  # of two devices
    assert {m: x.tolist() for m, x in of_both.items()} == {
        "audio": [False, True],
        "image": [True, False],
    }
    equal = dict.fromkeys(own, own["audio"])
    assert leading(learner, Projections(equal, equal), labels[0]) == "audio"


def test_the_loss_is_the_sum_of_its_terms():
    """The fused loss, c1 times both heads', and c2 times the infiltration into the weak one."""
    learner = begun(learner_of(BOTH, head_weight=2.0, infiltration_weight=3.0))
    batch = first(learner)
    y, p = batch.labels, learner.model.encode(batch.inputs)
    fused = F.cross_entropy(learner.model.fuse(p), y)
    heads = sum(F.cross_entropy(learner.model.head(m, z), y) for m, z in p.own.items())
    d = leading(learner, p, y)
    (m,) = {"audio", "image"} - {d}
    teacher = learner.model.head(d, p.own[d])  # the frozen model is still the current one
    t = learner._temperatures[frozenset(("audio", "image"))][y]
    infiltration = infiltration_loss(learner.model.head(m, p.infiltration[m]), teacher, t)
    expected = float((fused + 2 * heads + 3 * infiltration).detach())
    assert float(learner.loss_of(batch).detach()) == pytest.approx(expected, rel=1e-6)


def test_only_the_weak_modalitys_infiltration_projector_and_encoder_are_taught():
    learner = begun(learner_of(BOTH, head_weight=0.0))
    batch = first(learner)
    p = learner.model.encode(batch.inputs)
    d = leading(learner, p, batch.labels)
    learner._infiltration(batch, p).backward()
    (m,) = {"audio", "image"} - {d}
    moved = {n for n, x in learner.model.named_parameters() if x.grad is not None and x.grad.any()}
    assert {name.split(".")[1] for name in moved} == {f"of_{m}"}
    width = learner.model.projectors[m].out_features // 2
    assert not learner.model.projectors[m].weight.grad[:width].any()  # the self projector's rows
    assert not any(x.requires_grad for x in learner._teacher.parameters())


def test_one_sensor_trains_its_head_on_both_projections_unless_told_as_in_the_code():
    batch = first(begun(learner_of(MIXED)))
    learner = begun(learner_of(MIXED))
    p = learner.model.encode(batch.inputs)
    fused = F.cross_entropy(learner.model.fuse(p), batch.labels)
    both = [learner.model.head("audio", z["audio"]) for z in (p.own, p.infiltration)]
    heads = sum(F.cross_entropy(logits, batch.labels) for logits in both)
    assert learner.loss_of(batch).item() == pytest.approx((fused + heads).item(), rel=1e-6)
    code = begun(learner_of(MIXED, uni_modal_heads=False))
    assert code.loss_of(batch).item() == pytest.approx(fused.item(), rel=1e-6)


def test_the_temperatures_compare_true_class_probabilities_by_class():
    learner = begun(learner_of(BOTH))
    data, means = learner.train_data, []
    projections = learner.model.encode(data.inputs).own
    for m, z in projections.items():
        p = F.softmax(learner.model.head(m, z), dim=1)
        rows = [data.labels == c for c in range(10)]
        assert not all(bool(has.any()) for has in rows)
        means.append(torch.stack([p[has, c].mean() for c, has in enumerate(rows)]))  # NaN of none
    expected = class_temperatures(*means, slope=0.5, lowest=0.5)
    found = learner._temperatures[frozenset(("audio", "image"))]
    assert torch.allclose(found, expected, rtol=1e-5) and not bool((found == 1).all())


def test_each_pair_is_compared_on_the_samples_that_have_both():
    """None has all three: rows 0 and 1 lack touch, 2 and 3 audio, 4 and 5 image, 6 both of these.

    Their classes are 0 and 1 in turn, so a pair's probabilities by class are those of two rows.
    """
    rows, rng = torch.arange(7), torch.Generator().manual_seed(0)
    inputs = {m: torch.randn(7, 2, generator=rng) for m in SENSORS}
    lacks = {"touch": [0, 1], "audio": [2, 3, 6], "image": [4, 5, 6]}
    present = {m: ~torch.isin(rows, torch.tensor(lacks[m])) for m in SENSORS}
    train = Samples(inputs, rows % 2, present=present)
    part = Partition(0, tuple(SENSORS), train, train, SENSORS, 2, train)
    learner = begun(FedCmi(part, Settings(), FedCmiOptions(temperature_slope=2.0)))
    own = learner.model.encode(inputs).own
    p = {m: F.softmax(learner.model.head(m, z), dim=1)[rows, rows % 2] for m, z in own.items()}
    pairs = {("audio", "image"): [0, 1], ("image", "touch"): [2, 3], ("audio", "touch"): [4, 5]}
    for (a, b), both in pairs.items():
        expected = class_temperatures(p[a][both], p[b][both], slope=2.0, lowest=0.5)
        assert not bool((expected == 1).all())
        assert torch.allclose(learner._temperatures[frozenset((a, b))], expected)
    true = learner._true_class_probabilities()
    assert torch.nonzero(true["touch"].isnan()).flatten().tolist() == [0, 1, 6]


def test_the_first_round_teaches_nothing():
    assert not begun(learner_of(BOTH), server_round=1)._teaches
    assert begun(learner_of(BOTH), server_round=2)._teaches
    assert not begun(learner_of(MIXED, 0), server_round=2)._teaches  # audio alone


def test_the_proximal_term_pulls_what_is_trained_back_to_the_mixed_model():
    """mu (w - w_mixed) = 4 * 0.1 is added to each gradient; an encoder at rest gets none."""
    learner = begun(learner_of(BOTH, proximal=4.0))
    with torch.no_grad():
        for w in learner.model.parameters():
            w += 0.1
    learner.loss_of(first(learner).only(["audio"])).backward()
    before = {n: w.grad.clone() for n, w in learner.model.named_parameters() if w.grad is not None}
    learner.modulate(("audio",), first(learner))
    for name, w in learner.model.named_parameters():
        assert (w.grad is None) == (name not in before) == (".of_image." in name)
        if w.grad is not None:
            assert torch.allclose(w.grad, before[name] + 0.4, atol=1e-5)


def test_features_infiltrate_by_their_mean_squared_difference():
    learner = begun(learner_of(BOTH, infiltrate="features"))
    batch = first(learner)
    p = learner.model.encode(batch.inputs)
    d = leading(learner, p, batch.labels)
    (m,) = {"audio", "image"} - {d}
    expected = ((p.infiltration[m] - p.own[d]) ** 2).mean()
    assert learner._infiltration(batch, p).item() == pytest.approx(expected.item(), rel=1e-6)


def final(**options: Any) -> list[float | None]:
    config = {**MIXED, **{f"fedcmi.{k.replace('_', '-')}": v for k, v in options.items()}}
    record = run_peers(config, num_rounds=3).records[-1]
    return [node.accuracy for node in record.nodes] + [node.train_loss for node in record.nodes]


def test_without_infiltration_its_other_settings_change_nothing():
    """Weight 0 is the plain baseline, bit for bit, whatever the temperatures would be."""
    plain = final(infiltration_weight=0.0)
    assert final(infiltration_weight=0.0, temperature_slope=2.0, softening=3.0) == plain
    assert final() != plain
    assert final() == final()


def test_temperature_falls_with_e_to_the_lag():
    """R = e: T = 1 / (1 + slope). Ratios (e^2 r, r, ...) are scaled by their mean only."""
    n = 1000
    strong = torch.tensor([exp(1) / 10] + [0.1] * n)
    weak = torch.tensor([0.1] + [0.1] * n)
    found = class_temperatures(strong, weak, slope=2.0)
    assert float(found[0]) == pytest.approx(1 / 3, rel=1e-2)
