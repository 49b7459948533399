"""A sweep: every combination of a grid of settings, read from a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ..base.errors import SettingsError, UserError
from ..base.formats import parse_toml
from ..engine import flatten_config, load_app
from ..settings import find_parts, parse_settings
from ..strategies.resuming import check_unchanged
from ..tracking.run_folder import END

KEYS = {"app", "settings", "grid"}
MOST_RUNS = 100_000
NAME_LENGTH = 255
"""Bytes of a folder's name, on most file systems."""


class SweepError(UserError, ValueError):
    """A sweep file that cannot work; the message names the key."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes
    ----------
    app : Path
        The Flower app.
    settings : dict of str to Any
        What all runs have besides the app's own run config.
    grid : dict of str to list
        Key -> its values; a run is made of every combination, the last key changing fastest.
    """

    app: Path
    settings: dict[str, Any]
    grid: dict[str, list[Any]]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the settings of every run, by its name.

        Raises
        ------
        SweepError
            There are too many, two would have the same name, or a name is too long for a folder.
        """
        if (count := prod(map(len, self.grid.values()))) > MOST_RUNS:
            raise SweepError(f"grid: it makes {count:,} runs; allowed: {MOST_RUNS:,}")
        found: dict[str, dict[str, Any]] = {}
        for values in product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            name = run_name(chosen)
            if len(name.encode()) > NAME_LENGTH:
                raise SweepError(
                    f"grid: a run's name would be longer than {NAME_LENGTH} bytes: {name[:100]}..."
                )
            if name in found:
                raise SweepError(f"grid: two runs are named {name!r}: {found[name]} and {chosen}")
            found[name] = {"compare-with": "", **self.settings, **chosen}
        return found


def run_name(chosen: Mapping[str, Any]) -> str:
    """Return a folder's name for what a run has of the grid: ``dpsgd_alpha-0.1_seed-0``."""
    parts = [str(v) if k == "method" else f"{k}-{v}" for k, v in chosen.items()]
    return re.sub(r"[^\w.-]+", "-", "_".join(parts)).lstrip(".-") or "run"


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises
    ------
    SweepError
        It is no TOML, or has keys that are missing, unknown or of the wrong kind.
    """
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: of its encoding, or of TOML
        raise SweepError(f"{path} cannot be read: {error}") from error
    for name in ("settings", "grid"):
        if not isinstance(content.get(name, {}), dict):
            raise SweepError(f"{path}: {name} = {content[name]!r}: must be a table, [{name}]")
    if unknown := content.keys() - KEYS:
        raise SweepError(f"{path}: unknown key {min(unknown)!r}; there are app, settings and grid")
    if not isinstance(content.get("app"), str):
        raise SweepError(f"{path}: app must name the folder of the Flower app, from this file's")
    grid = flatten_config(content.get("grid", {}))
    if not grid:
        raise SweepError(f"{path}: [grid] must hold a key with a list of values, or several")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f"{path}: grid.{key} = {values!r}: must be a list of values")
    settings = flatten_config(content.get("settings", {}))
    if both := settings.keys() & grid.keys():
        raise SweepError(f"{path}: {min(both)} is both in [settings] and in [grid]")
    if own := {"run-dir", "run-name", "resume"} & (settings.keys() | grid.keys()):
        raise SweepError(f"{path}: {min(own)} is the sweep's own; use --output for the folder")
    try:
        app = (path.parent / content["app"]).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, links in a circle
        raise SweepError(f"{path}: app = {content['app']!r}: is no path: {error}") from error
    return Sweep(app, settings, grid)


def unfinished(plan: Sweep, runs: Mapping[str, dict[str, Any]], folder: Path) -> list[str]:
    """Check the settings of all runs; return who has not run to its end.

    Raises
    ------
    SettingsError
        A run cannot work, or is there with other settings.
    """
    own, parts = load_app(plan.app).run_config, find_parts()
    todo: list[str] = []
    for name, settings in runs.items():
        config = {**own, **settings}
        if (
            config.get("method") in parts.methods
        ):  # the app may have methods of its own, which it checks
            try:
                now = parse_settings(config, parts).resolved()
            except SettingsError as error:
                raise SettingsError(f"run {name}: {error}") from error
            if (folder / name / "config.json").exists():
                check_unchanged(folder / name, now, parts)
        if not (folder / name / str(config.get("method")) / END).exists():
            todo.append(name)
    return todo
