"""Waiting for replies over a grid of Flower's kind: a clock that only sleeping moves."""

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from helpers_flower import FlowersGrid

from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.strategies import sending
from flwr_dmml.strategies.sending import send_and_wait
from flwr_dmml.transport.packing import is_packed


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class LateGrid(FlowersGrid):
    """Message k is answered k * ``every_s`` seconds after it was sent; message 0 at once."""

    def __init__(self, clock: Clock, every_s: float, refused: tuple[int, ...] = ()) -> None:
        super().__init__(InProcessGrid(lambda m, c: m, 1, {}), 0)  # type: ignore[arg-type]
        self._clock, self._every_s, self._refused = clock, every_s, refused
        self._due: dict[str, tuple[float, Message]] = {}
        self.asked: list[set[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[Any]:
        ids: list[str | None] = []
        for k, message in enumerate(messages):
            assert is_packed(message.content)
            name = f"m{k}"
            message.metadata.__dict__["_message_id"] = name
            reply = Message(RecordDict(), reply_to=message)
            self._due[name] = self._clock.now + k * self._every_s, reply
            ids.append(None if k in self._refused else name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.asked.append(set(message_ids))
        there = {k: r for k, (at, r) in self._due.items() if at <= self._clock.now}
        return [there[k] for k in message_ids if k in there]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sending, "time", clock)
    return clock


def messages(count: int) -> list[Message]:
    with server_identity(1):
        return [
            Message(RecordDict({"c": ConfigRecord({"k": k})}), 7, "query") for k in range(count)
        ]


def test_what_is_there_is_not_waited_for(clock: Clock):
    grid = LateGrid(clock, 0.0)
    assert len(send_and_wait(grid, messages(3), 60.0)) == 3
    assert clock.slept == [] and grid.asked == [{"m0", "m1", "m2"}]


def test_nothing_is_sent_and_nothing_waited_for(clock: Clock):
    grid = LateGrid(clock, 0.0)
    assert send_and_wait(grid, [], 60.0) == [] and grid.asked == []


def test_polls_become_rarer(clock: Clock):
    """0.05 s in the first second, then a twentieth of what has been waited, at most 3 s."""
    grid = LateGrid(clock, 100.0)
    assert len(send_and_wait(grid, messages(2), 1000.0)) == 2
    assert grid.asked[0] == {"m0", "m1"} and grid.asked[1:] == [{"m1"}] * (len(grid.asked) - 1)
    assert clock.slept[:20] == [0.05] * 20 and clock.slept[-1] == 3.0
    assert clock.slept == sorted(clock.slept)
    waited = 0.0
    for slept in clock.slept:
        assert slept == pytest.approx(min(max(waited / 20, 0.05), 3.0), abs=1e-9)
        waited += slept
    assert 100.0 <= waited <= 103.0 and len(clock.slept) < 120


def test_late_replies_are_left(clock: Clock):
    """Five seconds are waited to the end, not longer, and the last moment counts."""
    grid = LateGrid(clock, 2.5)
    replies = send_and_wait(grid, messages(4), 5.0)
    assert [r.metadata.reply_to_message_id for r in replies] == ["m0", "m1", "m2"]
    assert clock.now == pytest.approx(105.0) and grid.asked[-1] == {"m2", "m3"}


def test_a_message_that_was_not_accepted_is_not_waited_for(clock: Clock):
    grid = LateGrid(clock, 0.0, refused=(1,))
    assert len(send_and_wait(grid, messages(3), 60.0)) == 2
    assert grid.asked == [{"m0", "m2"}]


class HeldUp(LateGrid):
    """The second poll lasts 10 s: a reply was announced, and its sender has died."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = super().pull_messages(message_ids)
        if len(self.asked) == 2:
            self._clock.now += 10.0
        return there


def test_what_came_in_time_counts_though_a_poll_has_lasted(clock: Clock):
    grid = HeldUp(clock, 1.0)
    replies = send_and_wait(grid, messages(4), 5.0)
    assert sorted(r.metadata.reply_to_message_id for r in replies) == ["m0", "m1", "m2", "m3"]
    assert len(grid.asked) == 3
