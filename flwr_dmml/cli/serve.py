"""The command ``flwr-dmml fleet serve``."""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .fleet import File, Output
from .output import errors_in_words, say

if TYPE_CHECKING:
    from ..fleet.serving import Task


def serve(
    file: File,
    app: Annotated[Path, typer.Argument(metavar="APP", help="The Flower app.")],
    output: Output,
    name: Annotated[str, typer.Option(help="The run's name, which is also its folder's.")],
    config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="Settings, as flwr run -c takes them. Repeatable."),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder of run folders. [default: OUTPUT/superlink/runs]"),
    ] = None,
    tries: Annotated[
        int, typer.Option(min=1, help="Starts in a row without a new round, then it gives up.")
    ] = 5,
    unit: Annotated[
        bool, typer.Option("--unit", help="Print a systemd unit that does this, and exit.")
    ] = False,
) -> None:
    """Bring a run to its end: start it, watch it, and resume it after every crash.

    Run it on the SuperLink's machine: it watches the run folder. When the coordinator's process
    dies, it resumes the run from the newest checkpoint (set checkpoint-every). When the SuperLink
    dies, it waits until that answers again, and does the same. Started again after a reboot, it
    goes on with the run of that name; a run that is going is watched, and one that has finished is
    left alone. Between starts it pauses, at first a second, in the end a minute.

    It gives up, and says why, after --tries starts without a new round, or if somebody stops the
    run with flwr stop. Ctrl-C and SIGTERM end the watching only: the run goes on.

    [bold]--unit[/bold] prints a systemd unit for the same command. Its user is the owner of the run
    folders, who must be able to read FLEET.TOML, OUTPUT and APP.

    [bold]Examples[/bold]

      flwr-dmml fleet serve fleet.toml app -o lab --name r -c "seed=1"

      flwr-dmml fleet serve fleet.toml app -o lab --name r --unit > run.service

    [bold]Exit status[/bold]  0: the run has finished.  1: an error; the unit starts it again.
    2: wrong command line.  3: it gave up, or somebody stopped the run; standard error says why.
    130, 143: it was stopped; the run goes on.
    """
    from ..base.stopping import sigterm_exits
    from ..fleet import read_fleet
    from ..fleet.serving import Supervisor, Task

    with errors_in_words(), sigterm_exits():
        task = Task(read_fleet(file), output, app, name, tuple(config or ()), runs)
        if unit:
            say(_unit(task, file, config or [], tries))
            return
        ending = Supervisor(task, _tell, tries=tries).serve()
    for method, end in ending.methods.items():
        say(f"{method}: {end.rounds} of {end.of} rounds")
    say(f"{task.run}: {ending.ended}")


def _tell(line: str) -> None:
    say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")


def _unit(task: "Task", file: Path, config: list[str], tries: int) -> str:
    from ..fleet.serving import unit

    runs = task.run.parent
    there = next(place for place in (runs, *runs.parents) if place.exists())
    command = [str(Path(sys.executable).with_name("flwr-dmml")), "fleet", "serve"]
    command += [str(file.resolve()), str(task.app.resolve()), "-o", str(task.folder.resolve())]
    command += ["--name", task.name, "--runs", str(runs), "--tries", str(tries)]
    command += [word for given in config for word in ("-c", given)]
    return unit(task, command, _owner(there))


def _owner(path: Path) -> str:
    """Return the owner of a folder, by number where it has no name."""
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)
