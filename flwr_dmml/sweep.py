"""The command ``flwr-dmml sweep``: every combination of a grid of settings, and one comparison."""

import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .clients import find_methods, option_types
from .config import SettingsError, parse_settings, resolved
from .engine import AppError, flatten_config, load_app
from .strategies.resuming import check_unchanged
from .tracking.run_folder import END

STOPPED = 130
"""Exit status after Ctrl-C."""
KEYS = {"app", "settings", "grid"}
_CONSOLE = Console(stderr=True)


class SweepError(ValueError):
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
            Two runs would have the same name.
        """
        found: dict[str, dict[str, Any]] = {}
        for values in product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            name = run_name(chosen)
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
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path} cannot be read: {error}") from error
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
    return Sweep((path.parent / content["app"]).resolve(), settings, grid)


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file, e.g. grid.toml.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the runs; runs/<name of FILE> by default."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes of each run, as in simulate.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and stop.")
    ] = False,
) -> None:
    """Run every combination of a grid of settings, one after another, and compare them.

    A run that is there already is skipped, one that was stopped goes on: start the same sweep again
    after Ctrl-C or a crash. A run that fails does not keep the others back. At the end
    [bold]comparison.html[/bold] puts all side by side.

    [bold]The file[/bold]

      app = "examples/quickstart"        # from the file's folder

      [settings]                         # of all runs, besides the app's own
      num-server-rounds = 10

      [grid]                             # every combination
      method = ["dpsgd", "dmml-kd"]
      seed = [0, 1, 2]

    [bold]Exit status[/bold]  0: all is there.  1: the file cannot work, or a run failed.
    2: wrong command line.  130: stopped with Ctrl-C.
    """
    try:
        plan = read_sweep(file)
        folder = (output or Path("runs") / file.stem).resolve()
        runs = plan.runs()
        todo = _unfinished(plan, runs, folder)
    except (AppError, SettingsError, SweepError) as error:
        _CONSOLE.print(f"[bold red]Error:[/bold red] {type(error).__name__}:", end=" ")
        _CONSOLE.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _say(f"{len(runs)} runs in {folder}, {len(runs) - len(todo)} of them are there")
    if dry_run:
        for name in todo:
            _say(f"  {name}")
        return
    failed = _run_all(plan, runs, todo, folder, workers)
    if len(runs) - len(failed) > 1:
        _compare(folder)
    if failed:
        _say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)


def _unfinished(plan: Sweep, runs: Mapping[str, dict[str, Any]], folder: Path) -> list[str]:
    """Check the settings of all runs; return who has not run to its end.

    Raises
    ------
    SettingsError
        A run cannot work, or is there with other settings.
    """
    own, types = load_app(plan.app).run_config, option_types(find_methods())
    todo: list[str] = []
    for name, settings in runs.items():
        config = {**own, **settings}
        if config.get("method") in types:  # the app may have methods of its own, which it checks
            try:
                now = resolved(*parse_settings(config, types))
            except SettingsError as error:
                raise SettingsError(f"run {name}: {error}") from error
            if (folder / name / "config.json").exists():
                check_unchanged(folder / name, now, types)
        if not (folder / name / str(config.get("method")) / END).exists():
            todo.append(name)
    return todo


def _run_all(
    plan: Sweep,
    runs: Mapping[str, dict[str, Any]],
    todo: list[str],
    folder: Path,
    workers: int | None,
) -> list[str]:
    """Run what is left, each in a process of its own; return who failed.

    Raises
    ------
    typer.Exit
        One was stopped with Ctrl-C.
    """
    failed: list[str] = []
    for number, name in enumerate(todo, start=1):
        settings = {**runs[name], "run-dir": str(folder)}
        begun = (folder / name / "config.json").exists()
        settings |= {"resume": name} if begun else {"run-name": name}
        _say(f"[{number}/{len(todo)}] {name}" + (", resumed" if begun else ""))
        command = [sys.executable, "-m", "flwr_dmml.cli", "simulate", str(plan.app)]
        for key, value in settings.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        if workers is not None:
            command += ["--workers", str(workers)]
        with _interrupts_ignored():  # the run stops after its round, and says so
            status = subprocess.run(command, check=False).returncode
        if status == STOPPED:
            _say("Stopped. The same command goes on.")
            raise typer.Exit(STOPPED)
        if status:
            failed.append(name)
    return failed


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda number, frame: None)  # a child takes its own
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _compare(folder: Path) -> None:
    if find_spec("plotly") is None:
        _say('For the comparison: pip install "flwr-dmml[report]"')
        return
    from .report.commands import compare

    compare([folder], output=folder / "comparison.html")


def _say(text: str) -> None:
    _CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
