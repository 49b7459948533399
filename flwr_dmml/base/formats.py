"""JSON and TOML from files that anybody may have written."""

import json
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_NESTED = 100
"""Levels of a value: nothing that we read has more than a few."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        It is no JSON, or nested too deeply.
    """
    try:
        value = _checked(json.loads(text))
    except RecursionError as error:
        raise _too_deep() from error
    if "\\u" in (text if isinstance(text, str) else text.decode(errors="replace")):
        json.dumps(value, ensure_ascii=False).encode()  # half a character, "\\ud800", is not UTF-8
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table of a TOML text; a byte order mark before it is passed over.

    Raises
    ------
    ValueError
        It is no TOML, or nested too deeply.
    """
    try:
        table: dict[str, Any] = _checked(tomllib.loads(text.removeprefix("\ufeff")))
    except RecursionError as error:
        raise _too_deep() from error
    return table


def first_problem(error: "ValidationError") -> str:
    """Return where a value is that is not allowed, and why, of the first one."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MOST_NESTED} levels deep")


def _checked(value: Any) -> Any:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_NESTED + 1):
        if not level:
            return value
        inside = [x.values() if isinstance(x, dict) else x for x in level]
        level = [y for x in inside for y in x if isinstance(y, dict | list)]
    raise _too_deep()
