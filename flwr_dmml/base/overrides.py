"""Settings that are changed for one run: ``KEY=VALUE``."""

import json
import shlex
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from .errors import SettingsError
from .formats import parse_toml


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``; a value that is no number, boolean, list or text of TOML is a text.

    So is a date: no setting is one.

    Raises
    ------
    ValueError
        There is no key, or no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r}: give KEY=VALUE, e.g. method=dpsgd")
    try:
        read = parse_toml(f"value = {value}")["value"]
    except ValueError:
        read = value.strip()
    return key.strip(), value.strip() if isinstance(read, date | time) else read


def override(key: str, value: Any) -> str:
    """Return ``key=value`` as :func:`parse_override` reads it, with quotes if they are needed."""
    plain = f"{key}={value}"
    if parse_override(plain) == (key, value):
        return plain
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def with_overrides(run_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run config with what its ``overrides`` says in place of what else it says.

    It holds ``KEY=VALUE`` with spaces between them; a value with spaces stands in quotes. ``flwr
    run -c`` takes no key that the app's ``pyproject.toml`` lacks, so one stands for all others.

    Raises
    ------
    SettingsError
        It does not.
    """
    text = run_config.get("overrides", "")
    if not isinstance(text, str) or not text.strip():
        return run_config
    try:
        changed = dict(parse_override(item) for item in shlex.split(text))
    except ValueError as error:
        raise SettingsError(f"overrides = {text!r}: {error}") from error
    return {**run_config, "overrides": "", **changed}
