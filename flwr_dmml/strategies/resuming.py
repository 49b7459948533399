"""Resuming a run: finds its folder, and checks that its settings are still the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import SettingsError
from ..base.formats import parse_json
from ..base.machine import expanded
from ..settings import Parts, Settings

FREE = {
    "resume",
    "run-dir",
    "run-name",
    "checkpoint-every",
    "checkpoint-keep",
    "min-devices",
    "engine",
    "workers",
    "ray-address",
    "wait-timeout",
    "round-timeout",
    "data-path",
    "data-cache",
    "exchange.transport",
    "exchange.timeout-s",
    "exchange.router",
    "exchange.multicast",
    "track-with",
    "metrics-port",
    "metrics-host",
    "keep-models",
}
"""Settings that may change when a run is resumed: the numbers do not depend on them."""


def find_run(name: str, run_dir: str) -> Path:
    """Return the folder of the run to resume: a path, or a name in ``run_dir``.

    Raises
    ------
    SettingsError
        There is none.
    """
    given = Path(expanded(name))
    for path in (given, Path(expanded(run_dir)) / name):
        if (path / "config.json").is_file():
            return path.resolve()
    raise SettingsError(
        f"resume = {name!r}: neither {given} nor the folder of that name in {run_dir!r} is a run "
        "folder (with a config.json)"
    )


def saved_config(run: Path) -> dict[str, Any]:
    """Return the resolved settings that a run was started with.

    Raises
    ------
    SettingsError
        They cannot be read.
    """
    file = run / "config.json"
    try:
        config = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or not {"method", "compare-with"} <= config.keys():
        raise SettingsError(f"{file} does not hold the settings of a run: it names no method")
    return config


def resumed_settings(
    run: str, config: Mapping[str, Any], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a run to go on with: its own, and on top what is changed.

    Parameters
    ----------
    run : str
        Its folder, or its name in the ``run-dir`` of ``config``.
    config, changed : mapping
        All settings as they are now, and those of them that are not the app's.

    Raises
    ------
    SettingsError
        There is no such run, or its settings cannot be read.
    """
    folder = find_run(run, str(config.get("run-dir", Settings().run_dir)))
    return {**saved_config(folder), **changed, "resume": str(folder)}


def check_unchanged(run: Path, config: Mapping[str, Any], parts: Parts) -> None:
    """Refuse settings with which the run would not go on as it began.

    Options of methods that do not run may change.

    Parameters
    ----------
    run : Path
        The run folder.
    config : mapping
        The resolved settings now.
    parts : Parts
        All methods and rules that are known.

    Raises
    ------
    SettingsError
        Names every setting that has changed, and both values.
    """
    before = saved_config(run)
    running = {before["method"], before["compare-with"], config["method"], config["compare-with"]}
    idle = tuple(f"{n}." for n in parts.methods if n not in running and n not in parts.rules)
    problems = [
        f"{key} = {config.get(key)!r}: the run to resume has {before.get(key)!r}"
        for key in sorted(before.keys() | config.keys())
        if key not in FREE and not key.startswith(idle) and before.get(key) != config.get(key)
    ]
    if problems:
        raise SettingsError(
            f"{run} cannot be resumed with these settings:\n  " + "\n  ".join(problems)
        )
