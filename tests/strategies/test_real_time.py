"""Rounds without a beat on real devices: spans of rounds, letters over Zenoh, the wall's clock.

The devices are threads of this process; ``benchmarks/async_rounds.py --real`` has processes.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import FAST
from helpers_real import ThreadedGrid

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.engine import server_identity
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import OwnParts, find_parts, parse_settings
from flwr_dmml.strategies import NoDevicesError, PeerStrategy
from flwr_dmml.strategies.app import check_rounds, exchange_of
from flwr_dmml.strategies.energy.own_rounds import OwnRounds
from flwr_dmml.strategies.exchange import Exchange
from flwr_dmml.tracking import RoundRecord
from flwr_dmml.tracking.events import DeviceRound

pytest.importorskip("zenoh", reason='letters between devices: "flwr-dmml[direct]"')

SPAN = 4
CONFIG: dict[str, Any] = {
    **FAST, "modality-pattern": "image", "num-nodes": 3, "topology": "complete", "method": "paced",
    "rounds": "async", "exchange.transport": "direct", "exchange.rounds-per-message": SPAN,
    "exchange.timeout-s": 20.0,
}  # fmt: skip


class Paced(Learner):
    """A round lasts as long as it is told to, by device."""

    name = "paced"
    seconds: ClassVar[dict[int, float]] = {}
    fails: ClassVar[tuple[int, ...]] = ()

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        p = self.partition.partition_id
        time.sleep(self.seconds.get(p, 0.0))
        if p == 1 and plan.server_round in self.fails:
            raise RuntimeError("out of luck")


class Kept:
    """Keeps what devices did, where a run folder would; counts how often it may save."""

    def __init__(self) -> None:
        self.events: list[DeviceRound] = []
        self.saved = 0

    def load(self) -> None:
        return None

    def begun(self, strategy: PeerStrategy) -> None: ...

    def models(self, found: Any) -> None: ...

    def ended(self, strategy: PeerStrategy) -> None: ...

    def after_rounds(self, strategy: PeerStrategy, *given: Any, last: bool) -> None:
        self.saved += strategy.resumable

    def happened(self, rounds: Iterable[DeviceRound]) -> None:
        self.events += rounds


def run(
    config: Mapping[str, Any],
    num_rounds: int,
    kind: type[PeerStrategy] = PeerStrategy,
    grid: type[ThreadedGrid] = ThreadedGrid,
    **more: Any,
) -> tuple[PeerStrategy, list[DeviceRound]]:
    kept, parsed = Kept(), parse_settings(config, find_parts(OwnParts((Paced,))))
    settings, devices = parsed.settings, grid(make_client_app(Paced), 3, config)
    given: dict[str, Any] = {"energy": OwnRounds(settings), "evaluate_every": 2}
    given["exchange"] = exchange_of(settings, devices)
    peers = kind(
        settings.make_topology(),
        num_nodes=3,
        method="paced",
        local_iterations=2,
        options=parsed.options["paced"],
        gossip=parsed.gossip_of("paced"),
        rounds="async",
        max_staleness=settings.max_staleness,
        keeper=kept,
        **given | more,
    )
    with server_identity(1):
        peers.start(devices, num_rounds=num_rounds, timeout=60)
    assert not kept.saved
    return peers, kept.events


@pytest.fixture(autouse=True)
def paces() -> Iterable[None]:
    Paced.seconds, Paced.fails = {0: 0.02, 1: 0.02, 2: 0.3}, ()
    yield
    Paced.seconds, Paced.fails = {}, ()


def by_device(events: Iterable[DeviceRound]) -> dict[int, list[DeviceRound]]:
    found: dict[int, list[DeviceRound]] = defaultdict(list)
    for event in events:
        found[event.device].append(event)
    return dict(found)


def test_nobody_waits_for_the_slow_one() -> None:
    """3 x 8 rounds: fast ones do two or more spans while the slow one does its first."""
    peers, events = run(CONFIG, 8)
    own = by_device(events)
    counts = {p: len(done) for p, done in own.items()}
    assert sum(counts.values()) == 24 and counts[2] <= SPAN + 2 < min(counts[0], counts[1])
    fourth = own[2][SPAN - 1].end_s
    assert all(len([e for e in own[p] if e.end_s < fourth]) > SPAN for p in (0, 1))
    for done in own.values():
        assert [e.number for e in done] == list(range(1, len(done) + 1))
        assert all(a.end_s <= b.start_s for a, b in pairwise(done))
    assert [e.end_s for e in events] == sorted(e.end_s for e in events)
    mixed = [letter for e in events for letter in e.letters]
    assert mixed and max(age for _, age in mixed) <= 3
    assert any(n != 2 for n, _ in mixed) and any(n == 2 for n, _ in mixed)
    assert all(n != e.device for e in events for n, _ in e.letters)

    records = peers.records
    assert [r.round for r in records] == list(range(1, 9)) and peers.rounds_done == 8
    last = records[-1]
    assert len(last.evaluated) == 3 and not last.failed
    assert all(r.accuracy is None for r in records[:-1] if r.round % 2)
    assert last.total_simulated_s == max(e.end_s for e in events)
    assert last.total_j == pytest.approx(sum(e.compute_j + e.radio_j for e in events))
    assert sum(sum(n.updates.values()) for r in records for n in r.nodes) == 24 * 2
    assert sum(n.bytes_sent for r in records for n in r.nodes) > 0


def test_no_device_spends_more_than_it_has() -> None:
    """One has energy for a few rounds only; what a span may take is set aside before it begins."""
    config = CONFIG | {"energy.battery-j": 1.0}
    battery_j = np.array([0.05, 0.05, 0.03])
    settings = parse_settings(config, find_parts(OwnParts((Paced,)))).settings
    energy = OwnRounds(settings, battery_j=battery_j)
    peers, events = run(config, 6, energy=energy)
    spent = np.array(
        [sum(e.compute_j + e.radio_j for e in events if e.device == k) for k in (0, 1, 2)]
    )
    assert energy.ledger.remaining_j + spent == pytest.approx(battery_j, abs=1e-9)
    assert (spent > 0).all() and energy.ledger.remaining_j.min() >= 0
    left = peers.records[-1].battery_j
    assert left == pytest.approx(dict(enumerate(energy.ledger.remaining_j)))
    totals = [sum(r.battery_j.values()) + r.total_j for r in peers.records]
    assert totals == pytest.approx([battery_j.sum()] * len(totals))


def test_a_device_that_fails_is_given_another_span_and_costs_nobody_else() -> None:
    """Its first span fails: the rounds of it are done by whoever has time."""
    Paced.seconds, Paced.fails = dict.fromkeys(range(3), 0.05), (3,)  # its work is counted in 2
    peers, events = run(CONFIG, 8)
    failed = [e for e in events if e.failed]
    assert [(e.device, e.number) for e in failed] == [(1, 1)]
    assert "out of luck" in failed[0].failed
    assert sum(not e.failed for e in events) == 24
    numbers = [e.number for e in events if e.device == 1 and not e.failed]
    assert numbers == list(range(SPAN + 1, SPAN + 1 + len(numbers))) and numbers
    named = [r.failed[1] for r in peers.records if r.failed]
    assert len(named) == 1 and "out of luck" in named[0] and peers.present == [0, 1, 2]


class Alone(ThreadedGrid):
    """Two devices leave after the handshake."""

    def push_messages(self, messages: Any) -> list[str]:
        sent = super().push_messages(messages)
        self.offline = {1, 2}
        return sent


def test_who_is_not_connected_is_not_waited_for() -> None:
    peers, events = run(CONFIG | {"exchange.timeout-s": 0.5}, 2, grid=Alone)
    assert Counter(e.device for e in events) == {0: 6}
    assert peers.records[-1].failed.keys() == {1, 2} and peers.present == [0]
    assert len(peers.records[-1].evaluated) == 1


def test_when_all_fail_the_run_ends() -> None:
    class Unlucky(ThreadedGrid):
        def push_messages(self, messages: Any) -> list[str]:
            given = list(messages)
            if given[0].metadata.message_type == "train":
                return [""] * len(given)
            return super().push_messages(given)

    with pytest.raises(NoDevicesError, match=r"every device failed: node 0, 1, 2: its message was"):
        run(CONFIG, 2, grid=Unlucky)


class Enough(PeerStrategy):
    def stop(self, record: RoundRecord) -> str:
        return "enough" if record.round == 2 else ""


def test_a_strategy_of_ones_own_ends_it() -> None:
    Paced.seconds = dict.fromkeys(range(3), 0.05)
    peers, events = run(CONFIG, 50, kind=Enough)
    assert peers.num_rounds == len(peers.records) == peers.rounds_done < 50
    assert len(events) < 150 and peers.records[-1].accuracy is not None


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"exchange.transport": "relay"}, "exchange.transport = 'relay'"),
        ({"gossip": "sgp"}, "gossip = 'sgp'"),
        ({"loss-rate": 0.1}, "loss-rate = 0.1"),
        ({"resume": "x"}, "resume = 'x'"),
    ],
)
def test_what_does_not_go_with_real_devices_is_refused(settings: dict[str, Any], what: str) -> None:
    asked = {"method": "dpsgd", "rounds": "async", "exchange.transport": "direct"}
    real = ThreadedGrid(make_client_app(), 3, {})
    check_rounds(parse_settings(asked, find_parts()), real)
    with pytest.raises(SettingsError) as raised:
        check_rounds(parse_settings(asked | settings, find_parts()), real)
    assert f"rounds = 'async' on real devices with {what}: " in str(raised.value)
    assert "allowed: " in str(raised.value)
    check_rounds(parse_settings(asked | settings | {"rounds": "sync"}, find_parts()), real)


def test_a_strategy_by_relay_is_refused_before_the_first_round() -> None:
    with pytest.raises(MethodError, match="by relay they would wait"):
        run(CONFIG, 1, exchange=Exchange)
