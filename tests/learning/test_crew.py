"""A crew, all devices of a process: every device gets what it gets by itself, to the last bit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.clients import find_methods
from flwr_dmml.data import load_partition
from flwr_dmml.learning import training
from flwr_dmml.learning.batch import Batch, pooled
from flwr_dmml.learning.crew import Crew
from flwr_dmml.learning.learner import Learner
from flwr_dmml.learning.nonfinite import NonFiniteModelError
from flwr_dmml.methods.presets import DPSGD
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.settings import OwnParts, find_parts, parse_settings

NODES = 4
CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": NODES,
    "modality-pattern": "audio+image,audio,image,audio+image",
}


STAGGERED = {"stagger": 0.5}
NEW_RULES = "k-gt", "mt", "d2", "gut", "qg-gutm", "decentlam"
NEEDS: dict[str, dict[str, Any]] = {
    "harmony": {"num-server-rounds": 4},
    "modality-mirror": {"num-server-rounds": 4},
    "relaysgd": {"topology": "line"},
}
"""What methods ask of a run."""


def learners(method: str, **changed: Any) -> dict[int, Learner]:
    config = {**CONFIG, "method": method, **changed}
    return {k: make_learner(config, k) for k in range(NODES)}


def plans(own: Mapping[int, Learner], t: int, gone: int = -1, **changed: Any) -> dict[int, Plan]:
    """Return a round's plans on a ring; device ``gone`` is not there."""
    blocks = {k: set(learner.block_names) for k, learner in own.items()}
    found: dict[int, Plan] = {}
    for k in own:
        if k == gone:
            continue
        near = [n for n in sorted({(k - 1) % NODES, (k + 1) % NODES}) if n != gone]
        weights = {}
        for block in own[k].block_names:
            others = [0.3 if block in blocks[n] else 0.0 for n in near]
            weights[block] = 1 - sum(others), *others
        given: dict[str, Any] = {"neighbours": tuple(near), "weights": weights} if t > 1 else {}
        how = {"evaluate": t == 3, "num_rounds": 4, "recipients": tuple(near), **changed}
        found[k] = Plan(t, 3, **how, **given)
    return found


def by_itself(
    own: Mapping[int, Learner], sent: Mapping[int, Payload], now: Mapping[int, Plan]
) -> dict[int, Outcome]:
    """Run a round as every device does by itself."""
    from flwr_dmml.payload.routing import cut, wanted

    results: dict[int, Outcome] = {}
    for k, plan in now.items():
        inbox: Inbox = {
            n: cut(sent[n], wanted(plan, position, k, sent[n]))
            for position, n in enumerate(plan.neighbours, start=1)
        }
        results[k] = own[k].run_round(plan, inbox)
    return results


def assert_equal(a: Mapping[int, Learner], b: Mapping[int, Learner]) -> None:
    for k in a:
        mine, theirs = a[k].state(), b[k].state()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), (k, name)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("dpsgd", {}),
        ("dpsgd", {"exchange.precision": "int8"}),
        ("dpsgd", {"optimizer": "adam", "clip-norm": 0.1, "speed-metric": "path", **STAGGERED}),
        ("dpsgd", {"label-correction": "network", "batch-size": 7, "common-dim": 5, **STAGGERED}),
        ("dpsgd", {"image-encoder": "mlp", **STAGGERED}),
        *(("dpsgd", {"gossip": rule, **STAGGERED}) for rule in NEW_RULES),
        *((method, STAGGERED | NEEDS.get(method, {})) for method in sorted(find_methods())),
    ],
    ids=str,
)
def test_a_round_of_all_is_that_of_each(method: str, changed: dict[str, Any]) -> None:
    """Also where devices with two modalities train one of them along with those that have one."""
    alone, together = learners(method, **changed), learners(method, **changed)
    crew, sent = Crew(together), dict[int, Payload]()
    for t in (1, 2, 3):
        phases = alone[0].options.phases(4)
        now = plans(alone, t, phase=phases[t - 1])
        expected = by_itself(alone, sent, now)
        found = crew.run(now)
        sent = {k: outcome.payload for k, outcome in expected.items()}
        for k, outcome in found.items():
            assert isinstance(outcome, Outcome), outcome
            assert outcome.metrics == expected[k].metrics
            assert outcome.rejected == expected[k].rejected == []
            published = crew.payload(k)
            assert published.keys() == sent[k].keys()
            assert all(torch.equal(published[name], sent[k][name]) for name in published)
    assert_equal(alone, together)


@pytest.mark.parametrize(("method", "joined"), [("dpsgd", 3), ("dmml-kd", 3), ("fedprox", 0)])
def test_solo_iterations_are_taken_with_those_that_have_one_modality(
    method: str, joined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six updates, half of them solo: devices 0 and 3 have 3 joint iterations, 3 solo ones each.

    Devices 1 and 2 have six, of which three are taken with 0 and 3. FedProx's loss reads whole
    rows: there, each kind goes by itself.
    """
    taken = Counter[tuple[tuple[str, ...], int]]()
    alone, together = training._take, training._Joins.take

    def of_one(stack: Any, devices: Any, modalities: tuple[str, ...]) -> None:
        taken[modalities, len(devices)] += 1
        alone(stack, devices, modalities)

    def of_some(joins: Any, modalities: tuple[str, ...], lead: Any, devices: Any) -> None:
        taken[modalities, sum(map(len, devices.values()))] += 1
        together(joins, modalities, lead, devices)

    monkeypatch.setattr(training, "_take", of_one)
    monkeypatch.setattr(training._Joins, "take", of_some)
    own = learners(method, **STAGGERED)
    results = Crew(own).run({k: Plan(1, 6, num_rounds=4) for k in own})
    assert all(isinstance(found, Outcome) for found in results.values())
    expected = Counter({(("audio", "image"), 2): 3})
    for m in ("audio", "image"):
        expected += Counter({((m,), 3): joined, ((m,), 2): 3 - joined, ((m,), 1): 6 - joined})
    assert taken == expected


def test_a_device_that_rests_stays_as_it_is() -> None:
    own = learners("dpsgd")
    crew = Crew(own)
    crew.run(plans(own, 1))
    before = own[2].state()
    crew.run(plans(own, 2, gone=2))
    assert all(torch.equal(value, before[name]) for name, value in own[2].state().items())
    assert sorted(crew.published) == [0, 1, 3]
    crew.run({**plans(own, 3, gone=2), 2: Plan(3, 3)})
    assert sorted(crew.published) == [0, 1, 2, 3]


def test_a_row_that_turns_nan_takes_nobody_with_it() -> None:
    """Device 3 trains on NaN in round 2: it goes back to round 1, and is not mixed in round 3."""
    alone, together = learners("dpsgd"), learners("dpsgd")
    crew, sent = Crew(together), dict[int, Payload]()
    sound = together[3].train_data
    nothing = {m: torch.full_like(sound.inputs[m], float("nan")) for m in sound.inputs}
    spoilt = replace(sound, inputs=nothing)
    for t in (1, 2, 3):
        together[3].train_data = spoilt if t == 2 else sound
        (together[3].pool,) = pooled([together[3].train_data])
        now = plans(alone, t, gone=3 if t == 3 else -1)
        before = together[3].state()
        found = crew.run(now)
        if t == 2:
            assert isinstance(found[3], NonFiniteModelError)
            assert all(torch.equal(v, before[name]) for name, v in together[3].state().items())
            alone[3].load_state(before)
            del now[3]
        expected = by_itself(alone, sent, now)
        sent = {k: outcome.payload for k, outcome in expected.items()}
        assert sorted(crew.published) == sorted(sent)
    assert_equal({k: alone[k] for k in range(3)}, {k: together[k] for k in range(3)})


REPORTED: list[dict[str, Any]] = [
    {},
    {"label-correction": "network"},
    {"test-fusion": "certainty", "samples-per-node": 200, "validation-fraction": 0.2},
]
"""What devices report to their neighbours besides speeds: nothing, label counts, temperatures."""


@pytest.mark.parametrize("changed", REPORTED, ids=str)
def test_values_out_of_range_are_rejected_by_the_neighbours(changed: dict[str, Any]) -> None:
    alone, together = learners("dpsgd", **changed), learners("dpsgd", **changed)
    crew, sent = Crew(together), dict[int, Payload]()
    for t in (1, 2):
        now = plans(alone, t, evaluate=True)
        found, expected = crew.run(now), by_itself(alone, sent, now)
        sent = {k: outcome.payload for k, outcome in expected.items()}
        if t == 1:  # as if training had left it there
            with torch.no_grad():
                together[1].flat.vector[0] = 2e6
                sent[1]["head.common"][0] = 2e6
                alone[1].flat.vector[0] = 2e6
            crew.rows.measure()
    for k in (0, 2):
        outcome = found[k]
        assert isinstance(outcome, Outcome)
        assert (
            outcome.rejected
            == expected[k].rejected
            == ["1: block head.common holds values beyond 1e+06"]
        )
    assert_equal(alone, together)


def test_what_is_the_same_in_the_next_round_is_kept() -> None:
    """A plan with the weights of the round before needs no new table of who mixes with whom."""
    own = learners("dpsgd")
    crew = Crew(own)
    crew.run(plans(own, 1))
    now = plans(own, 2)
    crew.run(now)
    tables = [kind.mixings for kind in crew.rows._kinds]
    again = {k: Plan(3, 3, neighbours=p.neighbours, weights=p.weights) for k, p in now.items()}
    crew.run(again)
    assert all(kind.mixings is known for kind, known in zip(crew.rows._kinds, tables, strict=True))


class Picky(DPSGD):
    """Refuses a batch with a marked sample."""

    name: ClassVar[str] = "picky"
    stacks: ClassVar[bool] = True

    def local_loss(self, batch: Batch) -> torch.Tensor:
        """Raise where a sample is marked, else return the loss of D-PSGD."""
        if any(bool((x == 77.0).any()) for x in batch.inputs.values()):
            raise ValueError("a marked sample")
        return super().local_loss(batch)


@pytest.mark.parametrize("changed", REPORTED, ids=str)
def test_an_error_in_a_stack_is_that_of_the_device_to_blame(changed: dict[str, Any]) -> None:
    """Devices 0 and 3 are a stack; device 3 has marked samples in round 2."""
    alone = learners("dpsgd", **changed)
    together = {k: picky(k, **changed) for k in range(NODES)}
    crew, sent = Crew(together), dict[int, Payload]()
    sound = together[3].train_data
    marked = replace(
        sound, inputs={m: torch.full_like(sound.inputs[m], 77.0) for m in sound.inputs}
    )
    for t in (1, 2):
        together[3].train_data = marked if t == 2 else sound
        (together[3].pool,) = pooled([together[3].train_data])
        now = plans(alone, t, evaluate=True)
        found = crew.run(now)
        if t == 2:
            assert isinstance(found[3], ValueError) and sorted(crew.published) == [0, 1, 2]
            del now[3]
        expected = by_itself(alone, sent, now)
        sent = {k: outcome.payload for k, outcome in expected.items()}
        assert all(found[k].metrics == expected[k].metrics for k in now)  # type: ignore[union-attr]
    assert_equal({k: alone[k] for k in range(3)}, {k: together[k] for k in range(3)})


def picky(k: int, **changed: Any) -> Learner:
    config = {**CONFIG, "method": "picky", **changed}
    parsed = parse_settings(config, find_parts(OwnParts((Picky,))))
    return parsed.learner("picky", load_partition(parsed.settings.partition_options(), k))
