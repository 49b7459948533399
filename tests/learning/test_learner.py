"""The base learner and its plain variants."""

import pytest
import torch
from helpers import FAST, PLAIN, make_learner, run_peers
from torch import nn
from torch.nn import functional as F

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.clients import DPSGD, Batch, Learner, NonFiniteModelError, find_methods
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.models import IMAGE_ENCODERS
from flwr_dmml.payload.blocks import flatten, num_parameters
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import OwnParts, find_parts, parse_settings

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


def test_a_node_that_mixes_with_nobody_reports_no_disagreement():
    assert "mix.disagreement" not in make_learner(CONFIG).run_round(Plan(1, 1), {}).metrics


# The modalities' own loss

BOTH = {**CONFIG, "modality-pattern": "audio+image"}


def _batch(learner: Learner) -> Batch:
    samples = learner.train_data.subset(torch.arange(8))
    return Batch(dict(samples.inputs), samples.labels)


def _loss(config, *modalities: str) -> float:
    """Return the loss of a fresh device on 8 samples, of all modalities or of these alone."""
    learner = make_learner(config)
    learner.server_round = 1
    learner.before_training(Plan(1, 1), {})
    batch = _batch(learner)
    return learner.local_loss(batch.only(modalities or batch.inputs)).item()


@torch.no_grad()
def _own_losses() -> dict[str, float]:
    """Return each modality's own cross-entropy there: -log softmax of the label, over samples."""
    learner = make_learner(BOTH)
    batch = _batch(learner)
    rows = torch.arange(8)
    losses = {}
    for m, x in batch.inputs.items():
        probabilities = torch.softmax(learner.model({m: x}), dim=1)[rows, batch.labels]
        losses[m] = -float(probabilities.log().mean())
    return losses


def test_the_modality_loss_by_hand():
    """CE(fused) + 0.7 (CE(audio alone) + CE(image alone))."""
    learner, own = make_learner(BOTH), _own_losses()
    batch = _batch(learner)
    fused = F.cross_entropy(learner.model(batch.inputs), batch.labels).item()
    assert set(own) == {"audio", "image"}
    assert _loss(BOTH) == pytest.approx(fused, abs=1e-6)
    expected = fused + 0.7 * (own["audio"] + own["image"])
    assert _loss({**BOTH, "modality-loss": 0.7}) == pytest.approx(expected, abs=1e-5)


def test_dmml_kd_has_the_same_modality_loss_on_top_of_its_own_terms():
    config, own = {**BOTH, **PLAIN, "method": "dmml-kd"}, _own_losses()
    added = _loss({**config, "modality-loss": 0.7}) - _loss(config)
    assert added == pytest.approx(0.7 * (own["audio"] + own["image"]), abs=1e-5)


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd"])
@pytest.mark.parametrize("modality", ["audio", "image"])
def test_a_solo_iteration_has_no_modality_loss(method, modality):
    """It is the modality's own loss already."""
    config = {**BOTH, "method": method}
    assert _loss({**config, "modality-loss": 0.7}, modality) == _loss(config, modality)


@pytest.mark.parametrize(
    "config", [{**BOTH, "stagger": 1.0}, {**CONFIG, "modality-pattern": "audio"}]
)
def test_without_joint_iterations_the_modality_loss_changes_no_round(config):
    """All staggered, or one modality only: the same bits."""
    a, b = (
        make_learner({**config, "modality-loss": loss}).run_round(Plan(1, 4), {})
        for loss in (0.0, 0.7)
    )
    assert a.metrics == b.metrics
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)


def test_the_modality_loss_trains_every_block_in_joint_iterations():
    a, b = (
        make_learner({**BOTH, "modality-loss": loss}).run_round(Plan(1, 4), {}).payload
        for loss in (0.0, 0.7)
    )
    assert all(not torch.equal(a[name], b[name]) for name in make_learner(BOTH).blocks())


# Speeds of the neighbourhood


def _hear(inbox, *, plan: Plan | None = None, node: int = 0):
    """Run round 1 of a device of CONFIG (0 has audio, 1 image, 2 both), with these payloads."""
    plan = plan or Plan(1, 3, neighbours=tuple(inbox))
    return make_learner(CONFIG, node).run_round(plan, inbox)


def test_speeds_travel_in_the_order_of_the_data_set():
    """Audio, image; 0 for what a device does not own."""
    assert SPEEDS == "stats.speeds"
    for node, owned in ((0, {"audio"}), (1, {"image"}), (2, {"audio", "image"})):
        outcome = _hear({}, node=node)
        speeds = [outcome.metrics.get(f"speed.{m}", 0.0) for m in ("audio", "image")]
        assert outcome.payload["stats.speeds"].tolist() == pytest.approx(speeds)
        assert {m for m in ("audio", "image") if f"speed.{m}" in outcome.metrics} == owned


def test_near_is_the_mean_over_a_device_and_its_neighbours():
    """Audio: own speed v, 3 and one unset: (v + 3) / 2. Image: 4 and 5, not owned here: 4.5."""
    inbox = {1: {SPEEDS: torch.tensor([0.0, 4.0])}, 2: {SPEEDS: torch.tensor([3.0, 5.0])}}
    outcome = _hear(inbox)
    own = outcome.metrics["speed.audio"]
    assert outcome.metrics["near.audio"] == pytest.approx((own + 3) / 2)
    assert outcome.metrics["near.image"] == pytest.approx(4.5)
    assert outcome.rejected == []


def test_without_neighbours_near_is_the_own_speed():
    metrics = _hear({}).metrics
    assert metrics["near.audio"] == pytest.approx(metrics["speed.audio"])
    assert "near.image" not in metrics


def test_what_a_device_publishes_is_what_its_neighbour_hears():
    """Device 2 has both: device 0 learns how fast the image trains, that it does not have."""
    published, seen = _hear({}, node=2), {}
    outcome = _hear({2: published.payload})
    for m in ("audio", "image"):
        speeds = [
            o.metrics[f"speed.{m}"] for o in (published, outcome) if f"speed.{m}" in o.metrics
        ]
        seen[f"near.{m}"] = sum(speeds) / len(speeds)
    assert {name: outcome.metrics[name] for name in seen} == pytest.approx(seen)


def test_a_parked_device_hears_its_neighbours_and_reports_what_it_knew():
    learner = make_learner(CONFIG)
    first = learner.run_round(Plan(1, 3), {})
    plan = Plan(2, 3, neighbours=(2,), by_modality={"audio": 0})
    outcome = learner.run_round(plan, {2: {SPEEDS: torch.tensor([3.0, 5.0])}})
    own = first.metrics["speed.audio"]
    assert "speed.audio" not in outcome.metrics
    assert outcome.metrics["near.audio"] == pytest.approx((own + 3) / 2)
    assert outcome.metrics["near.image"] == pytest.approx(5)
    assert torch.equal(outcome.payload[SPEEDS], first.payload[SPEEDS])


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (torch.tensor([3.0]), "has shape (1,) instead of (2,)"),
        (torch.tensor([3.0, 5.0, 1.0]), "has shape (3,) instead of (2,)"),
        (torch.tensor([[3.0, 5.0]]), "has shape (1, 2) instead of (2,)"),
        (torch.tensor([3.0, float("nan")]), "holds NaN or infinite values"),
        (torch.tensor([float("inf"), 5.0]), "holds NaN or infinite values"),
        (torch.tensor([3.0, 1e7]), "holds values beyond 1e+06"),
        (torch.tensor([3.0, 5.0], dtype=torch.float64), "has type torch.float64"),
    ],
)
def test_a_bad_speed_report_is_named_and_ignored(report, problem):
    """As a whole, also its good entries; the other neighbour's counts."""
    outcome = _hear({1: {SPEEDS: report}, 2: {SPEEDS: torch.tensor([2.0, 7.0])}})
    (rejected,) = outcome.rejected
    assert rejected.startswith(f"1: stats.speeds {problem}")
    assert outcome.metrics["near.audio"] == pytest.approx((outcome.metrics["speed.audio"] + 2) / 2)
    assert outcome.metrics["near.image"] == pytest.approx(7)
    alone = _hear({})
    assert outcome.metrics["train.loss"] == alone.metrics["train.loss"]
    assert all(torch.equal(outcome.payload[name], v) for name, v in alone.payload.items())


def test_a_neighbour_that_reports_no_speeds_is_no_problem():
    outcome = _hear({1: {}, 2: {SPEEDS: torch.tensor([-3.0, 0.0])}})
    assert outcome.rejected == []
    assert outcome.metrics["near.audio"] == pytest.approx(outcome.metrics["speed.audio"])
    assert "near.image" not in outcome.metrics


@pytest.mark.parametrize("name", ["conv", "conv3", "mlp", "resnet20"])
def test_the_image_encoder_is_the_one_of_the_setting(name: str):
    """On 8x8 digits with 64 features; the audio encoder stays as it is."""
    learner = make_learner({**FAST, "method": "dpsgd", "image-encoder": name}, 2)
    plain = make_learner({**FAST, "method": "dpsgd"}, 2)
    lengths, before = learner.block_lengths(), plain.block_lengths()
    assert lengths["encoder.audio"] == before["encoder.audio"]
    expected = num_parameters(IMAGE_ENCODERS[name]((1, 8, 8), 64))
    assert lengths["encoder.image"] == expected > 0
    assert (expected == before["encoder.image"]) == (name == "conv")
    outcome = learner.run_round(Plan(1, 1), {})
    assert set(outcome.payload) >= {"encoder.image"} and outcome.metrics["train.loss"] > 0


# A format of its own, numbers of its own, a plain module


class Sparse(DPSGD):
    """Sends the first ten numbers of each block, and mixes them."""

    name = "sparse"
    own_format = True

    def outgoing(self, plan, inbox, blocks):
        return {name: vector[:10].clone() for name, vector in blocks.items()}

    def mix(self, plan, inbox):
        self.measured["sparse.heard"] = float(len(inbox))
        for payload in inbox.values():
            for name in self.blocks():
                self.flat.vector[self.flat.slices[name]][:10].add_(payload[name]).div_(2)
        return 0.0, []


class Silent(Sparse):
    """Does so without saying it."""

    name = "silent"
    own_format = False


def test_a_format_of_its_own_has_to_be_declared():
    like = make_learner(CONFIG)
    with pytest.raises(MethodError, match=r"'silent': outgoing\(\) changes.*own_format = True"):
        Silent(like.partition, like.settings, like.options).run_round(Plan(1, 1), {})


@pytest.mark.parametrize("how", [{"exchange.precision": "int8"}, {"exchange.top-k": 0.1}])
def test_a_format_of_its_own_is_not_compressed(how):
    parts = find_parts(OwnParts((Sparse,)))
    with pytest.raises(
        SettingsError, match=r"exchange\.precision.*'sparse' writes blocks in a for"
    ):
        parse_settings({"method": "sparse", **how}, parts)
    with pytest.raises(SettingsError, match=r"gossip = 'qg-dsgdm': the method 'sparse' writes"):
        parse_settings({"method": "sparse", "gossip": "qg-dsgdm"}, parts)


def test_a_format_of_its_own_is_heard_billed_and_its_numbers_are_recorded():
    """From round 1 on the bits are those of ten numbers a block, as is what is sent."""
    config = {**CONFIG, "method": "sparse", "modality-pattern": "audio"}
    peers = run_peers(config, Sparse, num_rounds=3)
    assert not any(record.failed for record in peers.records)
    planned = [record.total_bits for record in peers.records]
    assert planned[0] == pytest.approx(planned[1] - planned[0])
    blocks = make_learner({**CONFIG, "modality-pattern": "audio"}).blocks()
    sent = 8 * 3 * (len(blocks) * (128 + 40) + 128 + 8)  # each with a header; two speeds
    assert planned[0] == sent
    assert [record.own for record in peers.records] == [
        {"sparse.heard": 0.0},
        {"sparse.heard": 2.0},
        {"sparse.heard": 2.0},
    ]
    assert peers.records[1].to_json()["nodes"][0]["own"] == {"sparse.heard": 2.0}


class Net(nn.Module):
    """A network that knows nothing of blocks and encoders."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs):
        return torch.stack([self.layer(x.flatten(1)) for x in inputs.values()]).mean(dim=0)


class OnANet(Learner):
    name = "on-a-net"

    def build_model(self):
        return Net()


def test_a_plain_module_is_one_block_and_learns():
    config = {**CONFIG, "method": "on-a-net", "modality-pattern": "image", "local-iterations": 20}
    peers = run_peers({**config, "modality-loss": 0.5}, OnANet, num_rounds=4, evaluate_every=1)
    first, *_, last = peers.records
    assert not any(r.failed for r in peers.records) and last.accuracy > first.accuracy
    assert last.nodes[0].speed == {} and last.nodes[0].accuracy_by_modality["image"] > 0.2
    assert {m.blocks["model"] for m in peers.roster.members.values()} == {650}
