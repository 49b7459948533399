"""A sweep: every combination of a grid of settings, read from a file."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ..base.errors import SettingsError, UserError
from ..base.formats import parse_toml
from ..base.overrides import with_overrides
from ..clients.app import PeerClientApp
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
            There are too many.
        """
        if (count := prod(map(len, self.grid.values()))) > MOST_RUNS:
            raise SweepError(f"grid: it makes {count:,} runs; allowed: {MOST_RUNS:,}")
        combinations = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        names = [run_name(chosen) for chosen in combinations]
        often = Counter(map(str.casefold, names))  # some file systems do not tell case apart
        names = [
            run_name(chosen, marked=often[name.casefold()] > 1)
            for name, chosen in zip(names, combinations, strict=True)
        ]
        return {
            name: {"compare-with": "", **self.settings, **chosen}
            for name, chosen in zip(names, combinations, strict=True)
        }


def run_name(chosen: Mapping[str, Any], *, marked: bool = False) -> str:
    """Return a folder's name for what a run has of the grid: ``dpsgd_alpha-0.1_seed-0``.

    Where that has characters that a folder's name should not have, or too many, they are left out,
    and a digest of the values stands behind; so it does if ``marked``.
    """
    texts = {k: json.dumps(v) if isinstance(v, bool) else str(v) for k, v in chosen.items()}
    plain = "_".join(text if k == "method" else f"{k}-{text}" for k, text in texts.items())
    name = re.sub(r"[^\w.,+=-]+", "-", plain).lstrip(".,+=-")
    if name and name == plain and len(name.encode()) <= NAME_LENGTH and not marked:
        return name
    digest = hashlib.sha256(_as_json(chosen).encode()).hexdigest()[:8]
    kept = name.encode()[: NAME_LENGTH - len(digest) - 1].decode(errors="ignore")
    return f"{kept or 'run'}_{digest}"


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


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
        texts = [_as_json(value) for value in values]
        if twice := [v for v, text in zip(values, texts, strict=True) if texts.count(text) > 1]:
            raise SweepError(f"{path}: grid.{key} has {twice[0]!r} twice")
    settings = flatten_config(content.get("settings", {}))
    if both := settings.keys() & grid.keys():
        raise SweepError(f"{path}: {min(both)} is both in [settings] and in [grid]")
    if own := {"run-dir", "run-name", "resume"} & (settings.keys() | grid.keys()):
        raise SweepError(f"{path}: {min(own)} is the sweep's own; use --output for the folder")
    if "overrides" in settings.keys() | grid.keys():
        raise SweepError(f"{path}: overrides: write each of its settings as a key of its own")
    try:
        app = (path.parent / content["app"]).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, links in a circle
        raise SweepError(f"{path}: app = {content['app']!r}: is no path: {error}") from error
    return Sweep(app, settings, grid)


def unfinished(plan: Sweep, runs: Mapping[str, dict[str, Any]], folder: Path) -> list[str]:
    """Check the settings of all runs; return who has not run to its end.

    Raises
    ------
    SweepError
        The app is not one of this package, so its settings are not known.
    SettingsError
        A run cannot work, or is there with other settings.
    """
    app = load_app(plan.app)
    if not isinstance(app.client_app, PeerClientApp):
        raise SweepError(f"app = {plan.app}: its ClientApp is not one of make_client_app")
    parts = find_parts(app.client_app.own)
    of_app = with_overrides(app.run_config)
    todo: list[str] = []
    for name, settings in runs.items():
        try:
            config = parse_settings({**of_app, **settings}, parts)
        except SettingsError as error:
            raise SettingsError(f"run {name}: {error}") from error
        if (folder / name / "config.json").exists():
            check_unchanged(folder / name, config.resolved(), parts)
        if not (folder / name / config.settings.method / END).exists():
            todo.append(name)
    return todo
