"""What an iteration is measured to cost, against FLOPs counted by hand on the real models.

A multiply-add is 2 FLOPs. A layer of n multiply-adds has 2n forward, 2n for the gradient of its
weights and 2n for that of its input: 6n, but 4n for the first layer of an encoder, as nobody asks
for the gradient of the data. A linear layer a -> b has n = ab, a convolution of 5x5 from a to b
channels with p output pixels has n = 25abp.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAST, PLAIN, make_learner
from helpers_work import AUDIO, AUDIO_FORWARD, BATCH, HEAD, HEAD_FORWARD, IMAGE, IMAGE_FORWARD
from torch import nn

from flwr_dmml.clients import DPSGD, Batch, Learner
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.energy.costs import Work
from flwr_dmml.learning import work
from flwr_dmml.learning.options import Options
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "method": "dpsgd"}  # batches of 16
BOTH = {**CONFIG, "modality-pattern": "audio+image"}
KD = {**BOTH, **PLAIN, "method": "dmml-kd", "dmml-kd.orthogonality-weight": 0.3}
LABELLERS = {**BOTH, "public.samples": 100}
NO_MORE = {"train": 0.0, "fine-tune": 0.0}  # than in any other round
NO_GENERATOR = {"dmml-kd.generator": False, "dmml-kd.distillation": False}


@pytest.fixture(autouse=True)
def _nothing_measured_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test measures for itself, whatever was measured before it."""
    monkeypatch.setattr(work, "_measured", {})


def measured(config: Mapping[str, Any], partition_id: int = 0) -> Work:
    return measure_work(make_learner(config, partition_id))


# FLOPs by hand


def test_dpsgd_by_hand() -> None:
    """An encoder and its two heads each; joint, the common head runs once, on the mean."""
    assert AUDIO == 839_680 and IMAGE == 442_880 and HEAD == 1_920
    assert measured(BOTH) == Work(
        joint=BATCH * (AUDIO + IMAGE + 3 * HEAD),
        solo={"audio": BATCH * (AUDIO + 2 * HEAD), "image": BATCH * (IMAGE + 2 * HEAD)},
        per_round=0.0,
    )


def test_the_modality_loss_runs_every_head_once_more() -> None:
    """A joint iteration fuses each modality alone, too: 2 heads more each; a solo one does not.

    That makes it dearer than the solo ones, by 3 heads: 3 + 4 against 4.
    """
    found = measured({**BOTH, "modality-loss": 0.5})
    assert found.joint == BATCH * (AUDIO + IMAGE + 7 * HEAD)
    assert found.solo == measured(BOTH).solo
    assert found.joint - sum(found.solo.values()) == BATCH * 3 * HEAD


def test_a_vector_data_set_by_hand() -> None:
    """6 and 3 values -> 64 -> 5 common and 3 specific features -> 4 classes, in batches of 8.

    imu: 4 * 6 * 64 + 6 * 64 * 8 = 4,608 and heads of 6 * 5 * 4 = 120 and 6 * 3 * 4 = 72: 4,800.
    gas: 4 * 3 * 64 + 6 * 64 * 8 = 3,840 and the same heads: 4,032. Joint: 8,832 - 120 = 8,712.
    """
    source = {"imu": Modality("vector", (6,)), "gas": Modality("vector", (3,))}
    samples = Samples(
        {m: torch.randn(20, *modality.shape) for m, modality in source.items()},
        torch.arange(20) % 4,
    )
    partition = Partition(0, ("imu", "gas"), samples, samples, source, 4, samples)
    settings = Settings(batch_size=8, common_dim=5, specific_dim=3)
    found = measure_work(DPSGD(partition, settings, Options()))
    assert found == Work(8 * 8_712.0, {"imu": 8 * 4_800.0, "gas": 8 * 4_032.0})


def test_dmml_kd_by_hand() -> None:
    """What an iteration of round 2 has on top of D-PSGD's, for a sample and a modality.

    The common head on the modality's own features, for L_com and as the student of L_kd. L_orth: a
    product [32, b] x [b, 32], 6 * 32 * 32. In every iteration besides: G
    (42 -> 128 -> 32) twice, forward only; the common head on generated features, for L_gen (forward
    and weights) and as the teacher (forward): 6 * 32 * 10, as much as a head.
    """
    own = HEAD + 6 * 32 * 32
    generated = 2 * 2 * (42 * 128 + 128 * 32) + HEAD
    found = measured(KD)
    assert found.joint == BATCH * (AUDIO + IMAGE + 3 * HEAD + 2 * own + generated)
    assert found.solo == {
        "audio": BATCH * (AUDIO + 2 * HEAD + own + generated),
        "image": BATCH * (IMAGE + 2 * HEAD + own + generated),
    }


def test_training_the_generator_by_hand() -> None:
    """7 steps of 12 features: 42 -> 128 -> 32, then the own head, frozen, on the way back.

    The first layer has no input gradient, the head no weight gradient.
    """
    steps = {"dmml-kd.generator-steps": 7, "dmml-kd.generator-batch-size": 12}
    expected = 7 * 12 * (4 * 42 * 128 + 6 * 128 * 32 + 4 * 32 * 10)
    assert measured({**KD, **steps}).per_round == expected


def test_only_a_generator_costs_something_besides_iterations() -> None:
    assert measured(BOTH).per_round == 0
    assert measured(KD).per_round > 0
    assert measured({**KD, **NO_GENERATOR}).per_round == 0


def test_labelling_by_hand() -> None:
    """A forward pass of every public sample, 3 heads each; of IDKD's 4 held-out ones as well.

    Held out are 0.1 of 40. All else is D-PSGD's.
    """
    assert AUDIO_FORWARD == 296_960 and IMAGE_FORWARD == 149_760
    sample, plain = AUDIO_FORWARD + IMAGE_FORWARD + 3 * HEAD_FORWARD, measured(BOTH)
    for method, passes in (("kd", 100), ("idkd", 104)):
        found = measured({**LABELLERS, "method": method})
        assert found == replace(plain, in_phase={**NO_MORE, "label": passes * sample})
    few = measured({**LABELLERS, "method": "idkd", "validation-fraction": 0.5})
    assert few.in_phase == {**NO_MORE, "label": 120 * sample}


def test_labelling_goes_with_what_a_device_owns() -> None:
    """One encoder and two heads for a sample of one modality."""
    pattern = {"method": "kd", "modality-pattern": "audio,image"}
    audio, image = (measured({**LABELLERS, **pattern}, k).in_phase for k in (0, 1))
    assert audio == {**NO_MORE, "label": 100 * (AUDIO_FORWARD + 2 * HEAD_FORWARD)}
    assert image == {**NO_MORE, "label": 100 * (IMAGE_FORWARD + 2 * HEAD_FORWARD)}


class Turns(Options):
    """A phase that costs nothing, and one that costs more, in turn."""

    def phase(self, server_round: int, num_rounds: int) -> str:
        return "dear" if server_round % 2 == 0 else "free"


class Phased(DPSGD):
    """Multiplies matrices before training: 2 x 3 x 5 always, 7 x 7 x 7 more in one phase."""

    name = "phased"
    options_type = Turns

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        torch.zeros(2, 3) @ torch.zeros(3, 5)
        if plan.phase == "dear":
            torch.zeros(7, 7) @ torch.zeros(7, 7)


def test_each_phase_is_priced_by_what_it_adds() -> None:
    """2 * 30 FLOPs in every round, 2 * 343 more in one phase; each has a price, also of nothing."""
    like = make_learner(BOTH)
    found = measure_work(Phased(like.partition, like.settings, Turns()))
    assert found.per_round == 60 and found.in_phase == {"free": 0.0, "dear": 686.0}


def test_methods_without_phases_have_no_price_for_any() -> None:
    assert measured(BOTH).in_phase == measured(KD).in_phase == {}


def test_a_device_of_one_modality_has_one_price() -> None:
    found = measured({**CONFIG, "modality-pattern": "audio"})
    assert found == Work(BATCH * (AUDIO + 2 * HEAD), {"audio": BATCH * (AUDIO + 2 * HEAD)})


@pytest.mark.parametrize("dims", [(32, 32), (1, 1), (5, 48)])
@pytest.mark.parametrize(
    "config",
    [BOTH, KD, {**KD, **NO_GENERATOR}, {**KD, "dmml-kd.distillation": False}],
    ids=["dpsgd", "dmml-kd", "no-generator", "no-distillation"],
)
def test_a_joint_iteration_costs_no_more_than_the_solo_ones(
    config: dict[str, Any], dims: tuple[int, int]
) -> None:
    found = measured({**config, "common-dim": dims[0], "specific-dim": dims[1]})
    assert max(found.solo.values()) < found.joint <= sum(found.solo.values())


# Counted once, and without a trace


def test_devices_of_the_same_model_are_counted_once() -> None:
    """0 and 1 have both sensors and other samples: one object, not only equal numbers."""
    pattern = {**CONFIG, "modality-pattern": "audio+image,audio+image,image"}
    first, same, other = (make_learner(pattern, k) for k in range(3))
    assert measure_work(first) is measure_work(same)
    assert list(measure_work(other).solo) == ["image"]


@pytest.mark.parametrize(
    "other",
    [
        {"batch-size": 32},
        {"common-dim": 16},
        {"method": "dmml-kd"},
        {"modality-loss": 1.0},
        {"modality-pattern": "image"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_devices_that_work_differently_are_not_mixed_up(other: dict[str, Any]) -> None:
    assert measured(BOTH) != measured({**BOTH, **other})


def test_options_of_a_method_are_not_mixed_up() -> None:
    twice = {"dmml-kd.generator-steps": 4}  # 2 in FAST
    assert measured({**KD, **twice}).per_round == 2 * measured(KD).per_round


class Twice(DPSGD):
    """Runs its model twice for a loss, with the settings and options of D-PSGD."""

    name = "twice"

    def local_loss(self, batch: Batch) -> torch.Tensor:
        return super().local_loss(batch) + super().local_loss(batch)


def test_methods_with_the_same_settings_are_not_mixed_up() -> None:
    """A comparison runs two methods on one run config."""
    like = make_learner(BOTH)
    twice = measure_work(Twice(like.partition, like.settings, like.options))
    assert twice.joint == 2 * measure_work(like).joint


def test_work_goes_with_the_batch_size() -> None:
    small, large = measured(BOTH), measured({**BOTH, "batch-size": 32})
    assert large == Work(2 * small.joint, {m: 2 * flops for m, flops in small.solo.items()})


def test_a_batch_larger_than_the_data_is_counted_in_full() -> None:
    """40 samples in batches of 64: they are drawn again, as in training."""
    found, small = measured({**BOTH, "batch-size": 64}), measured(BOTH)
    assert found.joint == 4 * small.joint


class Dropping(DPSGD):
    """Draws from the global generator wherever its model trains."""

    name = "dropping"

    def build_model(self) -> Any:
        model = super().build_model()
        model.head_common = nn.Sequential(nn.Dropout(0.5), model.head_common)
        return model


def fresh(method: str) -> Learner:
    if method != "dropping":
        return make_learner({**LABELLERS, "method": method})
    like = make_learner(BOTH)
    return Dropping(like.partition, like.settings, like.options)


def same_state(a: Learner, b: Learner) -> bool:
    one, two = a.state(), b.state()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


METHODS = ["dpsgd", "dsgdm", "dmml-kd", "kd", "idkd", "dropping"]


@pytest.mark.parametrize("method", METHODS)
def test_measuring_leaves_the_learner_as_after_reset(method: str) -> None:
    learner, never_measured = fresh(method), fresh(method)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    measure_work(learner)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_state(learner, never_measured)
    assert learner.server_round == 0 and learner.rejected == []
    modules = learner.blocks() | learner.private_blocks()
    assert all(p.grad is None for module in modules.values() for p in module.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_rounds_after_measuring_are_those_without(method: str) -> None:
    learner, never_measured = fresh(method), fresh(method)
    measure_work(learner)

    def rounds(of: Learner) -> list[Outcome]:
        plans = [Plan(1, 3, evaluate=True, phase="label"), Plan(2, 3, evaluate=True)]
        return [of.run_round(plan, {}) for plan in plans]

    for measured_one, other in zip(rounds(learner), rounds(never_measured), strict=True):
        assert measured_one.metrics == other.metrics
        assert measured_one.payload.keys() == other.payload.keys()
        assert all(torch.equal(v, other.payload[k]) for k, v in measured_one.payload.items())


def test_what_was_counted_does_not_depend_on_the_global_seed() -> None:
    counted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        work._measured.clear()
        counted.append(measured(KD))
    assert counted[0] == counted[1] and counted[0] is not counted[1]
