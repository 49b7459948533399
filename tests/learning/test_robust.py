"""Robust aggregation in a round: of a device by itself and of all together, to the last bit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.learning.crew import Crew
from flwr_dmml.learning.forging import falsified
from flwr_dmml.learning.label_shares import REPORT
from flwr_dmml.learning.learner import Learner
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.payload.routing import cut, wanted

NODES = 6
CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": NODES,
    "topology": "complete",
    "modality-pattern": "audio+image,audio,image,audio+image,audio+image,audio",
    "assume-liars": 1,
}


def learners(**changed: Any) -> dict[int, Learner]:
    return {k: make_learner({**CONFIG, "method": "dpsgd", **changed}, k) for k in range(NODES)}


def plans(own: Mapping[int, Learner], t: int, **changed: Any) -> dict[int, Plan]:
    """Return a round's plans on a complete graph."""
    blocks = {k: set(learner.block_names) for k, learner in own.items()}
    found: dict[int, Plan] = {}
    for k in own:
        near = [n for n in own if n != k]
        weights = {}
        for block in own[k].block_names:
            others = [0.15 if block in blocks[n] else 0.0 for n in near]
            weights[block] = 1 - sum(others), *others
        given: dict[str, Any] = {"neighbours": tuple(near), "weights": weights} if t > 1 else {}
        how = {"evaluate": t == 3, "num_rounds": 4, "recipients": tuple(near), **changed}
        found[k] = Plan(t, 3, **how, **given)
    return found


def by_itself(
    own: Mapping[int, Learner], sent: Mapping[int, Payload], now: Mapping[int, Plan]
) -> dict[int, Outcome]:
    """Run a round as every device does by itself."""
    results: dict[int, Outcome] = {}
    for k, plan in now.items():
        inbox: Inbox = {
            n: cut(sent[n], wanted(plan, position, k, sent[n]))
            for position, n in enumerate(plan.neighbours, start=1)
        }
        results[k] = own[k].run_round(plan, inbox)
    return results


def assert_same(rounds: int = 3, **changed: Any) -> tuple[dict[int, Learner], list[Any]]:
    """Run both ways, and compare all that comes of it; return the devices, and their metrics."""
    alone, together = learners(**changed), learners(**changed)
    crew, sent, metrics = Crew(together), dict[int, Payload](), []
    for t in range(1, rounds + 1):
        phases = alone[0].options.phases(4)
        now = plans(alone, t, phase=phases[t - 1])
        expected = by_itself(alone, sent, now)
        found = crew.run(now)
        sent = {k: outcome.payload for k, outcome in expected.items()}
        for k, outcome in found.items():
            assert isinstance(outcome, Outcome), outcome
            assert outcome.metrics == expected[k].metrics
            assert outcome.rejected == expected[k].rejected
            published = crew.payload(k)
            assert published.keys() == sent[k].keys()
            assert all(torch.equal(published[name], sent[k][name]) for name in published)
        metrics.append({k: outcome.metrics for k, outcome in expected.items()})
    for k in alone:
        mine, theirs = alone[k].state(), together[k].state()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    return alone, metrics


RULES = [
    "ios", "gated-ios", "scclip", "balance", "geometric-median", "nnm+ios", "trimmed-mean",
    "nnm+median",
]  # fmt: skip
"""One of each way to compute, and those with options or a time."""
ROWS = {"trimmed-mean", "nnm+median"}


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    """What the mean leaves of device 0."""
    own, sent = learners(aggregation="mean"), dict[int, Payload]()
    for t in (1, 2, 3):
        sent = {k: o.payload for k, o in by_itself(own, sent, plans(own, t)).items()}
    return own[0].state()


@pytest.mark.parametrize("rule", RULES)
def test_a_round_of_all_is_that_of_each(rule: str, plain: Mapping[str, torch.Tensor]) -> None:
    """A block of audio has four owners, so one of three neighbours may lie."""
    own, metrics = assert_same(**{"aggregation": rule, "gated-ios.gate": 1.0})
    assert own[0].plain == (rule not in ROWS)
    assert any(not torch.equal(own[0].state()[b], plain[b]) for b in own[0].block_names)
    if rule == "ios":
        dropped = {name for m in metrics[1].values() for name in m if name.startswith("dropped.")}
        assert dropped <= {f"dropped.{k}" for k in range(NODES)} and dropped


def test_what_is_dropped_is_told_by_share() -> None:
    """A neighbour that is far in one block of two: the share of that block's numbers."""
    own = learners(aggregation="ios")
    blocks = own[0].block_lengths()
    sent: dict[int, Payload] = {
        k: {name: torch.zeros(length) for name, length in own[k].block_lengths().items()}
        for k in own
    }
    sent[3]["head.common"] += 9
    now = plans(own, 2)[0]
    own[0].load_state({name: torch.zeros(length) for name, length in blocks.items()})
    found = own[0].run_round(now, {n: sent[n] for n in now.neighbours})
    shared = sum(blocks[name] for name in own[3].block_names if name in blocks)
    told = found.metrics["dropped.3"]
    assert told == pytest.approx(blocks["head.common"] / shared)


# ---- liars --------------------------------------------------------------------------------------

LIE = {"attack.devices": "1,4", "attack.kind": "sign-flip"}


def test_two_vectors_of_a_lie_by_hand() -> None:
    """A victim of a sign flip hears - mean, of itself and its honest neighbours, of each block."""
    own = learners(**LIE, aggregation="mean")
    sent: dict[int, Payload] = {
        k: {name: torch.full((n,), float(k)) for name, n in own[k].block_lengths().items()}
        for k in own
    }
    victim = own[0]
    victim.load_state({name: torch.zeros(n) for name, n in victim.block_lengths().items()})
    plan = plans(own, 2)[0]
    inbox = {n: cut(sent[n], wanted(plan, p, 0, sent[n])) for p, n in enumerate(plan.neighbours, 1)}
    before = {n: dict(payload) for n, payload in inbox.items()}
    found = victim.forger.forge(plan, inbox, victim.mixer, victim.memory)
    # head.common: honest 0, 2, 3, 5, mean 2.5; audio: 0, 3, 5; liar 1 has it, liar 4, too
    assert found[1]["head.common"].unique().tolist() == [-2.5]
    assert found[4]["head.common"].unique().tolist() == [-2.5]
    assert found[4]["encoder.audio"].unique().tolist() == pytest.approx([-8 / 3])
    assert all(torch.equal(found[n][k], before[n][k]) for n in (2, 3, 5) for k in before[n])
    assert all(torch.equal(inbox[n][k], before[n][k]) for n in before for k in before[n])
    # 1 - 5 * 0.15 of 0, 0.15 of 2, 3, 5, and of -2.5 twice
    victim.run_round(replace(plan, iterations=0), inbox)
    mixed = victim.state()["head.common"]
    assert mixed.unique().tolist() == pytest.approx([0.15 * (10 - 5)])


def test_a_liar_is_told_the_truth_and_trains() -> None:
    own = learners(**LIE)
    assert [k for k, learner in own.items() if not learner.forger.active] == [1, 4]
    assert not own[0].plain


@pytest.mark.parametrize(
    "changed",
    [
        {"attack.kind": "gaussian", "aggregation": "ios"},
        {"attack.kind": "duplicate", "attack.start": 2, "exchange.precision": "int8"},
        {"attack.kind": "stale", "attack.delay": 1, "aggregation": "trimmed-mean"},
        {"attack.kind": "alie", "method": "dmml-kd", "attack.payload": "forged"},
        {"attack.kind": "dissensus", "gossip": "qg-dsgdm", "aggregation": "robust"},
        {"attack.payload": "forged", "method": "fedproto", "aggregation": "robust"},
        {"attack.payload": "forged", "method": "ccl", "aggregation": "ios"},
        {"attack.kind": "label-flip"},
    ],
    ids=lambda x: " ".join(map(str, x.values())),
)
def test_liars_lie_alike_on_all_engines(changed: dict[str, Any]) -> None:
    own, _ = assert_same(**{**LIE, **changed})
    honest = learners(**{**changed, "attack.kind": "none", "attack.payload": "honest"})
    sent: dict[int, Payload] = {}
    for t in (1, 2, 3):
        sent = {k: o.payload for k, o in by_itself(honest, sent, plans(honest, t)).items()}
    mine, theirs = own[0].state(), honest[0].state()
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs if name in mine)


def test_stale_models_are_those_of_rounds_ago() -> None:
    own = learners(**{**LIE, "attack.kind": "stale", "attack.delay": 2})
    victim, block = own[0], "head.common"
    length = victim.block_lengths()[block]
    heard = []
    for t in range(2, 7):
        plan = Plan(t, 1, neighbours=(1,), weights={block: (0.5, 0.5)})
        inbox = {1: {block: torch.full((length,), float(t))}}
        found = victim.forger.forge(plan, inbox, victim.mixer, victim.memory)
        heard.append(float(found[1][block][0]))
        assert f"memory.heard.1.{block}" in victim.state()  # so that a resumed run goes on
    assert heard == [2, 2, 2, 3, 4]


def test_labels_are_flipped_in_a_liars_data_only() -> None:
    honest, lying = learners(), learners(**{**LIE, "attack.kind": "label-flip"})
    for k in honest:
        mine, theirs = honest[k].train_data.labels, lying[k].train_data.labels
        assert torch.equal(theirs, 9 - mine if k in (1, 4) else mine)
        assert torch.equal(honest[k].test_data.labels, lying[k].test_data.labels)


def test_false_statistics_stay_in_their_range() -> None:
    shares = torch.tensor([[0.75, 0.25, 0.0]], dtype=torch.float16)
    assert falsified("stats.labels.labels", shares).tolist() == [[0, 0.25, 0.75]]
    index = torch.tensor([3], dtype=torch.int32)
    assert falsified("stats.labels.index", index) is index
    assert falsified("stats.label-counts", torch.tensor([3.0, 0, 1])).tolist() == [1000, 0, 3000]
    assert falsified(REPORT, torch.tensor([3.0, 0, 1, 2])).tolist() == [1000, 0, 3000, 2]
    assert falsified("stats.x", torch.tensor([2.0, -1])).tolist() == [-2, 1]
    assert float(falsified("stats.y", torch.tensor([5e4]))) == 1e6


def test_what_the_last_mixing_made_survives_a_restart() -> None:
    """``robust`` compares copies with the progress since then: a resumed device still can."""
    own, sent = learners(aggregation="robust"), dict[int, Payload]()
    for t in (1, 2):
        sent = {k: o.payload for k, o in by_itself(own, sent, plans(own, t)).items()}
    again = learners(aggregation="robust")
    for k, learner in again.items():
        learner.load_state(own[k].state())
        kept = own[k].mixer.mixed
        assert kept.keys() == set(learner.block_names) == learner.mixer.mixed.keys()
        assert all(torch.equal(kept[block], learner.mixer.mixed[block]) for block in kept)
    ends = [by_itself(learner, sent, plans(own, 3)) for learner in (own, again)]
    for k in own:
        assert all(torch.equal(x, ends[1][k].payload[b]) for b, x in ends[0][k].payload.items())
