"""Robust aggregation in a round: of a device by itself and of all together, to the last bit."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.learning.crew import Crew
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
