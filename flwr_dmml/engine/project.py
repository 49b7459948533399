"""What the ``pyproject.toml`` of a Flower app says: its components and its run config.

Read without Flower and torch, so that a command knows what it is to run before it loads them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.formats import parse_toml
from ..base.machine import expanded
from .errors import AppError


def read_project(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the components of the app in ``folder``, and its run config, flat.

    Raises
    ------
    AppError
        There is no valid ``pyproject.toml`` with ``[tool.flwr.app.components]``.
    """
    path = Path(expanded(str(folder))).resolve()
    project = path / "pyproject.toml"
    if not project.is_file():
        raise AppError(f"{path} is no Flower app: it has no pyproject.toml")
    try:
        content = parse_toml(project.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AppError(f"{project} is not valid TOML: {error}") from error
    app = _table(content, project, "tool", "flwr", "app")
    components = _table(app, project, "components")
    if not all(isinstance(components.get(name), str) for name in ("serverapp", "clientapp")):
        raise AppError(f"{project} names no serverapp and clientapp in [tool.flwr.app.components]")
    return components, flatten_config(_table(app, project, "config"))


def _table(content: Mapping[str, Any], project: Path, *names: str) -> dict[str, Any]:
    """Return a table in a table, empty if it is not there."""
    found: Any = content
    for name in names:
        found = found.get(name, {})
        if not isinstance(found, dict):
            raise AppError(f"{project}: {name} = {found!r}: must be a table")
    return dict(found)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted keys, as Flower does with an app's config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
