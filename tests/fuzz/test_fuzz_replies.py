"""Replies of a device that says anything at all: the run goes on, and its report can be made."""

import json
import logging
import shutil
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from fuzzing import UNCHANGED, fuzz
from helpers_liars import (
    EVIL,
    LIAR,
    MANY,
    NO_ARRAY,
    Lying,
    kind_of,
    lines_of,
    run_four,
    stored,
    with_header,
)

from flwr_dmml.report import read_run, render_page, report_sections
from flwr_dmml.strategies.member import read_member
from flwr_dmml.strategies.reasons import ReplyError
from flwr_dmml.transport.messages import ABOUT

KINDS = "hello", "first", "train", "state", "closing"
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 7, 1 << 31, (1 << 63) - 1, -(1 << 63), 0.0, -0.5, 0.5)
NUMBERS += (1.0, 1e-320, 1e30, 1e308, -1e308, nan, inf, -inf)
TEXTS = "", " ", "a", "image", "audio", "head.common", "[/x]", "[red]", "<b>", "../..", "1", EVIL
TEXTS += ("0:x", "é", "\u202e", "a" * 5000, "@1", "#", "<1", "stats.x", "9" * 400)
VALUES = (*NUMBERS, *TEXTS, True, False, b"", b"\xff" * 100)
ARRAYS: tuple[Array, ...] = (
    NO_ARRAY,
    with_header(MANY),
    with_header("(-1,)"),
    *map(stored, (np.zeros(0, np.float32), np.zeros(1 << 20, np.float32), np.float32(1))),
    *map(stored, (np.full(30, nan, np.float32), np.full(30, 1e30), np.array(["a"]))),
)


def spoil(content: RecordDict, random: Random) -> None:
    """Make one to four changes of a reply's content; it stays of the types that Flower carries."""
    for _ in range(random.choice((1, 1, 2, 4))):
        name = random.choice(list(content) or [ABOUT])
        record = content.get(name, ConfigRecord())
        if random.random() < 0.05:
            content.pop(name, None)
            continue
        record = content[name] = record.copy()
        key = random.choice([*record, *record, random.choice((*TEXTS[2:], "test.accuracy"))])
        if key in record and random.random() < 0.1:
            del record[key]
        elif isinstance(record, MetricRecord):
            record[key] = _number(random) if random.random() < 0.8 else _several(random, NUMBERS)
        elif isinstance(record, ConfigRecord):
            record[key] = _config(record.get(key), random)
        else:
            record[key] = random.choice(ARRAYS)


def _number(random: Random) -> Any:
    return random.choice(NUMBERS)


def _several(random: Random, values: tuple[Any, ...]) -> list[Any]:
    """Return a list of values of one type."""
    one = random.choice(values)
    alike = [v for v in values if type(v) is type(one)]
    return [random.choice(alike) for _ in range(random.choice((1, 2, 3, 100)))]


def _config(there: Any, random: Random) -> Any:
    """Return any value, often one like that which is there; of a list often another entry."""
    if isinstance(there, list) and there and random.random() < 0.7:
        alike = [v for v in VALUES if type(v) is type(there[0])]
        place = random.randrange(len(there))
        return [*there[:place], random.choice(alike), *there[place + 1 :]]
    if random.random() < 0.3:
        return _several(random, VALUES)
    alike = [v for v in VALUES if type(v) is type(there)]
    return random.choice(alike if alike and random.random() < 0.6 else VALUES)


class Talker(Lying):
    """Device 1 spoils some of its replies, of the kinds that its draws say."""

    def __init__(self, data: bytes) -> None:
        super().__init__("", None)
        self._random = Random(data)
        self._kinds = self._random.sample(KINDS, self._random.choice((1, 1, 2)))
        self._honest = data == UNCHANGED

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._app(message, context)
        lies = self.is_liar(context) and kind_of(message) in self._kinds and not self._honest
        if lies and reply.has_content():
            spoil(reply.content, self._random)
        return reply


def run(folder: Path, data: bytes) -> None:
    """Run four devices of which one talks, and write the run's page."""
    shutil.rmtree(folder / "x", ignore_errors=True)
    random = Random(data)
    power = {"energy.battery-share": 0.5, "wireless.enabled": True}
    power |= {"allocation.rule": random.choice(("uniform", "max-min"))}
    pattern = random.choice(("image", "image,image,audio,audio"))
    given = (power if random.random() < 0.5 else {}) | {"modality-pattern": pattern}
    method = run_four(folder, Talker(data), **given)
    lines, end = lines_of(method), json.loads((method.parent / "end.json").read_text())
    assert len(lines) == 3 and end["ended"] == "finished"
    others = [why for line in lines for k, why in line["failed"].items() if k != str(LIAR)]
    assert all(why.startswith("its battery") for why in others), others
    found = read_run(method.parent)
    assert not found.warnings
    page = render_page("run", "", report_sections(found), [])
    log = (method.parent / "log.txt").read_text(encoding="utf-8")
    assert len(page) < 10_000_000 and "\x1b" not in page + log


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flwr")


def test_a_run_with_one_that_says_anything(memory: Path, pytestconfig: pytest.Config) -> None:
    parse: Callable[[bytes], None] = lambda data: run(memory, data)  # noqa: E731
    fuzz(parse, (), [UNCHANGED], pytestconfig, memory_mb=2000, inputs=10, cpu_s=60)


def test_introductions(memory: Path, pytestconfig: pytest.Config) -> None:
    abouts: list[ConfigRecord] = []

    class Heard(Lying):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = self._app(message, context)
            abouts.extend(
                record for n, record in reply.content.config_records.items() if n == ABOUT
            )
            return reply

    run_four(memory, Heard("", None), **{"num-server-rounds": 1})

    def parse(data: bytes) -> None:
        content = RecordDict({ABOUT: abouts[0].copy()})
        if data != UNCHANGED:
            spoil(content, Random(data))
        read_member(7, content.config_records.get(ABOUT, ConfigRecord()))

    fuzz(parse, (ReplyError,), [UNCHANGED], pytestconfig)
