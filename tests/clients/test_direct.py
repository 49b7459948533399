"""Rounds in which a device exchanges letters itself: what it does when one does not come."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from helpers import FAST, make_learner
from helpers_direct import Shelf, plan

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Learner
from flwr_dmml.clients.direct import in_letters, open_link, run_directly
from flwr_dmml.clients.transports import Direct
from flwr_dmml.fleet.certificates import PEER, Authority, Wanted
from flwr_dmml.fleet.local import free_port
from flwr_dmml.payload.limits import Limits
from flwr_dmml.payload.options import ExchangeOptions
from flwr_dmml.payload.plan import Averaged, Carried, Inbox, Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.transport.letter import Letter
from flwr_dmml.transport.messages import BLOCKS, LETTER_BYTES, NOTES, PAYLOAD_BYTES, PEERS, pack
from flwr_dmml.transport.relay import size_bytes

CONFIG = {**FAST, "num-nodes": 3, "method": "dpsgd", "modality-pattern": "image"}


def published(learner: Learner, server_round: int) -> Letter:
    """Return what a device without neighbours publishes after some rounds of its own."""
    learner.reset()
    for t in range(1, server_round + 1):
        outcome = learner.run_round(plan(t, learner, ()), {})
    return Letter("7", learner.partition.partition_id, server_round, outcome.payload)


@pytest.fixture(scope="module")
def letters() -> dict[tuple[int, int], Letter]:
    others = [make_learner(CONFIG, k) for k in (1, 2)]
    return {(o.partition.partition_id, t): published(o, t) for o in others for t in (1, 2)}


def alone(inboxes: Sequence[Inbox], neighbours: Sequence[tuple[int, ...]]) -> list[Outcome]:
    """Return the outcomes of the same rounds with these inboxes, without any link."""
    learner = make_learner(CONFIG, 0)
    learner.reset()
    return [
        learner.run_round(plan(t, learner, (1, 2) if t > 1 else ()).without({1, 2} - {*own}), inbox)
        for t, (inbox, own) in enumerate(zip(inboxes, neighbours, strict=True), start=1)
    ]


def run(letters: Mapping[tuple[int, int], Letter]) -> tuple[list[Outcome], Shelf]:
    shelf, learner = Shelf(letters), make_learner(CONFIG, 0)
    learner.reset()
    plans = [plan(t, learner, (1, 2) if t > 1 else ()) for t in (1, 2, 3)]
    outcomes, sent = run_directly(learner, plans, {1: "", 2: ""}, shelf, "7", {})
    assert sent.keys() == outcomes[-1].payload.keys()
    return outcomes, shelf


def test_rounds_are_those_that_somebody_else_routes(letters):
    outcomes, shelf = run(letters)
    inboxes: list[Inbox] = [{k: dict(letters[k, t].tensors) for k in (1, 2)} for t in (1, 2)]
    expected = alone([{}, *inboxes], [(), (1, 2), (1, 2)])
    for outcome, other in zip(outcomes, expected, strict=True):
        known = {k: v for k, v in outcome.metrics.items() if not k.endswith("bytes")}
        assert known == other.metrics and outcome.metrics[LETTER_BYTES] == 100
        relayed = size_bytes(pack(other.payload))  # what sending is billed by, on any transport
        assert outcome.metrics[PAYLOAD_BYTES] == relayed > 4 * 20_000
        assert not outcome.rejected
    assert shelf.asked == [([], 0), ([1, 2], 1), ([1, 2], 2)]
    assert shelf.spare[:2] == [0, 0] and 0 < shelf.spare[2] <= 30
    assert [letter.server_round for letter in shelf.published] == [1, 2, 3]
    assert shelf.lingered == ([1, 2], 2)


def test_who_does_not_write_is_mixed_without_and_not_waited_for_again(letters):
    few = {key: letter for key, letter in letters.items() if key != (1, 1)}
    outcomes, shelf = run(few)
    inboxes: list[Inbox] = [{2: dict(letters[2, t].tensors)} for t in (1, 2)]
    expected = alone([{}, *inboxes], [(), (2,), (2,)])
    assert outcomes[-1].metrics["test.accuracy"] == expected[-1].metrics["test.accuracy"]
    assert outcomes[-1].metrics["train.loss"] == expected[-1].metrics["train.loss"]
    assert shelf.asked == [([], 0), ([1, 2], 1), ([2], 2)]
    assert [o.rejected for o in outcomes] == [[], *[["1: no letter within 30 s"]] * 2]
    assert shelf.lingered == ([2], 2)


def test_a_courier_puts_into_its_letter_what_has_come_in_others() -> None:
    """0 has images, 1 and 2 sound: 1's encoder goes by 0 to 2, which mixes it one round late."""
    config, block = {**CONFIG, "modality-pattern": "image,audio,audio"}, "encoder.audio"
    courier, sender, receiver = (make_learner(config, k) for k in range(3))
    own = {(1, t): published(sender, t) for t in (1, 2)}
    of_courier = [plan(1, courier, ()), plan(2, courier, (1,))]
    of_courier[1] = replace(of_courier[1], weights={}, carries=(Carried(1, 1, (block,)),))
    courier.reset()
    shelf = Shelf(own)
    outcomes, _ = run_directly(courier, of_courier, {1: ""}, shelf, "7", {})
    letter = shelf.published[1]
    assert letter.tensors["encoder.audio<1"] is own[1, 1].tensors[block]
    assert outcomes[1].metrics[PAYLOAD_BYTES] == outcomes[0].metrics[PAYLOAD_BYTES]
    receiver.reset()
    receiver.run_round(plan(1, receiver, ()), {})
    before = receiver.state()[block]
    mix = Plan(3, 0, neighbours=(0,), weights={block: (0.5, 0.0, 0.5)}, num_rounds=3)
    mix = replace(mix, far=(Carried(1, 0, (block,)),))
    (outcome,), _ = run_directly(receiver, [mix], {0: ""}, Shelf({(0, 2): letter}), "7", {})
    assert not outcome.rejected
    mean = (before + own[1, 1].tensors[block]) / 2
    assert torch.allclose(receiver.state()[block], mean, atol=1e-6)
    (outcome,), _ = run_directly(receiver, [mix], {0: ""}, Shelf({}), "7", {})
    assert outcome.rejected == ["0: no letter within 30 s"]


def test_a_courier_puts_the_mean_of_the_letters_that_have_come_into_its_own() -> None:
    """0 has images; of 1 and 2, which have sound, only 1 writes in round 2."""
    config, block = {**CONFIG, "modality-pattern": "image,audio,audio"}, "encoder.audio"
    courier, *senders = (make_learner(config, k) for k in range(3))
    letters = {(k, 1): published(sender, 1) for k, sender in enumerate(senders, start=1)}
    letters[1, 2] = published(senders[0], 2)
    length = senders[0].block_lengths()[block]
    mean = (Averaged(block, (1, 2), length),)
    plans = [plan(1, courier, ())]
    plans += [replace(plan(t, courier, (1, 2)), weights={}, averages=mean) for t in (2, 3)]
    courier.reset()
    shelf = Shelf(letters)
    outcomes, _ = run_directly(courier, plans, {1: "", 2: ""}, shelf, "7", {})
    one, two = (letters[k, 1].tensors[block] for k in (1, 2))
    assert torch.equal(shelf.published[1].tensors["encoder.audio<-1"], (one + two) / 2)
    alone = letters[1, 2].tensors[block]
    assert torch.equal(shelf.published[2].tensors["encoder.audio<-1"], alone)
    assert outcomes[2].rejected == ["2: no letter within 30 s"]
    assert outcomes[1].metrics[PAYLOAD_BYTES] == outcomes[0].metrics[PAYLOAD_BYTES]


def test_a_letter_lacks_the_blocks_that_nobody_else_has() -> None:
    """It is billed as the relay's payload all the same."""
    learner = make_learner(CONFIG, 0)
    shared = {"head.common"}
    whole, cut = Shelf({}), Shelf({})
    outcomes = []
    for shelf, blocks in ((whole, None), (cut, shared)):
        learner.reset()
        rounds = [plan(1, learner, ())]
        outcomes += run_directly(learner, rounds, {}, shelf, "7", {}, shared=blocks)[0]
    all_of_it, rest = (set(shelf.published[0].tensors) for shelf in (whole, cut))
    assert rest == shared | {"stats.speeds"} and all_of_it == rest | set(learner.blocks())
    assert outcomes[0].metrics == outcomes[1].metrics
    stats = {"stats.x": torch.zeros(1), "head.common<3#scale": torch.zeros(1)}
    assert in_letters({**stats, "encoder.image": torch.zeros(1)}, shared) == stats


def test_the_last_letter_lies_ready_for_those_who_come_later(letters):
    shelf, learner = Shelf(letters), make_learner(CONFIG, 0)
    sent = dict(published(learner, 1).tensors)
    run_directly(learner, [plan(2, learner, (1, 2))], {1: "", 2: ""}, shelf, "7", sent)
    assert [letter.server_round for letter in shelf.published] == [1, 2]
    assert shelf.published[0].tensors.keys() == sent.keys()


def test_weights_of_who_is_missing_stay_with_oneself():
    whole = Plan(3, 1, neighbours=(4, 5, 6), weights={"a": (0.1, 0.2, 0.3, 0.4), "b": (1, 0, 0, 0)})
    assert whole.without({4, 6}).neighbours == (5,)
    assert whole.without({4, 6}).weights == {"a": (pytest.approx(0.7), 0.3), "b": (1, 0)}
    assert whole.without(()) == whole and whole.without({9}) == whole


@pytest.mark.parametrize(
    ("node_config", "exchange", "words"),
    [
        ({}, ExchangeOptions(transport="direct"), "direct-address is missing"),
        (
            {"direct-address": ":0", "tls-ca": "x"},
            ExchangeOptions(),
            "give tls-ca, tls-certificate",
        ),
        (
            {"direct-address": ":0", "tls-ca": "x", "tls-certificate": "y", "tls-key": "z"},
            ExchangeOptions(),
            "there is no file x",
        ),
        (
            {"direct-address": ":0", "tls-revoked": "x"},
            ExchangeOptions(),
            "give tls-ca, tls-certificate",
        ),
    ],
)
def test_a_node_config_that_cannot_work(
    node_config: dict[str, Any], exchange: ExchangeOptions, words: str
):
    with pytest.raises(SettingsError, match=words):
        open_link(Context(1, 2, node_config, RecordDict(), {}), exchange, 0, Limits({}))


@pytest.mark.parametrize("clear", [True, False])
def test_a_device_that_talks_in_the_clear_warns_of_it(
    clear: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """In its own log and, by a note, in the run's: once of each neighbour, when it is met."""
    pytest.importorskip("zenoh", reason='letters between devices: "flwr-dmml[direct]"')
    caplog.set_level("WARNING", logger="flwr")
    getLogger("flwr").propagate = True
    node: dict[str, Any] = {"direct-address": f"127.0.0.1:{free_port()}"}
    if not clear:
        authority = Authority(tmp_path)
        authority.make("lab")
        own = tmp_path / "0.crt", tmp_path / "0.key"
        authority.issue(Wanted("device-0", ("127.0.0.1",), PEER), own[1], own[0])
        files = authority.certificate_file, *own, authority.revoked_file
        names = "tls-ca", "tls-certificate", "tls-key", "tls-revoked"
        node |= dict(zip(names, map(str, files), strict=True))
    learner = make_learner(CONFIG, 0)
    learner.reset()
    blocks = ConfigRecord(dict(learner.block_lengths()))
    device, notes = Direct(Context(7, 2, node, RecordDict(), {})), list[Any]()
    for t, peers in enumerate(((), (1, 3), (1,), (2, 1), (3, 2)), start=1):
        near = ConfigRecord({str(peer): "" for peer in peers})
        content = RecordDict({PEERS: near, BLOCKS: blocks})
        reply, *_ = device.run(learner, [plan(t, learner, ())], content)
        notes += reply.config_records.get(NOTES, ConfigRecord({NOTES: []}))[NOTES]  # type: ignore
    if clear:
        first, later = notes
        assert first.startswith("talks to device 1, 3 in the clear: whoever reaches its port")
        assert later == "talks to device 2 in the clear, too"
    assert len(notes) == 2 * clear
    assert caplog.text.count("in the clear") == 2 * clear


def test_the_relay_has_a_round_a_message():
    several = {"exchange.rounds-per-message": 4}
    with pytest.raises(SettingsError, match="the relay hands payloads on in every round"):
        parse_settings(several, find_parts())
    parsed = parse_settings({**several, "exchange.transport": "direct"}, find_parts())
    assert parsed.settings.exchange.rounds_per_message == 4
