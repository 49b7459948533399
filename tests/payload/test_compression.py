"""Fewer bytes: numbers by hand, what a peer may send instead, and whole runs on the engines."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers, run_together
from helpers_direct import Shelf
from helpers_resume import metrics, run, stopped_and_resumed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD, Learner, find_methods
from flwr_dmml.clients.direct import run_directly
from flwr_dmml.graph.topology import Ring
from flwr_dmml.learning.together import likeness
from flwr_dmml.payload.blocks import addressed, flatten, unaddressed
from flwr_dmml.payload.coding import (
    CHUNK,
    Precision,
    dequantise,
    largest,
    quantise,
    read_places,
    write_places,
)
from flwr_dmml.payload.compression import Compressor
from flwr_dmml.payload.plan import Inbox, Payload, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.transport import Relay, size_bytes
from flwr_dmml.transport.letter import Letter, read_letter, write_letter
from flwr_dmml.transport.messages import pack, unpack

INT8: dict[str, Any] = {"exchange.precision": "int8"}
QUARTER: dict[str, Any] = {"exchange.top-k": 0.25}
BOTH = INT8 | QUARTER


def begun(compressor: Compressor, **start: list[float]) -> Compressor:
    """Return it when its first round has begun, from these blocks."""
    compressor.decode({}, {name: torch.tensor(values).float() for name, values in start.items()}, 0)
    return compressor


def opened(compressor: Compressor, payload: Payload, own: list[float]) -> Payload:
    """Return what a receiver whose block ``b`` is ``own`` reads of a payload."""
    inbox, why = compressor.decode({7: payload}, {"b": torch.tensor(own).float()}, 3)
    assert not why
    return inbox[7]


# ---- rounding -------------------------------------------------------------------------------


def test_int8_by_hand():
    """The largest, 254, is 127; so 1 stands for 2, and 5 is 2.5 of them, rounded to even."""
    values, scale = quantise(torch.tensor([254.0, -254.0, 0.0, 5.0, -3.1]), "int8")
    assert scale is not None and scale.tolist() == [2.0]
    assert values.dtype == torch.int8 and values.tolist() == [127, -127, 0, 2, -2]
    assert dequantise(values, scale).tolist() == [254.0, -254.0, 0.0, 4.0, -4.0]


def test_every_chunk_has_its_scale():
    x = torch.cat([torch.full((CHUNK,), 127.0), torch.full((3,), 0.127), torch.zeros(0)])
    values, scale = quantise(x, "int8")
    assert scale is not None and scale.tolist() == pytest.approx([1.0, 0.001])
    assert set(values.tolist()) == {127}
    assert torch.allclose(dequantise(values, scale), x)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_int8_is_at_most_half_a_step_away(numbers: list[float]):
    x = torch.tensor(numbers)
    values, scale = quantise(x, "int8")
    assert scale is not None
    away = (dequantise(values, scale) - x).abs().max()
    assert float(away) <= float(scale) * 0.5001 + 1e-37


@pytest.mark.parametrize("numbers", [[0.0, 0.0], [1e-45, -1e-45], [1e-39, 0.0]])
def test_what_is_too_small_for_a_scale_is_finite(numbers: list[float]):
    values, scale = quantise(torch.tensor(numbers), "int8")
    assert torch.allclose(dequantise(values, scale), torch.tensor(numbers), atol=1e-37)


def test_float16_by_hand():
    """65504 is its largest number; between 2048 and 4096 it has the even ones."""
    values, scale = quantise(torch.tensor([1.5, 2049.0, 1e6, -1e6]), "float16")
    assert scale is None and values.dtype == torch.float16
    assert values.tolist() == [1.5, 2048.0, 65504.0, -65504.0]


def test_float32_is_as_it_is():
    x = torch.tensor([1 / 3])
    assert quantise(x, "float32") == (x, None)


def test_without_settings_nothing_is_touched():
    compressor, payload = Compressor(), {"b": torch.ones(2), "b#scale": torch.ones(1)}
    assert not compressor.active and compressor.encode(payload, {"b": 2}) is payload
    inbox: Inbox = {1: payload}
    assert compressor.decode(inbox, {"b": torch.tensor([1.0, 2.0])}, 0) == (inbox, {})
    assert compressor.state() == {}


# ---- error feedback -------------------------------------------------------------------------


def test_error_feedback_by_hand():
    """Of x = (127, 0.4) 0.4 is 0, then 0.4 + 0.4 is 1, 0.4 - 0.2 is 0, 0.4 + 0.2 is 1."""
    compressor, seen = Compressor("int8"), list[int]()
    for _ in range(5):
        sent = compressor.encode({"b": torch.tensor([127.0, 0.4])}, {"b": 2})
        assert sent["b#scale"].tolist() == [1.0]
        seen.append(int(sent["b"][1]))
    assert seen == [0, 1, 0, 1, 0]  # 2 of 5: 0.4


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_mean_of_what_is_sent_tends_to_what_is_to_be_sent(precision: Precision):
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    compressor, total, first = Compressor(precision), torch.zeros(3000), 0.0
    for t in range(1, 201):
        sent = compressor.encode({"b": x}, {"b": 3000})
        total += dequantise(sent["b"], sent.get("b#scale"))
        away = float((total / t - x).abs().max())
        first = first or away
    assert away < first / 50, "rounding alone would stay where it was"


def test_what_float16_cannot_hold_is_sent_later():
    compressor = Compressor("float16")
    assert compressor.encode({"b": torch.tensor([65604.0])}, {"b": 1})["b"].tolist() == [65504.0]
    assert compressor.encode({"b": torch.tensor([28.0])}, {"b": 1})["b"].tolist() == [128.0]


def test_its_state_goes_on_where_it_was():
    x = torch.randn(50, generator=torch.Generator().manual_seed(1))
    one, other = begun(Compressor("int8", 0.3), b=[0.0] * 50), Compressor("int8", 0.3)
    for _ in range(3):
        one.encode({"b": x}, {"b": 50})
    other.load_state({"encoder.audio": x, "memory.b": x} | one.state())
    sent, again = (c.encode({"b": 2 * x}, {"b": 50}) for c in (one, other))
    assert sent.keys() == again.keys() == {"b", "b#scale", "b#at"}
    assert all(torch.equal(sent[name], again[name]) for name in sent)
    other.load_state({})
    assert other.state() == {}


# ---- the largest changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "count", "places"),
    [
        ([3, 1, 2], 1, [0]),
        ([3, 1, 2], 2, [0, 2]),
        ([3, 1, 2], 3, [0, 1, 2]),
        ([0, 0, 0, 0], 2, [0, 1]),
        ([1, 5, 1, 1], 3, [0, 1, 2]),
        ([float("inf"), 1, float("inf")], 1, [0]),
    ],
)
def test_the_largest_and_of_equals_the_first(x: list[float], count: int, places: list[int]):
    assert largest(torch.tensor(x, dtype=torch.float32), count).tolist() == places


def test_the_changes_that_are_sent_by_hand():
    """Half of four entries, from (1, 1, 1, 1); 0b0110 and 0b1001 in a byte's upper half."""
    compressor = begun(Compressor(top_k=0.5), b=[1, 1, 1, 1])
    sent = compressor.encode({"b": torch.tensor([1.5, 3.0, -2.0, 1.6])}, {"b": 4})
    assert sent["b"].tolist() == [3.0, -2.0] and sent["b#at"].tolist() == [0b0110_0000]
    # 3.1 and -2.1 have gone 0.1 since they were sent; 1.5 and 1.6 have 0.5 and 0.6 to go
    sent = compressor.encode({"b": torch.tensor([1.5, 3.1, -2.1, 1.6])}, {"b": 4})
    assert sent["b"].tolist() == pytest.approx([1.5, 1.6])
    assert sent["b#at"].tolist() == [0b1001_0000]
    assert opened(compressor, sent, [9, 8, 7, 6])["b"].tolist() == pytest.approx([1.5, 8, 7, 1.6])


def test_every_entry_that_moves_is_sent_in_time():
    """A tenth of 100 entries that all grow alike: each is sent once in ten rounds."""
    compressor, times = begun(Compressor(top_k=0.1), b=[0.0] * 100), torch.zeros(100)
    for t in range(1, 21):
        sent = compressor.encode({"b": torch.full((100,), float(t))}, {"b": 100})
        times[read_places(sent["b#at"], 100)] += 1
    assert times.tolist() == [2.0] * 100


def test_at_least_one_entry_is_sent():
    compressor = begun(Compressor(top_k=0.01), b=[0.0, 0.0])
    assert compressor.encode({"b": torch.tensor([1.0, 2.0])}, {"b": 2})["b"].tolist() == [2.0]


def test_int8_and_the_largest_changes_together():
    """Sent are 254 and 5 of (254, 5, 1, 0), as 127 and 2 times 2; what is left of 5 goes along."""
    compressor = begun(Compressor("int8", 0.5), b=[0.0] * 4)
    sent = compressor.encode({"b": torch.tensor([254.0, 5.0, 1.0, 0.0])}, {"b": 4})
    assert sent["b"].tolist() == [127, 2] and sent["b#at"].tolist() == [0b1100_0000]
    assert opened(compressor, sent, [0, 0, 0, 9])["b"].tolist() == [254.0, 4.0, 0.0, 9.0]
    # 5 -> 6 has gone 2 since 4 was sent, 0 -> 127 more; 6 + 1 is 7 times 1, not 6
    sent = compressor.encode({"b": torch.tensor([254.0, 6.0, 1.0, 127.0])}, {"b": 4})
    assert sent["b"].tolist() == [7, 127] and sent["b#at"].tolist() == [0b0101_0000]


@settings(deadline=None)
@given(st.data())
def test_places_are_read_as_they_were_written_in_fewer_bytes(data: st.DataObject):
    length = data.draw(st.integers(1, 300))
    places = sorted(data.draw(st.sets(st.integers(0, length - 1))))
    written = write_places(torch.tensor(places, dtype=torch.long), length)
    assert read_places(written, length).tolist() == places
    assert written.nbytes == min(4 * len(places), ceil(length / 8))


# ---- payloads -------------------------------------------------------------------------------


def test_statistics_and_blocks_that_are_not_sent_are_left_alone():
    compressor = begun(Compressor("int8", 0.5), a=[0, 0], b=[0, 0])
    payload = {"a": torch.empty(0), "b": torch.ones(2), "stats.speeds": torch.ones(2)}
    sent = compressor.encode(payload, {"a": 2, "b": 2})
    assert sent["a"] is payload["a"] and sent["stats.speeds"] is payload["stats.speeds"]
    assert set(sent) == {"a", "b", "b#scale", "b#at", "stats.speeds"}
    inbox, why = compressor.decode({1: sent}, {"a": torch.ones(2), "b": torch.ones(2)}, 0)
    assert not why and inbox[1]["a"].shape == (0,) and inbox[1]["b"].tolist() == [1, 1]
    assert inbox[1]["stats.speeds"] is sent["stats.speeds"]


def test_what_is_addressed_and_what_is_behind_a_block():
    """Each recipient has its own error feedback; the third number is sent as it is."""
    compressor = Compressor("int8")
    both = {addressed("b", 3): torch.tensor([127.0, 0.4, 2.3]), addressed("b", 4): torch.zeros(3)}
    for expected in ([127.0, 0.0], [127.0, 1.0]):
        sent = compressor.encode(both, {"b": 2})
        assert {unaddressed(name) for name in sent} == {"b"}
        read = opened(compressor, sent, [0, 0])
        assert read.keys() == {"b@3"} and read["b@3"].tolist() == pytest.approx([*expected, 2.3])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("top_k", [1.0, 0.25, 0.01])
def test_through_a_letter_and_the_relay(precision: Precision, top_k: float):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    compressor = begun(Compressor(precision, top_k), b=[0.0] * 5000)
    sent = compressor.encode({"b": x}, {"b": 5000})
    letter = read_letter(write_letter(Letter("r", 1, 1, sent)))
    read = opened(compressor, dict(letter.tensors), [0.0] * 5000)["b"]
    relayed = opened(compressor, unpack(pack(sent)), [0.0] * 5000)["b"]
    assert read.dtype == torch.float32 and torch.equal(read, relayed)
    count, step = max(1, round(top_k * 5000)), float(x.abs().max()) / 127 / 2
    biggest = x.abs().argsort(descending=True)[:count]
    assert torch.allclose(read[biggest], x[biggest], atol=step * 1.001)
    rest = torch.ones(5000, dtype=torch.bool)
    rest[biggest] = False
    assert bool((read[rest] == 0).all())


@pytest.mark.parametrize(
    ("precision", "top_k", "size"),
    [
        ("float32", 1.0, 4 * 3000 + 4 * 10),
        ("float16", 1.0, 2 * 3000 + 2 * 10),
        ("int8", 1.0, 3000 + 4 * 3 + 10 + 4),
        ("float32", 0.25, 4 * 750 + 375 + 4 * 2 + 2),  # 2.5 entries are 2
        ("int8", 0.01, 30 + 4 + 4 * 30 + 1 + 4 + 2),
    ],
)
def test_sizes_by_hand(precision: Precision, top_k: float, size: int):
    compressor = begun(Compressor(precision, top_k), a=[0.0] * 3000, b=[0.0] * 10)
    sent = compressor.encode({"a": torch.randn(3000), "b": torch.randn(10)}, {"a": 3000, "b": 10})
    assert sum(tensor.nbytes for tensor in sent.values()) == size


def test_the_relay_hands_on_what_belongs_to_a_block():
    relay, own = Relay(), ("b", "b#scale", "b#at", "c@2", "c@2#at", "c@5", "c@5#at", "d#at", "d")
    relay.take({1: pack({name: torch.ones(1) for name in (*own, "stats.speeds")})})
    plan = Plan(2, 1, neighbours=(1,), weights={"b": (0.5, 0.5), "c": (0.5, 0.5), "d": (1.0, 0.0)})
    got = relay.inbox(plan, 2)[1]
    assert set(got) == {"b", "b#scale", "b#at", "c@2", "c@2#at", "stats.speeds"}


# ---- what a peer may send instead -----------------------------------------------------------


def bits(*places: int, length: int = 2000) -> Tensor:
    return write_places(torch.tensor(places), length)


def index(*places: int) -> Tensor:
    return torch.tensor(places, dtype=torch.int32)


TWO, SCALE = torch.tensor([1, 2], dtype=torch.int8), torch.ones(1)
GOOD: Payload = {"b": TWO, "b#scale": SCALE, "b#at": index(5, 9)}


class TwoBlocks(DPSGD):
    """A block of 2,000 numbers, and one of a single number."""

    def build_model(self) -> nn.Module:  # type: ignore[override]
        lengths = {"b": 2000, "c": 1}
        return nn.ModuleDict({b: nn.Linear(n, 1, bias=False) for b, n in lengths.items()})

    def blocks(self) -> dict[str, nn.Module]:
        return dict(self.model.items())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"b": None}, "is missing"),
        ({"b#at": None}, "lacks b#at"),
        ({"b#scale": None}, "lacks b#scale"),
        ({"b": TWO.float()}, "has type torch.float32 instead of torch.int8"),
        ({"b": TWO.reshape(1, 2)}, "has shape (1, 2): not of one dimension"),
        ({"b": torch.tensor(3, dtype=torch.int8)}, "has shape (): not of one dimension"),
        ({"b": TWO[:1]}, "has 1 numbers for 2 places"),
        ({"b#at": index(5, 2000)}, "has a place outside of its 2000 numbers"),
        ({"b#at": index(-1, 9)}, "has a place outside of its 2000 numbers"),
        ({"b#at": index(5, 5)}, "has places that are not in order, each once"),
        ({"b#at": index(9, 5)}, "has places that are not in order, each once"),
        ({"b#at": index(5, 9).long()}, "has places of type torch.int64 and shape (2,)"),
        ({"b#at": index(5, 9).reshape(2, 1)}, "has places of type torch.int32 and shape (2, 1)"),
        ({"b#at": torch.zeros(249, dtype=torch.uint8)}, "has a mask of 249 bytes for 2000 numbers"),
        ({"b#at": torch.full((250,), 255, dtype=torch.uint8)}, "has 2 numbers for 2000 places"),
        ({"b#scale": torch.ones(2)}, "has 2 scales for 2 numbers"),
        ({"b#scale": torch.ones(0)}, "has 0 scales for 2 numbers"),
        ({"b#scale": torch.ones(1).double()}, "has type torch.float64 instead of torch.float32 in"),
        ({"b#scale": torch.tensor(1.0)}, "has shape () in its #scale"),
        ({"b#scale": SCALE * torch.nan}, "has a scale that is negative, infinite or NaN"),
        ({"b#scale": SCALE * torch.inf}, "has a scale that is negative, infinite or NaN"),
        ({"b#scale": -SCALE}, "has a scale that is negative, infinite or NaN"),
        ({"b#scale": SCALE * 3e38}, "holds NaN or infinite values"),
        ({"b#scale": SCALE * 1e6}, "holds values beyond 1e+06"),
        ({"b#more": torch.ones(1)}, "has shape (2001,) instead of (2000,)"),
        ({"b#more": torch.ones(1).half()}, "has type torch.float16 instead of torch.float32 in"),
        ({"b": torch.empty(0)}, "has shape (0,) instead of (2000,)"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_used(
    changed: dict[str, Tensor | None], words: str
):
    """Block b is of the hostile sender 7; its block c and what 8 sends are mixed all the same."""
    base = make_learner({**FAST, "method": "dpsgd", "num-nodes": 2, **BOTH})
    learner = TwoBlocks(base.partition, base.settings, base.options)
    learner.load_state({"b": torch.ones(2000), "c": torch.zeros(1)})
    blocks = learner.blocks()
    given = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    given |= {
        "c": torch.tensor([127], dtype=torch.int8),
        "c#scale": SCALE,
        "c#at": bits(0, length=1),
    }
    weights = {"b": (0.5, 0.25, 0.25), "c": (0.5, 0.25, 0.25)}
    fine = GOOD | {"c": torch.zeros(1, dtype=torch.int8), "c#scale": SCALE, "c#at": index(0)}
    plan = Plan(2, 0, neighbours=(7, 8), weights=weights)
    outcome = learner.run_round(plan, {7: given, 8: dict(fine)})
    (line,) = outcome.rejected
    assert line.startswith(f"7: block b {words}")
    assert flatten(blocks["c"]).tolist() == pytest.approx([0.25 * 127])
    expected = torch.ones(2000)
    expected[9] = 0.75 + 0.25 * 2  # 8 has sent 1 and 2; 1 is what is there
    assert torch.allclose(flatten(blocks["b"]), expected)


def test_a_mask_may_not_go_beyond_its_block():
    with pytest.raises(ValueError, match="has a place beyond its 5 numbers"):
        read_places(torch.tensor([0b0000_0100], dtype=torch.uint8), 5)


@settings(deadline=None)
@given(st.data())
def test_rubbish_never_stops_the_receiver(data: st.DataObject):
    dtypes = st.sampled_from([torch.int8, torch.uint8, torch.int32, torch.float32, torch.bool])
    names = st.sampled_from(["b", "b#at", "b#scale", "b#more", "b#", "#at", "x", "b@3", "b@3#at"])
    shapes = st.sampled_from([(), (0,), (1,), (2,), (5,), (1, 1)])
    payload: Payload = {}
    for name in data.draw(st.sets(names)):
        values = torch.full(data.draw(shapes), data.draw(st.integers(-9, 9)) % 256)
        payload[name] = values.to(data.draw(dtypes))
    compressor = Compressor(data.draw(st.sampled_from(["float16", "int8"])), 0.5)
    inbox, why = compressor.decode({1: payload}, {"b": torch.tensor([1.0, 2.0])}, 3)
    assert inbox[1].keys() <= {"b", "b@3"} and all(" block b " in line for line in why)


def both_settings(sender: dict[str, Any], receiver: dict[str, Any]) -> list[str]:
    """Return what a device rejects of another one that has other settings."""
    base = {**FAST, "num-nodes": 2, "method": "dpsgd", "modality-pattern": "image"}
    one, other = make_learner({**base, **sender}, 0), make_learner({**base, **receiver}, 1)
    payload = one.run_round(Plan(1, 1), {}).payload
    weights = dict.fromkeys(other.blocks(), (0.5, 0.5))
    rejected = other.run_round(Plan(2, 0, neighbours=(0,), weights=weights), {0: payload}).rejected
    assert len(rejected) in (0, len(other.blocks()))
    return [line.partition("encoder.image ")[2] for line in rejected if "encoder.image" in line]


def test_devices_with_other_settings_reject_each_other():
    half = {"exchange.precision": "float16"}
    assert both_settings(INT8, INT8) == both_settings(BOTH, BOTH) == both_settings({}, {}) == []
    assert both_settings(INT8, {}) == ["has type torch.int8 instead of torch.float32"]
    assert both_settings({}, INT8) == ["has type torch.float32 instead of torch.int8"]
    assert both_settings(half, INT8) == ["has type torch.float16 instead of torch.int8"]
    assert both_settings({}, QUARTER) == ["lacks encoder.image#at"]
    (words,) = both_settings(QUARTER, {})
    assert words.startswith("has shape (")


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"exchange.precision": "int4"}, "'float32', 'float16' or 'int8'"),
        ({"exchange.top-k": 0.0}, "exchange.top-k = 0.0: Input should be greater than 0"),
        ({"exchange.top-k": 1.5}, "exchange.top-k = 1.5: Input should be less than or equal to 1"),
        (
            {"method": "relaysgd", "topology": "line", **QUARTER},
            "exchange.top-k = 0.25: the gossip rule 'relaysgd'",
        ),
    ],
)
def test_settings_that_cannot_be(config: dict[str, Any], words: str):
    with pytest.raises(SettingsError, match=words):
        parse_settings(config, find_parts())


# ---- whole runs -----------------------------------------------------------------------------


EVERY = [(name, how) for name in find_methods() for how in (INT8, QUARTER)]
for _whole in ("relaysgd", "d2"):
    EVERY.remove((_whole, QUARTER))  # refused, see above


@pytest.mark.parametrize(("method", "how"), EVERY, ids=str)
def test_every_method(method: str, how: dict[str, Any], caplog: pytest.LogCaptureFixture):
    caplog.set_level("WARNING", logger="flwr")
    float32 = {"exchange.precision": "float32"}  # what some methods do not choose
    config = {**FAST, **float32, "num-nodes": 3, "topology": "line", "method": method, **how}
    config |= {"num-server-rounds": 3, "modality-pattern": "audio+image,audio+image,audio"}
    config |= {"kd.start": 0.0, "kd.exchange-every": 2, "idkd.start": 0.0, "idkd.exchange-every": 2}
    config |= {"modality-mirror.uni-modal": 0.3, "modality-mirror.fusion": 0.4}
    options = parse_settings(config, find_parts()).options[method]
    peers = run_peers(config, num_rounds=3, options=options, evaluate_every=1)
    assert not any(record.failed for record in peers.records) and "rejects" not in caplog.text
    assert all(record.accuracy is not None for record in peers.records)
    sent = 0
    for partition, record in peers.exchange.payloads.items():
        lengths = peers.roster.members[partition].blocks
        for name, x in unpack(record).items():
            if name.startswith("stats.") or "#" in name or not x.numel():
                continue
            sent += 1
            whole = lengths[unaddressed(name)]
            assert len(x) == (whole if how is INT8 else max(1, round(0.25 * whole)))
            assert x.dtype == (torch.int8 if how is INT8 else torch.float32)
    assert sent >= 2


@pytest.mark.parametrize("method", ["dmml-kd", "modality-mirror"])
def test_the_same_numbers_after_a_resume_and_in_two_processes(method: str, tmp_path: Path):
    pytest.importorskip("ray", reason="workers need Ray")
    config: dict[str, Any] = {"method": method, **BOTH}
    whole = metrics(run(tmp_path, "whole", **config))
    assert whole == metrics(stopped_and_resumed(tmp_path, 2, **config))
    assert whole == metrics(run(tmp_path, "sharded", workers=2, **config))
    assert whole != metrics(run(tmp_path, "plain", method=method))


def test_letters_give_the_numbers_of_the_relay():
    """A letter also holds the encoder of a modality that its reader does not have."""
    config = {**FAST, "num-nodes": 2, "method": "dpsgd", **BOTH}
    config["modality-pattern"] = "audio+image,image"
    payload = make_learner(config, 0).run_round(Plan(1, 1), {}).payload
    reader, again = make_learner(config, 1), make_learner(config, 1)
    assert "encoder.audio" in payload and "encoder.audio" not in reader.blocks()
    weights = dict.fromkeys(reader.blocks(), (0.5, 0.5))
    plan = Plan(2, 2, evaluate=True, neighbours=(0,), weights=weights)
    shelf = Shelf({(0, 1): read_letter(write_letter(Letter("7", 0, 1, payload)))})
    (directly,), _ = run_directly(reader, [plan], {0: ""}, shelf, "7", {})
    relay = Relay()
    relay.take({0: pack(payload)})
    relayed = again.run_round(plan, {0: unpack(relay.inbox(plan, 1)[0])})
    assert not directly.rejected and not relayed.rejected
    assert relayed.metrics.items() <= directly.metrics.items()
    assert relayed.payload.keys() == directly.payload.keys()
    assert all(torch.equal(x, directly.payload[name]) for name, x in relayed.payload.items())


def test_devices_that_compress_can_be_trained_together():
    base = {**FAST, "method": "dpsgd", "modality-pattern": "image", **INT8}
    alone, together = ([make_learner(base, k) for k in range(3)] for _ in range(2))
    assert len({likeness(learner, Plan(1, 2)) for learner in together} - {None}) == 1
    results = run_together(together, [Plan(1, 2)] * 3)
    for learner, result in zip(alone, results, strict=True):
        assert not isinstance(result, Exception)
        expected = learner.run_round(Plan(1, 2), {}).payload
        assert result.payload.keys() == expected.keys()
        for name, sent in expected.items():
            assert result.payload[name].dtype == sent.dtype
            assert torch.equal(result.payload[name], sent), name


def test_the_first_round_is_billed_by_the_bytes_that_it_sends():
    """Before anything was sent: what the devices say is what they then send."""
    for how in ({}, INT8, BOTH):
        config = {**FAST, "num-nodes": 3, "method": "dpsgd", "modality-pattern": "image", **how}
        peers = run_peers(config, num_rounds=1)
        learner: Learner = make_learner(config)
        members = peers.roster.members
        bits_planned = peers.planner.payload_bits({}, Ring().graph(3))
        payload = learner.run_round(Plan(1, 1), {}).payload
        sent = size_bytes(pack(payload))
        assert [members[p].payload_bytes for p in range(3)] == [sent] * 3
        assert bits_planned.tolist() == [8 * sent] * 3
        assert peers.exchange.expected_sizes([1])[1] == sent
