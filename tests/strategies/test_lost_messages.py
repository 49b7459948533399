"""Lost messages: which ones, what their weight becomes, and that every engine loses the same."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from helpers import FAST, run_peers
from helpers_engines import SENSORS, on_both_engines
from helpers_gossip import OnAParabola

from flwr_dmml.clients import DPSGD
from flwr_dmml.payload.plan import Carried, Inbox, Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies.app import warn_of_losses
from flwr_dmml.strategies.losses import Losses

A, B = "encoder.audio", "head.common"


def plans() -> dict[int, Plan]:
    """A line of three in round 5: device 1 is between 0 and 2."""
    third = 1 / 3
    return {
        0: Plan(5, 2, neighbours=(1,), weights={A: (1 - third, third)}),
        1: Plan(5, 2, neighbours=(0, 2), weights={A: (third,) * 3, B: (1.0, 0.0, 0.0)}),
        2: Plan(5, 2, neighbours=(1,), weights={A: (1 - third, third)}),
    }


LOST = {1: [2]}  # what 2 sent to 1


def test_its_weight_goes_to_the_receivers_own_copy() -> None:
    left = Losses(0.1, 0, "own").left(plans(), LOST)
    assert left[0] == plans()[0] and left[2] == plans()[2]
    assert left[1].neighbours == (0,)
    assert left[1].weights == {A: (pytest.approx(2 / 3), 1 / 3), B: (1.0, 0.0)}
    assert left[1].as_sent == plans()[1] and left[0].as_sent is left[0]


def test_the_sender_keeps_its_share() -> None:
    """Columns, what a sender deals out, sum to 1 as before."""
    left = Losses(0.1, 0, "sender").left(plans(), LOST)
    assert left[1].weights[A] == (1 / 3, 1 / 3) and left[1].neighbours == (0,)
    assert left[2].weights[A] == (pytest.approx(1.0), 1 / 3)
    assert left[2].as_sent == plans()[2]
    dealt_out = {0: 2 / 3 + 1 / 3, 1: 1 / 3 + 1 / 3 + 1 / 3, 2: 1.0}
    found = {
        0: left[0].weights[A][0] + left[1].weights[A][1],
        1: left[0].weights[A][1] + left[1].weights[A][0] + left[2].weights[A][1],
        2: left[2].weights[A][0],
    }
    assert found == pytest.approx(dealt_out)


def test_both_ways_are_given_up_for_a_rule_that_keeps_a_sum() -> None:
    for loss in ("own", "sender", "pair"):
        losses = Losses(0.5, 3, loss)
        lost = {(s, r) for r, senders in losses.lost(plans()).items() for s in senders}
        if loss != "pair":
            one_way = lost
    assert one_way and lost == one_way | {(r, s) for s, r in one_way}
    left = losses.left(plans(), {1: [2], 2: [1]})
    assert left[2].weights[A] == (pytest.approx(1.0),) and left[2].neighbours == ()
    assert left[1].weights[A] == (pytest.approx(2 / 3), 1 / 3)


def test_a_courier_passes_on_what_has_reached_it() -> None:
    own = {0: Plan(5, 2, neighbours=(1, 2), carries=(Carried(1, 1, (A,)), Carried(2, 2, (A,))))}
    assert Losses(0.1, 0).left(own, {0: [1]})[0].carries == (Carried(2, 2, (A,)),)


def test_draws_are_even_and_depend_on_round_sender_and_receiver() -> None:
    near = {p: Plan(1, 1, neighbours=tuple(q for q in range(40) if q != p)) for p in range(40)}

    def lost(server_round: int, seed: int = 0) -> set[tuple[int, int]]:
        at = {p: Plan(server_round, 1, neighbours=plan.neighbours) for p, plan in near.items()}
        return {(s, r) for r, own in Losses(0.2, seed).lost(at).items() for s in own}

    first = lost(2)
    assert len(first) == pytest.approx(0.2 * 40 * 39, rel=0.15)
    assert {(s, r) for s, r in first if (r, s) not in first}, "each way by itself"
    assert first == lost(2) and first != lost(3) and first != lost(2, seed=1)
    assert Losses(0.0, 0).lost(near) == {} and Losses(0.0, 0).summary() == []


# ---- in runs ------------------------------------------------------------------------------------

LOSSY: dict[str, Any] = {**SENSORS, "loss-rate": 0.3}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"gossip": "d2"},
        {"gossip": "relaysgd", "topology": "line"},
        {"method": "dmml", "gossip": "qg-dsgdm"},
        {"topology": "one-peer-exponential", "topology-directed": True},
        {"method": "dmml-kd", "modality-pattern": "audio,image,image,audio"},  # couriers
        {"exchange.precision": "int8", "exchange.top-k": 0.3},
    ],
    ids=str,
)
def test_rows_and_messages_lose_the_same(changed: dict[str, Any]) -> None:
    config = {**LOSSY, **changed}
    lossy = on_both_engines(config, rounds=4)
    without = run_peers({**config, "loss-rate": 0.0}, num_rounds=4)
    assert lossy.records[-1].train_loss != without.records[-1].train_loss
    sent = [[sum(n.bytes_sent for n in r.nodes) for r in run.records] for run in (lossy, without)]
    assert sent[0][0] == sent[1][0], "what is lost has been sent"


class Hearing(DPSGD):
    """D-PSGD that keeps every device's plans, and from whom it got something."""

    name = "hearing"
    plans: ClassVar[dict[tuple[int, int], tuple[Plan, tuple[int, ...]]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        key = plan.server_round, self.partition.partition_id
        self.plans[key] = plan, tuple(sorted(inbox))
        return super().run_round(plan, inbox)


def test_what_is_lost_does_not_reach_the_device() -> None:
    config = {**FAST, "method": "hearing", "num-nodes": 6, "loss-rate": 0.4}
    Hearing.plans.clear()
    peers = run_peers({**config, "modality-pattern": "audio"}, Hearing, num_rounds=4)
    heard = {key: near for key, (_, near) in Hearing.plans.items() if key[0] > 1}
    assert all(plan.neighbours == near for plan, near in Hearing.plans.values())
    count = sum(map(len, heard.values()))  # of 6 devices x 2 neighbours x 4 rounds
    assert len(heard) == 24 and 15 < count < 42
    for plan, _ in Hearing.plans.values():
        assert all(sum(row) == pytest.approx(1) for row in plan.weights.values())
    assert "Lost messages: 0.4 of all" in peers.planner.summary()[2]


def tracking_error(rule: Mapping[str, Any]) -> float:
    from helpers_gossip import Tracking

    kind = type("Lossy", (Tracking,), rule)
    config = {
        **FAST, "num-nodes": 3, "modality-pattern": "audio", "topology": "complete",
        "method": "on-a-parabola", "local-iterations": 2, "learning-rate": 0.08, "momentum": 0.0,
        "clip-norm": 0.0, "loss-rate": 0.2,
    }  # fmt: skip
    run_peers(config, OnAParabola, num_rounds=80, rules=[kind])
    return max(abs(OnAParabola.final[k] - 31 / 6) for k in range(3))


def test_one_way_losses_break_tracking_for_good_and_pairs_do_not() -> None:
    """Gradient tracking on three parabolas, a fifth of the messages lost."""
    assert tracking_error({"loss": "pair"}) < 0.01
    assert tracking_error({"loss": "own"}) > 0.1


def test_direct_letters_warn_where_both_ends_should_know(caplog: pytest.LogCaptureFixture) -> None:
    config = {"method": "dpsgd", "exchange.transport": "direct"}
    for gossip, warned in (("dpsgd", False), ("k-gt", True), ("sgp", True)):
        parsed = parse_settings({**config, "gossip": gossip}, find_parts())
        caplog.clear()
        warn_of_losses(parsed.settings, parsed.gossip_of("dpsgd"), object())  # type: ignore[arg-type]
        assert any("only the receiver does" in r.message for r in caplog.records) == warned
