"""Text for programs that read it: TOML, Flower's node configs, and systemd's units."""

import re
from collections.abc import Mapping


def toml_value(value: str | int) -> str:
    """Return a value in TOML, readable in Flower's node configs as well.

    Flower ends a double-quoted value at the next double quote, escaped or not, so one inside is
    written by its number.
    """
    if isinstance(value, int):
        return str(value).lower()  # true, false
    if "'" not in value and value.isprintable():
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', "\\u0022")
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'


def node_config(values: Mapping[str, str | int]) -> str:
    """Return what ``flower-supernode --node-config`` takes: ``key='value' other=1``."""
    return " ".join(f"{key}={toml_value(value)}" for key, value in values.items())


def unit_word(text: str) -> str:
    """Return one word of a unit's ``ExecStart``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def unit_path(text: str) -> str:
    """Return one word of a unit's list of paths, where variables are not replaced."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
