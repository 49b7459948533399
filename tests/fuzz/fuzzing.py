"""Damaged inputs for a parser: it may raise its documented errors, and nothing else.

In a test::

    def test_letters(pytestconfig: pytest.Config) -> None:
        fuzz(read_letter, (LetterError,), [write_letter(letter)], pytestconfig)

``pytest tests/fuzz -s --fuzz-seconds 60`` runs each of them for 60 seconds, with other seeds every
thousand inputs, and prints how many inputs were tried.
"""

import json
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from time import monotonic, process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MOST_BYTES = 1 << 20
"""Most bytes of an input."""
MOST_SHOWN = 500
_TEXT = (
    *("0", "-1", "1e999", "-1e999", "NaN", "inf", "Infinity", "1.5", "1e-400", "0x7f"),
    *("9" * 20, "9" * 5000, str(1 << 62), str(1 << 63), str(-(1 << 63)), "4294967296"),
    *("null", "true", "{}", "[]", '""', "[[]]", "[" * 3000, '{"a":' * 3000, "a = 1\n", "[a]\n"),
    *("\x00", "\n", "\x1b[31m", "\u202e", "é", "/", "../", "\\", '"', "'", ",", ":", "=", "#"),
)
_BINARY = (b"\xff", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x80", b"\xc3", b"\x00" * 8)
TOKENS = (*(text.encode() for text in _TEXT), *_BINARY)
"""What parsers stumble over, in text and in binary files."""
UNCHANGED = b"as it was"
"""The example for :func:`of_values`."""
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-320, 1.5e308, -1e308, 1 << 31, -(1 << 31)),
    *(1 << 53, 1 << 63, 1 << 64, 10**30, 10**400, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "-1", "1e999", "NaN", "a" * 500, "\x00", "\n", "\x1b[31m", "\u202e", "é"),
    *("<b>", "../..", "/", "audio", "image", "ring", [], {}, [[]], [{}], {"": None}, [None]),
    *([[1, 2], [3]], [1, 2, 3], ["a"], {"a": 1}, {"0": 0.5}, [0] * 300, [[0, 1], [1, 0]]),
)


@dataclass
class Tried:
    """How many inputs a parser was given, and how many of them it refused."""

    inputs: int = 0
    refused: int = 0


def fuzz(
    parse: Callable[[bytes], object],
    allowed: tuple[type[Exception], ...],
    examples: Sequence[bytes],
    config: pytest.Config,
    memory_mb: int = 200,
    *,
    inputs: int = 300,
    cpu_s: float = 5.0,
) -> Tried:
    """Give a parser damaged copies of valid inputs; fail on what it must not do.

    Parameters
    ----------
    parse : callable
        Reads an input. All of ``examples`` have to be read without an error.
    allowed : tuple of exception types
        What it may raise.
    examples : sequence of bytes
        Valid inputs.
    config : pytest.Config
        For the option ``--fuzz-seconds``.
    memory_mb : int (default: 200)
        Most memory that one input may need beyond what is in use, in MB of address space: more is
        refused by the system, so that the parser fails with a MemoryError.
    inputs : int (default: 300)
        Inputs at least, and without ``--fuzz-seconds`` at most; the same ones every time.
    cpu_s : float (default: 5)
        Most CPU seconds of one input.
    """
    for example in examples:
        parse(example)
    seconds = config.getoption("fuzz_seconds", 0.0)
    end = monotonic() + seconds
    tried, failed = Tried(), False

    def check(data: bytes) -> None:
        nonlocal failed
        if tried.inputs >= inputs and not failed and monotonic() >= end:
            return
        tried.inputs += 1
        started = process_time()
        try:
            with _memory(memory_mb):
                parse(data)
        except allowed:
            tried.refused += 1
        except BaseException as error:
            failed = True
            error.add_note(f"with an input of {len(data)} bytes: {data[:MOST_SHOWN]!r}")
            raise
        if process_time() - started > cpu_s:
            failed = True
            raise AssertionError(
                f"{process_time() - started:.1f} s of CPU for {data[:MOST_SHOWN]!r}"
            )

    for number in count():
        most = settings(
            max_examples=1000 if seconds else inputs,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(most(given(damaged(examples))(check)))()
        if monotonic() >= end:
            break
    print(f"{tried.inputs} inputs, {tried.refused} refused")
    return tried


def damaged(examples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy for examples with one to six changes; seldom for bytes without a form.

    Hypothesis draws a seed and how many changes there are, so that a failure is tried again with
    fewer; where and what they are follows from the seed, evenly spread.
    """
    changes = st.sampled_from((1, 2, 3, 6))
    return st.builds(partial(_damage, examples), st.randoms(use_true_random=True), changes)


def _damage(examples: Sequence[bytes], random: Random, changes: int) -> bytes:
    if random.random() < 0.02:
        return random.randbytes(random.randrange(256))
    data = bytearray(random.choice(examples))
    for _ in range(changes):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.randint(1, random.choice((1, 8, len(data) + 1))))
        span = bytes(data[start:end])
        match random.choice(("flip", "byte", "token", "number", "cut", "end", "insert", "repeat",
                             "move", "splice")):  # fmt: skip
            case "flip" if span:
                data[start] ^= 1 << random.randrange(8)
            case "byte" if span:
                data[start] = random.randrange(256)
            case "token":
                data[start:end] = random.choice(TOKENS)
            case "number" if numbers := list(_numbers(data)):
                first, last = random.choice(numbers)
                data[first:last] = random.choice(TOKENS)
            case "cut":
                del data[start:end]
            case "end":
                del data[start:]
            case "insert":
                data[start:start] = random.randbytes(random.randint(1, 32))
            case "repeat":
                data[end:end] = span * random.choice((1, 2, 10, 1000))
            case "move":
                del data[start:end]
                place = random.randint(0, len(data))
                data[place:place] = span
            case "splice":
                other = random.choice(examples)
                data[start:] = other[random.randint(0, len(other)) :]
        del data[MOST_BYTES:]
    return bytes(data)


def _numbers(data: bytearray) -> Iterator[tuple[int, int]]:
    """Yield where runs of ASCII digits begin and end, of the first 4 KB."""
    start = None
    for place, byte in enumerate(data[:4096] + b" "):
        if 48 <= byte <= 57:
            start = place if start is None else start
        elif start is not None:
            yield start, place
            start = None


def of_file(
    file: Path, read: Callable[[], object], refusal: type[Exception], *names: str
) -> Callable[[bytes], object]:
    """Return a parser of bytes: they are written to ``file`` before it is read.

    Its refusals must name the file, or one of ``names`` instead.
    """

    def parse(data: bytes) -> object:
        file.write_bytes(data)
        try:
            return read()
        except refusal as error:
            text = str(error)
            assert any(name in text for name in names or (file.name,)), f"no file named: {text}"
            raise

    return parse


def of_values(
    file: Path, read: Callable[[], object], refusal: type[Exception], *names: str
) -> Callable[[bytes], object]:
    """Return a parser as :func:`of_file` does, for a file of JSON, or of JSON lines.

    Bytes other than :data:`UNCHANGED` say which values of it are changed, and how: it stays JSON.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else []
    whole = [json.loads(line) for line in lines] or json.loads(file.read_text(encoding="utf-8"))
    write = of_file(file, read, refusal, *names)

    def parse(data: bytes) -> object:
        changed = whole if data == UNCHANGED else _changed(whole, Random(data))
        rows = changed if lines and isinstance(changed, list) else [changed]
        text = "\n".join(map(json.dumps, rows)) + "\n"
        try:
            return write(text.encode())
        except BaseException as error:
            error.add_note(f"the file: {text[:2000]}")
            raise

    return parse


def _changed(value: Any, random: Random) -> Any:
    """Return a value of JSON with one to four changes."""
    root = {"": json.loads(json.dumps(value))}
    for _ in range(random.choice((1, 1, 2, 4))):
        holder, key = random.choice(list(_places(root)))
        odd = json.loads(json.dumps(random.choice(_ODD)))
        match random.choice(("odd", "odd", "odd", "gone", "more", "twice", "another")):
            case "odd":
                holder[key] = odd
            case "gone" if holder is not root:
                del holder[key]
            case "more" if isinstance(holder[key], dict):
                holder[key][random.choice(("", "x", "0", "-1", "1e5", "a" * 99))] = odd
            case "more" if isinstance(holder[key], list):
                holder[key].insert(random.randint(0, len(holder[key])), odd)
            case "twice" if isinstance(holder[key], list):
                holder[key] *= random.choice((2, 10))
            case "another":
                other, place = random.choice(list(_places(root)))
                holder[key] = json.loads(json.dumps(other[place]))
    return root[""]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if type(value) is list else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@contextmanager
def _memory(most_mb: int) -> Iterator[None]:
    """Let the process take so much address space more, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (most_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
