"""The base learner and its plain variants."""

import pytest
import torch
from helpers import FAST, make_learner
from torch import nn

from flwr_dmml.blocks import flatten
from flwr_dmml.clients import DPSGD, Learner, NonFiniteModelError, find_methods
from flwr_dmml.clients.optimisers import make_optimizer, optimizer_tensors
from flwr_dmml.plan import Plan

CONFIG = {**FAST, "num-nodes": 3, "method": "dpsgd"}


def _vectors(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: flatten(module) for name, module in learner.blocks().items()}


def test_same_seed_same_round_bit_for_bit():
    a, b = (make_learner(CONFIG, 2).run_round(Plan(1, 3), {}) for _ in range(2))
    assert a.metrics == b.metrics
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)


def test_another_seed_round_or_node_draws_other_batches():
    def labels(config, node, server_round):
        learner = make_learner(config, node)
        learner.server_round = server_round
        return torch.cat([batch.inputs["audio"].flatten() for batch in learner.batches(2)])

    config = {**CONFIG, "modality-pattern": "audio"}
    base = labels(config, 0, 1)
    for other in (labels({**config, "seed": 1}, 0, 1), labels(config, 1, 1), labels(config, 0, 2)):
        assert not torch.equal(base, other)


def test_batches_are_reshuffled_passes_over_the_samples():
    """36 training samples, batches of 16: the first 36 drawn are a permutation of all."""
    learner = make_learner(CONFIG)
    n = len(learner.train_data)
    drawn = torch.cat([batch.inputs["audio"].flatten(1) for batch in learner.batches(5)])
    assert len(drawn) == 5 * 16
    once = {tuple(row[:50].tolist()) for row in drawn[:n]}
    assert len(once) == n


def test_nodes_start_from_equal_copies_of_what_they_share():
    audio, both = make_learner(CONFIG, 0), make_learner(CONFIG, 2)
    shared = set(audio.blocks()) & set(both.blocks())
    assert shared == {"head.common", "encoder.audio", "head.audio"}
    assert all(torch.equal(_vectors(audio)[b], _vectors(both)[b]) for b in shared)


def test_a_round_continues_from_the_state_as_if_never_interrupted():
    """DSGDm keeps its momentum: state -> a fresh learner -> the same second round."""
    config = {**CONFIG, "method": "dsgdm"}
    one, two = make_learner(config), make_learner(config)
    one.run_round(Plan(1, 3), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    a, b = one.run_round(Plan(2, 3), {}), two.run_round(Plan(2, 3), {})
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)


def test_dsgdm_keeps_momentum_and_dpsgd_does_not():
    """From the same state the second round differs by the kept momentum only."""
    plain, kept = make_learner(CONFIG), make_learner({**CONFIG, "method": "dsgdm"})
    first = [x.run_round(Plan(1, 3), {}).payload["head.common"] for x in (plain, kept)]
    assert torch.equal(*first)
    second = [x.run_round(Plan(2, 3), {}).payload["head.common"] for x in (plain, kept)]
    assert not torch.equal(*second)
    assert not plain.optimizer_state and kept.optimizer_state


@pytest.mark.parametrize("family", ["sgd", "adam", "adamw"])
def test_optimiser_state_survives_as_tensors(family):
    """Two steps in one go equal one step, state out, state in, one step."""
    from flwr_dmml.config import Settings

    settings = Settings(optimizer=family)

    def step(weights: nn.Parameter, state):
        optimizer = make_optimizer(settings, [weights], 0.1, state)
        weights.grad = 2 * weights.detach()
        optimizer.step()
        return optimizer_tensors(optimizer)

    interrupted = nn.Parameter(torch.tensor([1.0, -2.0]))
    state = step(interrupted, {})
    assert state and all(isinstance(value, torch.Tensor) for value in state.values())
    step(interrupted, state)

    straight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(settings, [straight], 0.1, {})
    for _ in range(2):
        straight.grad = 2 * straight.detach()
        optimizer.step()
    assert torch.equal(interrupted, straight)


def test_closing_round_mixes_and_evaluates_but_does_not_train():
    learner = make_learner(CONFIG, 2)
    before = _vectors(learner)
    other = {name: torch.zeros_like(vector) for name, vector in before.items()}
    weights = dict.fromkeys(before, (0.75, 0.25))
    plan = Plan(2, 0, evaluate=True, neighbours=(1,), weights=weights)
    outcome = learner.run_round(plan, {1: other})
    assert outcome.payload == {} and "train.loss" not in outcome.metrics
    after = _vectors(learner)
    assert all(torch.allclose(after[b], 0.75 * before[b]) for b in before)
    # sum_j w_kj ||x_k - x_j||^2 with x_j = 0
    expected = sum(0.25 * float((v.double() ** 2).sum()) for v in before.values())
    assert outcome.metrics["mix.disagreement"] == pytest.approx(expected)
    assert set(outcome.metrics) >= {
        "test.accuracy",
        "test.accuracy.audio",
        "test.accuracy.image",
        "validation.accuracy",
    }


def test_accuracy_from_one_modality_is_that_of_the_other_one_missing():
    learner = make_learner(CONFIG, 2)
    learner.run_round(Plan(1, 20), {})
    metrics = learner.evaluate()
    with torch.no_grad():
        logits = learner.model({"image": learner.test_data.inputs["image"]})
    right = (logits.argmax(dim=1) == learner.test_data.labels).float().mean()
    assert metrics["test.accuracy.image"] == pytest.approx(float(right))


def test_training_that_diverges_publishes_nothing_and_says_so():
    learner = make_learner({**CONFIG, "learning-rate": 1e30, "clip-norm": 0.0})
    with pytest.raises(NonFiniteModelError, match=r"round 1.*NaN.*learning-rate"):
        learner.run_round(Plan(1, 10), {})


def test_global_random_state_is_untouched():
    learner = make_learner(CONFIG)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    learner.run_round(Plan(1, 2, evaluate=True), {})
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_of_a_users_model_is_seeded_too():
    class Dropping(DPSGD):
        def build_model(self):
            model = super().build_model()
            model.head_common = nn.Sequential(nn.Dropout(0.5), model.head_common)
            return model

    def run():
        like = make_learner(CONFIG)
        learner = Dropping(like.partition, like.settings, like.options)
        return learner.run_round(Plan(1, 2), {}).payload["head.common"]

    torch.manual_seed(1)
    a = run()
    torch.manual_seed(2)
    assert torch.equal(a, run())


def test_a_users_own_layers_start_equal_on_every_device_and_in_every_process():
    class Deeper(DPSGD):
        def build_model(self):
            model = super().build_model()
            model.head_common = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
            return model

    def head(node: int) -> torch.Tensor:
        like = make_learner(CONFIG, node)
        return flatten(Deeper(like.partition, like.settings, like.options).model.head_common)

    torch.manual_seed(1)
    first = head(0)
    torch.manual_seed(2)
    assert torch.equal(first, head(0)) and torch.equal(first, head(2))


def test_a_model_with_running_statistics_is_refused():
    class Normed(DPSGD):
        def build_model(self):
            model = super().build_model()
            model.head_common = nn.Sequential(nn.BatchNorm1d(32), model.head_common)
            return model

    like = make_learner(CONFIG)
    with pytest.raises(ValueError, match=r"head\.common.*running_mean.*GroupNorm"):
        Normed(like.partition, like.settings, like.options)


def test_registry_finds_the_methods_and_refuses_clashes():
    assert set(find_methods()) >= {"local", "dpsgd", "dsgdm", "dmml-kd"}

    class Other(DPSGD):
        pass  # still named "dpsgd"

    with pytest.raises(ValueError, match="two methods are named 'dpsgd'"):
        find_methods([Other])

    class Nameless(Learner):
        pass

    with pytest.raises(ValueError, match=r"Nameless\.name must be set"):
        find_methods([Nameless])


def test_a_trained_parameter_that_no_block_holds_is_refused():
    """It would live on in one process's memory and be lost in another's."""

    class Forgetful(DPSGD):
        def blocks(self):
            return {k: v for k, v in super().blocks().items() if k != "head.common"}

    like = make_learner(CONFIG)
    with pytest.raises(ValueError, match=r"head_common\.weight.*private_blocks"):
        Forgetful(like.partition, like.settings, like.options)

    class Private(Forgetful):
        def private_blocks(self):
            return {"head.common": self.model.head_common}

    learner = Private(like.partition, like.settings, like.options)
    assert "head.common" not in learner.run_round(Plan(1, 1), {}).payload
    assert "head.common" in learner.state()


def test_clipping_bounds_every_step():
    """Without momentum a step is at most learning rate times clip norm long."""
    config = {**CONFIG, "momentum": 0.0, "learning-rate": 0.1, "clip-norm": 1e-3}
    learner = make_learner(config)
    before = torch.cat([*_vectors(learner).values()])
    learner.run_round(Plan(1, 3), {})
    moved = torch.cat([*_vectors(learner).values()]) - before
    assert 0 < float(moved.norm()) <= 3 * 0.1 * 1e-3 * 1.001


def test_the_schedule_scales_the_step():
    """Round 9 of 10 under "step" has a tenth of the learning rate of round 9 of 100."""
    config = {**CONFIG, "momentum": 0.0, "lr-schedule": "step", "learning-rate": 0.01}
    moved = []
    for rounds in (10, 100):
        learner = make_learner(config)
        before = _vectors(learner)["head.common"]
        learner.run_round(Plan(9, 1, num_rounds=rounds), {})
        moved.append(_vectors(learner)["head.common"] - before)
    assert torch.allclose(moved[0] * 10, moved[1], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("family", ["sgd", "adam", "adamw"])
def test_weight_decay_pulls_parameters_to_zero(family):
    from flwr_dmml.config import Settings

    settings = Settings(optimizer=family, weight_decay=0.5, momentum=0.0)
    weights = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer(settings, [weights], 0.1, {})
    weights.grad = torch.zeros(1)
    optimizer.step()
    decayed = float(weights.detach())
    assert 0 < decayed < 1
    if family == "sgd":
        assert decayed == pytest.approx(1 - 0.1 * 0.5)


def test_a_node_that_mixes_with_nobody_reports_no_disagreement():
    assert "mix.disagreement" not in make_learner(CONFIG).run_round(Plan(1, 1), {}).metrics
