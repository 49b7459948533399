"""DMML-KD: its ingredients, their switches, and that they do what they are for."""

from typing import Any

import pytest
import torch
from helpers import FAST, PLAIN, make_learner
from torch.nn import functional as F

from flwr_dmml.clients import Batch, DmmlKd, NonFiniteModelError
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.losses import latent_distillation_loss, orthogonality_loss, similarity_loss
from flwr_dmml.payload.blocks import STATISTICS, flatten
from flwr_dmml.payload.plan import Plan

KIND = {"method": "dmml-kd", "modality-pattern": "audio+image"}
CONFIG: dict[str, Any] = {**FAST, **PLAIN, "num-nodes": 3, **KIND}
COUNTS = STATISTICS + "label-counts"


def _learner(node: int = 0, **options: object) -> DmmlKd:
    extra = {f"dmml-kd.{k.replace('_', '-')}": v for k, v in options.items()}
    learner = make_learner({**CONFIG, **extra}, node)
    assert isinstance(learner, DmmlKd)
    return learner


def _batch(learner: DmmlKd) -> Batch:
    samples = learner.train_data.subset(torch.arange(8))
    return Batch(dict(samples.inputs), samples.labels)


def test_loss_is_the_weighted_sum_of_its_terms():
    """Round 1 has no generator terms: L_task + l_com L_com + l_orth L_orth + l_sim L_sim."""
    weights = {"common_weight": 0.7, "orthogonality_weight": 0.2, "similarity_weight": 0.4}
    learner = _learner(**weights)
    learner.server_round = 1
    learner.before_training(Plan(1, 1), {})
    batch = _batch(learner)
    f = learner.model.encode(batch.inputs)
    expected = F.cross_entropy(learner.model.fuse(f), batch.labels)
    for m in ("audio", "image"):
        logits = learner.model.common_logits(f.common[m])
        expected = expected + 0.7 / 2 * F.cross_entropy(logits, batch.labels)
        expected = expected + 0.2 / 2 * orthogonality_loss(f.common[m], f.specific[m])
    expected = expected + 0.4 * similarity_loss(list(f.common.values()))
    assert torch.allclose(learner.loss_of(batch), expected, atol=1e-6)


def test_guidance_starts_in_round_two_and_decays():
    """B_t = b0 * decay^(t - 2): 3, 1.5 and 0.75 in rounds 2, 3 and 4."""
    learner = _learner(guidance=3.0, guidance_decay=0.5)
    found = []
    for t in (1, 2, 3, 4):
        learner.server_round = t
        learner.before_training(Plan(t, 1), {})
        found.append(learner._guidance)
    assert found == [0.0, 3.0, 1.5, 0.75]


def test_guidance_adds_both_generator_terms():
    """Recompute L_gen + mean_m L_kd with the generator's own random stream."""
    learner = _learner(decomposition=False)
    learner.server_round = 2
    learner.before_training(Plan(2, 1), {})
    batch = _batch(learner)
    loss = learner.loss_of(batch)

    learner.before_training(Plan(2, 1), {})  # the same random stream once more
    model, rng = learner.model, learner._rng
    f = model.encode(batch.inputs)
    drawn = torch.multinomial(learner._near, 8, replacement=True, generator=rng)
    generated = learner.generator(drawn, learner.generator.noise(8, rng))
    expected = F.cross_entropy(model.fuse(f), batch.labels)
    expected = expected + F.cross_entropy(model.common_logits(generated), drawn)
    noise = learner.generator.noise(8, rng)
    teacher = model.common_logits(learner.generator(batch.labels, noise))
    for m in ("audio", "image"):
        student = model.common_logits(f.common[m])
        expected = expected + latent_distillation_loss(student, teacher) / 2
    assert torch.allclose(loss, expected, atol=1e-6)


def test_training_the_model_leaves_the_generator_alone():
    learner = _learner()
    learner.server_round = 2
    learner.before_training(Plan(2, 1), {})
    learner.loss_of(_batch(learner)).backward()
    assert all(p.grad is None for p in learner.generator.parameters())
    assert learner.model.head_common.weight.grad is not None


def test_each_ingredient_can_be_switched_off():
    full = _learner()
    assert "generator" in full.blocks() and COUNTS in full.run_round(Plan(1, 1), {}).payload

    private = _learner(label_counts=False)
    assert COUNTS not in private.run_round(Plan(1, 1), {}).payload

    without = _learner(generator=False, distillation=False)
    payload = without.run_round(Plan(2, 1), {}).payload
    assert set(payload) == set(without.model.blocks()) | {SPEEDS}

    plain = _learner(generator=False, distillation=False, decomposition=False)
    plain.server_round = 5
    plain.before_training(Plan(5, 1), {})
    batch = _batch(plain)
    expected = F.cross_entropy(plain.model(batch.inputs), batch.labels)
    assert torch.equal(plain.loss_of(batch), expected)


def test_a_generator_that_is_not_gossiped_stays_at_home_and_is_kept():
    learner = _learner(generator_gossip=False)
    outcome = learner.run_round(Plan(1, 1), {})
    assert "generator" not in outcome.payload
    state = {name: value.clone() for name, value in learner.state().items()}
    fresh = _learner(generator_gossip=False)
    assert not torch.equal(flatten(fresh.generator), state["generator"])
    fresh.load_state(state)
    assert torch.equal(flatten(fresh.generator), state["generator"])


def test_neighbours_vote_by_label_counts_and_mixing_weight():
    """omega_j(y) = w_j n_j(y) / sum_i w_i n_i(y); labels nobody near holds are not drawn.

    Own counts: 4 of class 0, 6 of class 1, w = 1/2. Neighbour: 2 of class 1, 8 of class 2, w = 1/4.
    Class 1: own 3, neighbour 0.5, so the own head has 6/7 of the vote. Classes 0 and 2 have one
    voter each. r = (2, 3.5, 2) / 7.5.
    """
    learner = _learner()
    learner.counts = torch.zeros(10)
    learner.counts[:2] = torch.tensor([4.0, 6.0])
    theirs = torch.zeros(10)
    theirs[1:3] = torch.tensor([2.0, 8.0])
    payload = {"head.common": flatten(learner.model.head_common), COUNTS: theirs}
    plan = Plan(2, 1, neighbours=(1,), weights={"head.common": (0.5, 0.25)})
    learner.before_training(plan, {1: payload})
    expected = torch.tensor([[1.0, 6 / 7, 0.0], [0.0, 1 / 7, 1.0]])
    assert torch.allclose(learner._omega[:, :3], expected, atol=1e-6)
    assert torch.allclose(learner._near[:3], torch.tensor([2.0, 3.5, 2.0]) / 7.5)
    assert float(learner._near[3:].sum()) == 0


def test_private_counts_make_every_vote_count_by_mixing_weight_alone():
    learner = _learner(label_counts=False)
    payload = {"head.common": flatten(learner.model.head_common)}
    plan = Plan(2, 1, neighbours=(1,), weights={"head.common": (0.75, 0.25)})
    learner.before_training(plan, {1: payload})
    assert torch.allclose(learner._omega, torch.tensor([[0.75], [0.25]]).expand(2, 10))
    assert torch.allclose(learner._near, torch.full((10,), 0.1))


@pytest.mark.parametrize(
    "bad",
    [
        {"head.common": torch.full((330,), float("nan"))},
        {"head.common": torch.zeros(7)},
        {},
        {"head.common": torch.zeros(330), COUNTS: torch.full((10,), -1.0)},
        {"head.common": torch.zeros(330), COUNTS: torch.zeros(3)},
    ],
)
def test_a_neighbour_that_sends_rubbish_has_no_vote(bad):
    learner = _learner()
    plan = Plan(2, 1, neighbours=(1,), weights={"head.common": (0.5, 0.5)})
    learner.before_training(plan, {1: bad})
    assert learner._omega.shape[0] == 1 and learner._heads == []


def test_generator_learns_what_the_heads_know():
    """Rounds on one device: its head recognises the generated features of the classes it holds."""
    config = {**CONFIG, "samples-per-node": 100, "alpha": 100.0, "dmml-kd.generator-lr": 3e-3}
    learner = make_learner(config)
    assert isinstance(learner, DmmlKd)
    for t in range(1, 9):
        learner.run_round(Plan(t, 20), {})
    held = torch.nonzero(learner.counts).flatten().repeat_interleave(20)
    noise = learner.generator.noise(len(held), torch.Generator().manual_seed(0))
    with torch.no_grad():
        generated = learner.generator(held, noise)
        right = (learner.model.common_logits(generated).argmax(dim=1) == held).float().mean()
    assert float(right) > 0.9
    assert float(generated[:20].std(dim=0).mean()) > 0, "noise must matter"


def test_orthogonality_lowers_the_correlation_of_common_and_specific():
    """Mean |corr(c, s)| over test samples after 6 rounds, with the loss against without it."""

    def correlation(weight: float) -> float:
        alone = {"generator": False, "distillation": False}
        learner = _learner(orthogonality_weight=weight, **alone)
        for t in range(1, 7):
            learner.run_round(Plan(t, 20), {})
        with torch.no_grad():
            f = learner.model.encode(learner.test_data.inputs)
        both = torch.cat([f.common["image"], f.specific["image"]], dim=1)
        return float(torch.corrcoef(both.T)[:32, 32:].abs().mean())

    assert correlation(3.0) < 0.8 * correlation(0.0)


def _taught_by(learner: DmmlKd, own: list[int], theirs: list[int], head: torch.Tensor) -> None:
    """Train the generator in a round in which a neighbour with ``head`` holds ``theirs``."""
    learner.counts = torch.zeros(10).index_fill(0, torch.tensor(own), 5.0)
    known = torch.zeros(10).index_fill(0, torch.tensor(theirs), 5.0)
    plan = Plan(2, 1, neighbours=(1,), weights={"head.common": (0.5, 0.5)})
    inbox = {1: {"head.common": head, COUNTS: known}}
    learner.server_round = 2
    learner.before_training(plan, inbox)
    learner.after_training(plan, inbox)


def test_the_neighbours_heads_teach_the_generator_what_they_know():
    """Class 0 is the own head's, the others a neighbour's: G(y) must suit whoever knows y."""
    learner = _learner(generator_steps=400, generator_lr=1e-2, diversity_weight=0.0)
    rng = torch.Generator().manual_seed(5)
    theirs = torch.randn(330, generator=rng)
    _taught_by(learner, [0], list(range(1, 10)), theirs)
    labels = torch.arange(1, 10).repeat_interleave(10)
    with torch.no_grad():
        features = learner.generator(labels, learner.generator.noise(90, rng))
        weight, bias = theirs[:320].view(10, 32), theirs[320:]
        by_them = ((features @ weight.T + bias).argmax(dim=1) == labels).float().mean()
        by_me = (learner.model.common_logits(features).argmax(dim=1) == labels).float().mean()
    assert float(by_them) > 0.9 > float(by_me)


def test_the_generator_is_asked_for_labels_that_somebody_near_holds():
    learner = _learner(generator_steps=5)
    asked: set[int] = set()
    learner.generator.register_forward_pre_hook(
        lambda _, inputs: asked.update(inputs[0].flatten().tolist())
    )
    _taught_by(learner, [3], [7], flatten(learner.model.head_common))
    assert asked == {3, 7}


def test_bad_label_counts_are_named():
    learner = _learner()
    head = flatten(learner.model.head_common)
    plan = Plan(2, 1, neighbours=(1,), weights={"head.common": (0.5, 0.5)})
    for bad, words in ((torch.full((10,), -1.0), "negative"), (torch.full((10,), 3e38), "beyond")):
        outcome = learner.run_round(plan, {1: {"head.common": head, COUNTS: bad}})
        (line,) = [x for x in outcome.rejected if "label-counts" in x]
        assert line.startswith("1: ") and words in line


def test_a_private_generator_that_diverges_is_noticed_at_once():
    learner = _learner(generator_gossip=False, generator_lr=1e30, generator_steps=30)
    with pytest.raises(NonFiniteModelError, match="generator"):
        learner.run_round(Plan(1, 1), {})
