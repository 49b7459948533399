"""The command ``flwr-dmml sweep``."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.overrides import override
from ..base.stopping import handled, status_of
from .compare import compare
from .output import STOPPED, errors_in_words, labelled, say

if TYPE_CHECKING:
    from .sweep_plan import Sweep

_say = partial(say, err=True)


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
        bool, typer.Option("--dry-run", help="Show what would run, and stop.")
    ] = False,
) -> None:
    r"""Run every combination of a grid of settings, one after another, and compare them.

    Finished runs are skipped, and stopped ones continue: start the same sweep again after Ctrl-C or
    a crash. A run that fails does not stop the others. At the end [bold]comparison.html[/bold]
    compares all runs.

    [bold]The file[/bold]

      app = "examples/quickstart"   # from the file's folder

      \[settings]                    # besides the app's own
      num-server-rounds = 10
      evaluate-every = 1            # curves: every round

      \[grid]                        # every combination
      method = ["dpsgd", "dmml-kd"]
      seed = [0, 1, 2]

    [bold]Exit status[/bold]  0: all runs are done.  1: the file is wrong, or a run failed.
    2: wrong command line.  130: stopped with Ctrl-C.  143: stopped with SIGTERM.
    """
    from ..tracking.lock import locked
    from .sweep_plan import read_sweep, unfinished

    with errors_in_words():
        plan = read_sweep(file)
        folder = (output or Path("runs") / file.stem).resolve()
        runs = plan.runs()
        todo = unfinished(plan, runs, folder)
    _say(f"{len(runs)} runs in {folder}, {len(runs) - len(todo)} of them are there")
    if dry_run:
        for name in todo:
            _say(f"  {name}")
        return
    with errors_in_words():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            failed = _run_all(plan, runs, todo, folder, workers)
    if failed:
        _say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    if len(runs) - len(failed) > 1:
        _compare(folder)
    if failed:
        raise typer.Exit(1)


def _run_all(
    plan: "Sweep",
    runs: Mapping[str, dict[str, Any]],
    todo: list[str],
    folder: Path,
    workers: int | None,
) -> list[str]:
    """Run what is left, each in a process of its own; return who failed.

    Raises
    ------
    typer.Exit
        One was stopped with Ctrl-C or SIGTERM.
    """
    failed: list[str] = []
    for number, name in enumerate(todo, start=1):
        settings = {**runs[name], "run-dir": _short(folder)}
        begun = (folder / name / "config.json").exists()
        settings |= {"resume": name} if begun else {"run-name": name}
        _say(f"[{number}/{len(todo)}] {name}" + (", resumed" if begun else ""))
        command = [sys.executable, "-m", "flwr_dmml.cli", "simulate", _short(plan.app)]
        for key, value in settings.items():
            command += ["--set", override(key, value)]
        if workers is not None:
            command += ["--workers", str(workers)]
        status = _run(command)
        if status in STOPPED:
            _say("Stopped. Run the same command again to continue.")
            raise typer.Exit(status)
        if status:
            failed.append(name)
    return failed


def _short(path: Path) -> str:
    """Return a path from the current folder where it is below it, as one would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(command: list[str]) -> int:
    """Run a process and return its exit status, or that of a signal which came meanwhile.

    The process stops after its round: Ctrl-C reaches it from the terminal, SIGTERM is passed on.
    """
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def passed_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGTERM:
            for process in running:
                process.send_signal(number)

    with handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM), passed_on)):
        with subprocess.Popen(command) as process:
            running.append(process)
            if signal.SIGTERM in asked:  # before there was anybody to pass it on to
                process.send_signal(signal.SIGTERM)
        return status_of(asked[0]) if asked else process.returncode


def _compare(folder: Path) -> None:
    """Write the comparison; without what it needs the sweep is done all the same."""
    from ..base.libraries import LibraryError, require

    try:
        require("plotly")
    except LibraryError as error:
        labelled("Warning", "bold yellow", f"there is no comparison: {error}")
        return
    compare([folder], output=folder / "comparison.html")
