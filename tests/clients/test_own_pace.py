"""Rounds of a device that waits for nobody: which letters it mixes, and what it keeps of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from helpers import FAST, make_learner
from helpers_direct import Shelf, plan

from flwr_dmml.clients import Learner
from flwr_dmml.clients.own_pace import run_at_own_pace
from flwr_dmml.payload.plan import Outcome, Payload, Plan
from flwr_dmml.transport.letter import Letter
from flwr_dmml.transport.messages import ENDED_S, FETCHED_BYTES, LETTER_AGE

CONFIG = {**FAST, "num-nodes": 3, "method": "dpsgd", "modality-pattern": "image"}


class Postbox(Shelf):
    """Letters come before rounds that are said; they lie ready for who collects, as well."""

    def __init__(self, coming: Mapping[int, Sequence[Letter]], first: int = 1) -> None:
        super().__init__({(x.sender, 1): x for own in coming.values() for x in own})
        self.coming, self._next = coming, first
        self.known: dict[int, int] = {}
        self.bytes_sent = 0

    def listen(self, peers: Mapping[int, str], known: Mapping[int, int]) -> dict[int, str]:
        self.known = dict(known)
        return {n: "no such host" for n, where in peers.items() if where == "nowhere"}

    def arrived(self) -> tuple[dict[int, Letter], dict[int, str]]:
        letters, self._next = self.coming.get(self._next, ()), self._next + 1
        self.bytes_sent += 5
        return {x.sender: x for x in letters}, {}


@pytest.fixture
def learner() -> Learner:
    found = make_learner(CONFIG, 0)
    found.reset()
    return found


@pytest.fixture(scope="module")
def letters() -> dict[int, Letter]:
    """What two other devices publish after a round without neighbours."""
    found = {}
    for k in (1, 2):
        other = make_learner(CONFIG, k)
        other.reset()
        found[k] = Letter("7", k, 1, other.run_round(plan(1, other, ()), {}).payload)
    return found


def own_plans(learner: Learner, first: int, last: int) -> list[Plan]:
    """Return plans of a device with two neighbours, from round to round."""
    return [plan(t, learner, (1, 2)) for t in range(first, last + 1)]


def run(
    learner: Learner,
    plans: Sequence[Plan],
    box: Postbox,
    kept: Payload | None = None,
    most: int = 1,
    second: str = "",
) -> tuple[list[Outcome], Payload]:
    peers = {1: "", 2: second}
    blocks = set(learner.blocks())
    return run_at_own_pace(learner, plans, peers, box, "7", kept or {}, most, {}, blocks)


def ages(outcomes: Sequence[Outcome]) -> list[dict[int, float]]:
    return [
        {n: o.metrics[key] for n in (1, 2) if (key := f"{LETTER_AGE}{n}") in o.metrics}
        for o in outcomes
    ]


def test_the_newest_letter_is_mixed_again_until_it_is_too_old(learner, letters):
    """That of device 1 comes before round 2, and again a newer one before round 4."""
    newer = replace(letters[1], server_round=5)
    box = Postbox({2: [letters[1]], 4: [newer, letters[2]]})
    outcomes, _ = run(learner, own_plans(learner, 1, 6), box)
    assert ages(outcomes) == [{}, {1: 0}, {1: 1}, {1: 0, 2: 0}, {1: 1, 2: 1}, {}]
    assert [x.server_round for x in box.published] == [1, 2, 3, 4, 5, 6]
    assert [o.metrics[FETCHED_BYTES] for o in outcomes] == [5] * 6 and not box.asked
    ended = [o.metrics[ENDED_S] for o in outcomes]
    assert ended == sorted(ended) and not any(o.rejected for o in outcomes)


def test_rounds_are_those_of_the_same_plans_without_who_has_not_written(learner, letters):
    """To the bit: a weight of somebody whose letter is not there goes to the own copy."""
    plans = own_plans(learner, 1, 3)
    outcomes, _ = run(learner, plans, Postbox({2: [letters[1]]}), most=0)
    other = make_learner(CONFIG, 0)
    other.reset()
    inboxes = [{}, {1: dict(letters[1].tensors)}, {}]
    for outcome, own, inbox in zip(outcomes, plans, inboxes, strict=True):
        expected = other.run_round(own.without({1, 2} - inbox.keys()), inbox)
        assert outcome.metrics.items() >= expected.metrics.items()
        assert all(bool((outcome.payload[k] == v).all()) for k, v in expected.payload.items())


def test_letters_outlast_a_message(learner, letters):
    """Two messages are one: ages go on, only newer letters are asked for, the own one is there."""
    newer = replace(letters[1], server_round=5)
    coming = {2: [newer], 3: [letters[2]]}
    whole, _ = run(learner, own_plans(learner, 1, 5), Postbox(coming), most=2)
    learner.reset()
    first, kept = run(learner, own_plans(learner, 1, 3), Postbox(coming), most=2)
    later = Postbox(coming, first=4)
    second, _ = run(learner, own_plans(learner, 4, 5), later, kept, most=2)
    assert (
        ages([*first, *second]) == ages(whole) == [{}, {1: 0}, {1: 1, 2: 0}, {1: 2, 2: 1}, {2: 2}]
    )
    assert later.known == {1: 5, 2: 1}
    assert [x.server_round for x in later.published] == [3, 4, 5]
    losses = [o.metrics["train.loss"] for o in (*first, *second)]
    assert losses == [o.metrics["train.loss"] for o in whole]


def test_who_is_to_have_a_letter_is_told(learner):
    plans = [replace(own, recipients=(2,)) for own in own_plans(learner, 1, 2)]
    box = Postbox({})
    run(learner, plans, box)
    assert box.readers == [(2,), (2,)]


def test_who_cannot_be_asked_is_named_once(learner):
    outcomes, _ = run(learner, own_plans(learner, 1, 2), Postbox({}), second="nowhere")
    assert [o.rejected for o in outcomes] == [["2: no such host"], []]


def test_the_end_is_a_beat(learner, letters):
    """The last letters are waited for, and whoever is to have the own one."""
    _, kept = run(learner, own_plans(learner, 1, 2), Postbox({}))
    closing = replace(plan(3, learner, (1, 2)), iterations=0)
    box = Postbox({0: list(letters.values())})
    (outcome,), _ = run(learner, [closing], box, kept)
    assert box.asked == [([1, 2], 1)] and box.lingered == ([1, 2], 1)
    assert ages([outcome]) == [{1: 0, 2: 0}] and "test.accuracy" in outcome.metrics
    assert [x.server_round for x in box.published] == [2] and not outcome.payload
