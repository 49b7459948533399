"""What a device lets neighbours send it: all that an honest one sends, whatever the gossip rule."""

from typing import ClassVar

import pytest
from helpers import FAST, make_learner, run_peers

from flwr_dmml.clients import DPSGD, Learner
from flwr_dmml.clients.limits import limits_of
from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.methods.ccl import Ccl
from flwr_dmml.methods.fedproto import FedProto
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.transport.letter import Letter, read_letter, write_letter

CONFIG = {**FAST, "num-nodes": 4, "modality-pattern": "image,image,image+audio,audio"}


class Written(Learner):
    """Reads each of its payloads as a neighbour would that gets it as a letter."""

    blocks_of_all: ClassVar[dict[str, int]] = {}
    letters: ClassVar[int] = 0

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        if outcome.payload:
            letter = Letter("7", 0, plan.server_round, outcome.payload)
            read = read_letter(write_letter(letter), limits_of(self, Written.blocks_of_all))
            assert read.tensors.keys() == outcome.payload.keys()
            Written.letters += 1
        return outcome


class Plain(Written, DPSGD):
    name = "written"


class WrittenCcl(Written, Ccl):
    name = "written-ccl"


class WrittenProto(Written, FedProto):
    name = "written-proto"


@pytest.fixture(autouse=True)
def all_blocks() -> None:
    learners = [make_learner({**CONFIG, "method": "dpsgd"}, k) for k in range(4)]
    Written.blocks_of_all = {b: n for x in learners for b, n in x.block_lengths().items()}
    Written.letters = 0


@pytest.mark.parametrize("name", find_gossip())
def test_what_any_rule_sends_may_be_sent(name: str) -> None:
    """With values and places of nearly all numbers, where the rule can be compressed."""
    config = {**CONFIG, "method": Plain.name, "gossip": name, "topology": "line"}
    rule = find_gossip()[name]
    if rule.coded or not rule.linear:
        config |= {"exchange.top-k": 0.9, "exchange.precision": "int8"}
    peers = run_peers(config, Plain, num_rounds=2)
    assert Written.letters == 4 * 2
    assert not any(record.failed for record in peers.records)


@pytest.mark.parametrize("method", [WrittenCcl, WrittenProto])
def test_statistics_may_be_sent(method: type[Learner]) -> None:
    peers = run_peers({**CONFIG, "method": method.name}, method, num_rounds=2)
    assert Written.letters == 4 * 2 and not any(record.failed for record in peers.records)


def test_carried_blocks_and_means_may_be_sent() -> None:
    for couriers in ("forward", "average"):
        config = {**CONFIG, "modality-pattern": "audio,image,image,audio", "topology": "ring"}
        peers = run_peers({**config, "method": Plain.name, "couriers": couriers}, Plain)
        assert not any(record.failed for record in peers.records)


def test_copies_are_counted_where_a_payload_holds_several_only() -> None:
    learner = make_learner({**CONFIG, "method": "dpsgd"})
    for gossip, couriers, copies in (
        ("dpsgd", "off", 1), ("dpsgd", "auto", 1), ("dpsgd", "forward", 4), ("choco", "auto", 4),
    ):  # fmt: skip
        config = {**CONFIG, "method": "dpsgd", "gossip": gossip, "couriers": couriers}
        limits = limits_of(make_learner(config), learner.block_lengths())
        assert (limits.copies, limits.entries) == (copies, 2)
    lying = {"head.common": 1, "more": 7}  # one's own blocks have the lengths that one knows
    blocks = limits_of(learner, lying).blocks
    assert blocks == learner.block_lengths() | {"more": 7}
