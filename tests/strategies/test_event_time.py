"""Rounds without a beat: the order of events, what is mixed, weights, batteries, what is refused.

The devices differ by their clock alone, so a full round of a slow one, which has a quarter of the
others' clock, lasts exactly four of theirs.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import FAST, run_peers
from helpers_gossip import OnAParabola

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.clients import make_client_app
from flwr_dmml.energy.devices import PROFILES
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy, make_server_app
from flwr_dmml.strategies.energy.own_rounds import OwnRounds
from flwr_dmml.strategies.keeper import RunStoppedError
from flwr_dmml.tracking import RoundRecord
from flwr_dmml.tracking.events import DeviceRound, EventsError, read_events

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

    def after_rounds(self, *given: Any, last: bool) -> None: ...

    def happened(self, rounds: Iterable[DeviceRound]) -> None:
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
    assert first[0] == first[1]  # at 2 d and 3 d; it ends this round at 4 d


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


@pytest.mark.parametrize(("rule", "near"), [("dpsgd", 0.1), ("sgp", 0.25)])
@pytest.mark.parametrize("seed", [0, 1])  # the third device is slow, the second one is
def test_a_slow_devices_data_count_as_much_as_others(rule: str, near: float, seed: int) -> None:
    """The best number for all is (1 + 2 * 3 + 3 * 8) / 6 = 5.17, whoever is slow.

    Counted by how often devices train it would be (1 + 6 + 6) / 3.75 = 3.47 where the third is
    slow, and (1 + 1.5 + 24) / 4.5 = 5.89 where the second one is. What is left is the bias of a
    step of 0.03, larger where progress is scaled by four.
    """
    config: dict[str, Any] = FAST | boards(FAST_BOARD, FAST_BOARD, SLOW_BOARD) | {
        "num-nodes": 3, "topology": "complete", "momentum": 0.0, "learning-rate": 0.03,
        "gossip": rule, "method": "on-a-parabola", "modality-pattern": "image", "seed": seed,
        "local-iterations": 1, "clip-norm": 0.0,
    }  # fmt: skip
    _, events = run_async(config, OnAParabola, num_rounds=150, evaluate_every=150)
    assert slow_one(events) == 2 - seed
    mean = np.mean([OnAParabola.final[k] for k in range(3)])
    assert mean == pytest.approx(31 / 6, abs=near)


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


class Failing(Weight):
    """A device fails in its second round."""

    name = "failing"

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        if self.partition.partition_id == 1 and plan.server_round == 2:
            raise RuntimeError("out of luck")


def test_a_device_that_fails_costs_its_own_round_only() -> None:
    """It publishes nothing, and what had come is mixed in its next round: no weight is lost."""
    config: dict[str, Any] = FAST | {
        "num-nodes": 3, "topology": "line", "gossip": "sgp", "method": "failing",
        "modality-pattern": "image",
    }  # fmt: skip
    peers, events = run_async(config, Failing, num_rounds=4, evaluate_every=4)
    assert [(e.device, e.number) for e in events if e.failed] == [(1, 2)]
    assert "out of luck" in peers.records[1].failed[1] and peers.present == [0, 1, 2]
    mixed = {(e.device, e.number): sorted(e.letters) for e in events}
    assert mixed[1, 3] == [(0, 0), (0, 1), (2, 0), (2, 1)] and mixed[0, 3] == []
    assert sum(Weight.weights[k] for k in range(3)) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("rule", ["ios", "trimmed-mean"])
def test_robust_rules_see_the_letters_that_are_there(rule: str) -> None:
    """One of four sends noise; the others still agree with one another."""
    config = FOUR | ONE_SLOW | {
        "aggregation": rule, "assume-liars": 1, "attack.devices": "0", "attack.kind": "gaussian",
    }  # fmt: skip
    peers, _ = run_async(config, num_rounds=4)
    last = peers.records[-1]
    assert not last.failed and len(last.evaluated) == 3 and last.liars is not None
    assert last.liars.devices == [0] and last.accuracy is not None


# Batteries and radio


def test_a_battery_that_is_flat_stops_the_device() -> None:
    """One has energy for a few letters only; the others go on, mixed over what is left."""
    config = FOUR | ONE_SLOW | {
        "wireless.enabled": True, "wireless.positions": "grid", "wireless.fading": "none",
        "wireless.shadowing-db": 0.0, "energy.battery-j": 0.5,
    }  # fmt: skip
    energy = OwnRounds(
        parse_settings(config, find_parts()).settings, battery_j=np.array([0.5, 0.5, 0.5, 0.03])
    )
    peers, events = run_async(config, num_rounds=6, energy=energy, evaluate_every=1)
    records, done = peers.records, Counter(e.device for e in events)
    assert 0 < done[3] < min(done[k] for k in range(3) if k != slow_one(events))
    assert "its battery holds" in records[-1].failed[3] and peers.present == [0, 1, 2]
    left = energy.ledger.remaining_j
    spent = [sum(e.compute_j + e.radio_j for e in events if e.device == k) for k in range(4)]
    assert left + spent == pytest.approx(np.array([0.5, 0.5, 0.5, 0.03]), abs=1e-9)
    assert left.min() >= 0 and records[-1].total_j == pytest.approx(sum(spent))
    assert records[-1].battery_j == pytest.approx(dict(enumerate(left)))
    late = [e for e in events if e.start_s > max(x.end_s for x in events if x.device == 3)]
    assert late and all(3 not in e.missed for e in late)


def test_a_battery_is_spread_over_the_rounds_to_come() -> None:
    """Half of what full training takes: no device trains nothing for want of it before the end."""
    config = FOUR | ONE_SLOW | {"energy.battery-share": 0.5, "local-iterations": 8}
    _, events = run_async(config, num_rounds=6)
    fast = [e for e in events if e.device != slow_one(events)]
    assert all(e.compute_j > 0 for e in fast if e.number <= 6)


def test_a_link_that_is_down_has_no_letter() -> None:
    """Fading often denies this rate, so that some letters miss a neighbour."""
    config = FOUR | ONE_SLOW | {"wireless.enabled": True, "wireless.min-rate-bps": 1.1e7}
    peers, events = run_async(config, num_rounds=6)
    assert any(e.missed for e in events) and any(not e.missed for e in events)
    assert not peers.records[-1].failed
    for e in events:
        assert e.end_s > e.start_s and (len(e.missed) == 3) == (e.radio_j == 0)


# What ends a run, and what is refused


class Enough(PeerStrategy):
    def stop(self, record: RoundRecord) -> str:
        return "enough" if record.round == 2 else ""


def test_a_strategy_of_ones_own_ends_it() -> None:
    peers, _ = run_async(FOUR | ONE_SLOW, num_rounds=9, kind=Enough)
    assert peers.num_rounds == len(peers.records) == peers.rounds_done < 9
    assert peers.records[-1].accuracy is not None


# Checkpoints


def run_in(folder: Path, name: str, stop_after: int = 0, **config: Any) -> Path:
    """Run in a folder, and stop when that is asked for so many times."""
    asked = count(1)
    app = FlowerApp({}, make_server_app(), make_client_app())
    given = {"rounds": "async", "run-dir": str(folder), "run-name": name, **config}
    run_app(app, 4, given, stopping=lambda: next(asked) == stop_after)
    return folder / name


def left_in(run: Path) -> dict[str, bytes]:
    """Return what a run has left that must not depend on whether it was stopped."""
    found = [*run.glob("*/*.jsonl"), *run.glob("*/models/*"), run / "dpsgd" / "confusion.json"]
    return {str(p.relative_to(run)): p.read_bytes() for p in found if p.name != "timing.jsonl"}


@pytest.mark.parametrize("rule", ["leaky-d2", "sgp"])
def test_a_resumed_run_is_that_which_was_never_stopped(rule: str, tmp_path: Path) -> None:
    """Letters are on their way and lost, batteries go down, and a record waits for the slow one."""
    config = FOUR | ONE_SLOW | {
        "gossip": rule, "num-server-rounds": 7, "evaluate-every": 2, "checkpoint-every": 2,
        "loss-rate": 0.2, "wireless.enabled": True, "energy.battery-share": 0.6,
        "allocation.rule": "max-min", "keep-models": True,
    }  # fmt: skip
    whole = run_in(tmp_path, "whole", **config)
    for stop_after in (1, 2, 4):
        name = f"stopped-{stop_after}"
        with pytest.raises(
            RunStoppedError, match=rf"after round \d+; go on with --resume .*{name}"
        ):
            run_in(tmp_path, name, stop_after, **config)
        end = json.loads((tmp_path / name / "end.json").read_text())
        assert end["ended"] == "stopped"
        run_in(tmp_path, "", resume=name, **config)
        assert left_in(tmp_path / name) == left_in(whole)
    assert {"dpsgd/events.jsonl", "dpsgd/confusion.json"} < left_in(whole).keys()


def test_a_run_goes_on_from_a_checkpoint_before_its_last_line(tmp_path: Path) -> None:
    """What was killed had written more lines, and half of one: they are written again."""
    config = FOUR | ONE_SLOW | {"num-server-rounds": 5, "checkpoint-every": 2, "evaluate-every": 1}
    whole = run_in(tmp_path, "whole", **config)
    with pytest.raises(RunStoppedError, match="after round 2;"):
        run_in(tmp_path, "killed", 2, **config)
    for file in ("metrics.jsonl", "events.jsonl"):
        written = (whole / "dpsgd" / file).read_bytes()
        (tmp_path / "killed" / "dpsgd" / file).write_bytes(written[:-20])
    run_in(tmp_path, "", resume="killed", **config)
    assert left_in(tmp_path / "killed") == left_in(whole)


class Choosy(PeerStrategy):
    def participants(self, server_round: int, connected: Any) -> Any:
        return list(connected)[:2]


def test_hooks_about_rounds_of_all_are_refused() -> None:
    with pytest.raises(MethodError, match=r"Choosy.participants is about rounds of all devices"):
        run_async(FOUR, kind=Choosy)


REFUSED = {
    "k-gt": "'k-gt': it keeps a sum over devices",
    "mt": "'mt': it keeps a sum over devices",
    "gut": "'gut': it keeps a sum over devices",
    "d2": "'d2': it keeps a sum over devices",
    "relaysgd": "'relaysgd': each of its messages continues",
    "choco": "'choco': it sends changes",
    "beer": "'beer': it sends changes",
    "motef": "'motef': it sends changes",
    "decentlam": "'decentlam': its correction compares",
    "sheaf-dmfl": "'sheaf-dmfl': its maps belong to messages of one round",
}


@pytest.mark.parametrize("rule", sorted(n for n, r in find_gossip().items() if r.letters == "beat"))
def test_rules_that_need_a_beat_are_refused_by_name(rule: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_settings({"method": "dpsgd", "rounds": "async", "gossip": rule}, find_parts())
    line = next(part for part in str(raised.value).splitlines() if "rounds = 'async'" in part)
    known = REFUSED.get(rule, "it keeps a sum over devices")
    assert known in line and "allowed: dpsgd, dsgdm" in line


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"couriers": "forward"}, "couriers = 'forward'"),
        ({"final-merge": "owners"}, "final-merge = 'owners'"),
        ({"topology": "epidemic", "topology-degree": 3}, "topology = 'epidemic'"),
        ({"allocation.rule": "sync-only"}, "allocation.rule = 'sync-only'"),
        ({"wireless.enabled": True, "wireless.shared-band-hz": 1e6}, "shared-band-hz = 1000000.0"),
        ({"energy.harvesting-w": 1.0, "energy.battery-j": 1.0}, "energy.harvesting-w = 1.0"),
        ({"energy.meter": "auto"}, "energy.meter = 'auto'"),
        ({"privacy.dp": "sample", "privacy.sigma": 1.0}, "privacy.dp = 'sample'"),
        ({"privacy.zip-noise": 0.1}, "privacy.zip-noise = 0.1"),
        ({"privacy.secure-sums": True}, "privacy.secure-sums = True"),
        ({"gossip": "sgp", "exchange.precision": "int8"}, "exchange.precision = 'int8'"),
        ({"method": "idkd", "public.dataset": "digits"}, "the method 'idkd' has phases"),
    ],
)
def test_what_needs_a_beat_is_refused(settings: dict[str, Any], what: str) -> None:
    given = {"method": "dpsgd", "rounds": "async", **settings}
    with pytest.raises(SettingsError) as raised:
        parse_settings(given, find_parts())
    (line,) = (part for part in str(raised.value).splitlines() if what in part and "async" in part)
    assert "allowed: " in line
    with_beat = {k: v for k, v in given.items() if k != "rounds"}
    try:
        parse_settings(with_beat, find_parts())
    except SettingsError as error:
        assert what not in str(error) or "async" not in str(error)


def test_dmml_kd_goes_without_couriers(tmp_path: Path) -> None:
    config = parse_settings({"rounds": "async"}, find_parts())
    assert config.couriers_of("dmml-kd") == "off"
    assert parse_settings({}, find_parts()).couriers_of("dmml-kd") == "forward"


# What is left


def test_a_broken_line_of_events_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"device": 0, "number": 1, "start_s": 0, "sends_s": 1, "end_s": 1})
    path.write_text(f"{line}\n{line[:20]}")
    assert len(read_events(path)) == 1  # killed while it wrote
    path.write_text(f"{line[:20]}\n{line}\n")
    with pytest.raises(EventsError, match=r"events.jsonl, line 1: "):
        read_events(path)
