"""Rounds without a beat: the order of events, what is mixed, weights, batteries, what is refused.

The devices differ by their clock alone, so a full round of a slow one, which has a quarter of the
others' clock, lasts exactly four of theirs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import FAST, run_peers
from helpers_gossip import OnAParabola

from flwr_dmml.clients import make_client_app
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy, make_server_app
from flwr_dmml.strategies.energy.own_rounds import OwnRounds
from flwr_dmml.tracking.events import DeviceRound, read_events

FAST_BOARD, SLOW_BOARD = "raspberry-pi-4", "a-quarter"
FOUR: dict[str, Any] = {
    **FAST, "method": "dpsgd", "modality-pattern": "audio+image", "num-nodes": 4,
    "topology": "complete",
}  # fmt: skip


@pytest.fixture(autouse=True)
def slow_board(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = PROFILES[FAST_BOARD]
    slow = replace(fast, name=SLOW_BOARD, frequency_hz=fast.frequency_hz / 4)
    monkeypatch.setitem(PROFILES, SLOW_BOARD, slow)


def boards(*names: str) -> dict[str, Any]:
    return {"energy.devices": ",".join(names)}


ONE_SLOW = boards(FAST_BOARD, FAST_BOARD, FAST_BOARD, SLOW_BOARD)


def energy_of(config: Mapping[str, Any]) -> OwnRounds:
    return OwnRounds(parse_settings(config, find_parts()).settings)


class Kept:
    """Keeps what devices did, where a run folder would."""

    def __init__(self) -> None:
        self.events: list[DeviceRound] = []

    def load(self) -> None:
        return None

    def begun(self, strategy: PeerStrategy) -> None: ...

    def models(self, found: Any) -> None: ...

    def ended(self, strategy: PeerStrategy) -> None: ...

    def happened(self, rounds: Iterable[DeviceRound], server_round: int) -> None:
        self.events += rounds


def run_async(
    config: Mapping[str, Any], *learners: Any, **more: Any
) -> tuple[PeerStrategy, list[DeviceRound]]:
    kept = Kept()
    given = {"energy": energy_of({**config, "method": "dpsgd"}), "rounds": "async", **more}
    peers = run_peers(config, *learners, keeper=kept, **given)
    return peers, kept.events


def slow_one(events: Iterable[DeviceRound]) -> int:
    """Return whose first round lasts the longest."""
    return max((e for e in events if e.number == 1), key=lambda e: e.end_s).device


# The order of events


@pytest.mark.parametrize("rule", sorted(n for n, r in find_gossip().items() if r.letters != "beat"))
def test_equal_devices_do_what_they_do_in_common_rounds(rule: str) -> None:
    """To the bit: accuracies, losses, seconds, joules, bytes."""
    config = FOUR | {"gossip": rule, "local-iterations": 2}
    asked: dict[str, Any] = {"num_rounds": 3, "evaluate_every": 1}
    common = run_peers(config, **asked)
    own, _ = run_async(config, **asked)
    assert [r.to_json() for r in own.records] == [r.to_json() for r in common.records]


def test_one_slow_device_by_hand() -> None:
    """Of 4 x 4 rounds until 5 d three devices do five each, and the slow one, 4 d a round, one.

    It ends its first at 4 d and would end its second at 8 d, so 16 are done at 5 d. Its letter is
    there from 4 d on; theirs come every d. Until 4 d they mix without it.
    """
    _, events = run_async(FOUR | ONE_SLOW, num_rounds=4)
    slow = slow_one(events)
    d = min(e.end_s for e in events)
    found = Counter(e.device for e in events)
    assert found == {k: 1 if k == slow else 5 for k in range(4)}
    for e in events:
        length = 4 if e.device == slow else 1
        assert e.start_s == pytest.approx((e.number - 1) * length * d)
        assert e.end_s == pytest.approx(e.number * length * d)
    fifth = [e for e in events if e.number == 5]
    assert len(fifth) == 3
    for e in fifth:
        assert sorted(e.letters) == sorted((k, 0) for k in range(4) if k != e.device)
    assert all(slow not in dict(e.letters) for e in events if e.number < 5)


def test_letters_are_mixed_again_until_they_are_too_old() -> None:
    """A slow device's letter of 4 d is 0, 1, 2, ... own rounds old in the fifth to eighth round."""
    for most in (0, 1, 3):
        _, events = run_async(FOUR | ONE_SLOW, num_rounds=7, max_staleness=most)
        slow = slow_one(events)
        some = next(k for k in range(4) if k != slow)
        ages = {e.number: dict(e.letters).get(slow) for e in events if e.device == some}
        assert [ages[n] for n in range(1, 5)] == [None] * 4
        wanted = [age if age <= most else None for age in range(4)]
        assert [ages[n] for n in range(5, 9)] == wanted


def test_records_are_in_simulated_order_and_as_long_as_all_work() -> None:
    """16 rounds of devices are four records; each is told once, in order, with all devices."""
    peers, events = run_async(FOUR | ONE_SLOW, num_rounds=4, evaluate_every=2)
    records = peers.records
    assert [r.round for r in records] == [1, 2, 3, 4] and peers.rounds_done == 4
    seconds = [r.total_simulated_s for r in records]
    assert seconds == sorted(seconds) and seconds[-1] == max(e.end_s for e in events)
    assert [r.accuracy is not None for r in records] == [False, True, False, True]
    assert all(len(r.evaluated) == 4 for r in records if r.accuracy is not None)
    assert records[-1].total_j == pytest.approx(sum(e.compute_j + e.radio_j for e in events))
    assert sum(sum(n.updates.values()) for r in records for n in r.nodes) == 16 * 2 * 2


def test_a_model_is_evaluated_as_it_was_last_mixed() -> None:
    """A slow device in its first round has mixed nothing yet: it is where all have begun."""
    config = FOUR | ONE_SLOW
    peers, events = run_async(config, num_rounds=4, evaluate_every=1)
    slow = slow_one(events)
    first = [r.by_partition[slow].accuracy for r in peers.records]
    assert first[0] == first[1] == first[2]  # it ends this round after the third record


def test_the_same_seed_leaves_the_same_bytes(tmp_path: Path) -> None:
    config = FOUR | ONE_SLOW | {
        "rounds": "async", "num-server-rounds": 4, "evaluate-every": 2, "run-dir": str(tmp_path),
        "loss-rate": 0.2, "wireless.enabled": True,
    }  # fmt: skip
    written = []
    for name in ("one", "two"):
        app = FlowerApp({}, make_server_app(), make_client_app())
        run_app(app, 4, {**config, "run-name": name})
        folder = tmp_path / name / "dpsgd"
        written.append([(folder / f).read_bytes() for f in ("metrics.jsonl", "events.jsonl")])
    assert written[0] == written[1]
    events = read_events(tmp_path / "one" / "dpsgd" / "events.jsonl")
    assert any(e.missed for e in events) and all(e.end_s > e.sends_s > e.start_s for e in events)


# Weights


class Weight(OnAParabola):
    """Notes the weight of push-sum at the end, too."""

    name = "weight"
    gossip = "sgp"
    weights: ClassVar[dict[int, float]] = {}

    def evaluate(self) -> dict[str, float]:
        state = self.mixer.state_of("model")
        self.weights[self.partition.partition_id] = float(state["a"])
        return super().evaluate()


@pytest.mark.parametrize("rule", ["dpsgd", "sgp"])
@pytest.mark.parametrize("graph", ["complete", "line"])
def test_a_slow_devices_data_count_as_much_as_others(rule: str, graph: str) -> None:
    """The best number for all is (1 + 2 * 3 + 3 * 8) / 6 = 5.17, whoever is slow.

    If gradients counted by how often a device trains, the slow one's would count a quarter: 1.86
    or less for the third, 6.3 or more for the first.
    """
    config: dict[str, Any] = FAST | boards(FAST_BOARD, FAST_BOARD, SLOW_BOARD) | {
        "num-nodes": 3, "topology": graph, "momentum": 0.0, "learning-rate": 0.002, "gossip": rule,
        "method": "weight", "modality-pattern": "image", "local-iterations": 2, "clip-norm": 0.0,
    }  # fmt: skip
    for seed in range(2):
        run_async(config | {"seed": seed}, Weight, num_rounds=1500, evaluate_every=1500)
        mean = np.mean([Weight.final[k] for k in range(3)])
        assert mean == pytest.approx(31 / 6, abs=0.15)


@pytest.mark.parametrize("loss_rate", [0.0, 0.3])
def test_push_sum_loses_no_weight(loss_rate: float) -> None:
    """Letters are added up, those that are lost stay with their senders: in all 3."""
    config: dict[str, Any] = FAST | boards(FAST_BOARD, FAST_BOARD, SLOW_BOARD) | {
        "num-nodes": 3, "topology": "line", "gossip": "sgp", "method": "weight",
        "modality-pattern": "image",
    }  # fmt: skip
    run_async(config, Weight, num_rounds=9, evaluate_every=9, loss_rate=loss_rate)
    assert sum(Weight.weights[k] for k in range(3)) == pytest.approx(3, rel=1e-5)
    assert len({round(Weight.weights[k], 3) for k in range(3)}) > 1
