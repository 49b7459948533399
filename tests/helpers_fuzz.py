"""Parsers of files for the fuzz tests, which hand over bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

UNCHANGED = b"as it was"
"""The example for :func:`of_values`."""

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-320, 1.5e308, -1e308, 1 << 31, -(1 << 31)),
    *(1 << 53, 1 << 63, 1 << 64, 10**30, 10**400, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "-1", "1e999", "NaN", "a" * 500, "\x00", "\n", "\x1b[31m", "\u202e", "é"),
    *("<b>", "../..", "/", "audio", "image", "ring", [], {}, [[]], [{}], {"": None}, [None]),
    *([[1, 2], [3]], [1, 2, 3], ["a"], {"a": 1}, {"0": 0.5}, [0] * 300, [[0, 1], [1, 0]]),
)


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
