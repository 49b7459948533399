"""The command ``flwr-dmml status``."""

from pathlib import Path
from typing import Annotated

import typer

from .output import errors_in_words, say


def status(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/20261121-120000-dmml-kd.")],
) -> None:
    """Show how a run ended, and which devices failed.

    [bold]flwr run --stream[/bold] exits with 0 however the run ends: use this command
    instead. It reads RUN/end.json.

    [bold]Example[/bold]

      flwr-dmml status runs/mine && echo finished

    [bold]Exit status[/bold]  0: the run finished.  1: it did not (yet), or RUN cannot be read.
    2: wrong command line.
    """
    from ..tracking.ending import read_ending, told

    with errors_in_words():
        ending = read_ending(run)
    if ending is None:
        say(f"{run}: not ended yet: it is still going, or it was killed")
        raise typer.Exit(1)
    say(f"{run}: {ending.ended}" + (f": {ending.reason}" if ending.reason else ""))
    for line in told(ending.methods):
        say(line)
    if ending.ended != "finished":
        raise typer.Exit(1)
