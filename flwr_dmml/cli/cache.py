"""The command ``flwr-dmml cache``."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from ..base.machine import cache_folder
from .output import errors_in_words, labelled, say

if TYPE_CHECKING:
    from ..data.cache import Entry


def cache(
    clear_it: Annotated[
        bool, typer.Option("--clear", help="Delete all entries, or those of DATASET.")
    ] = False,
    verify_it: Annotated[
        bool,
        typer.Option("--verify", help="Read all entries; delete damaged ones."),
    ] = False,
    dataset: Annotated[str, typer.Argument(metavar="[DATASET]", help="Only this data set.")] = "",
) -> None:
    """Show the cached data sets, their folder and sizes; verify or delete them.

    Data that a run has read and transformed are kept for the next one, by the content of the files,
    the relevant settings and the version of the code. The folder is ~/.cache/flwr-dmml, or the one
    that FLWR_DMML_CACHE names. The setting [bold]data-cache = false[/bold] turns this off.

    A run checks the length and the header of the entries that it uses. [bold]--verify[/bold] checks
    everything and ends with exit status 1 if an entry was damaged.

    [bold]Examples[/bold]

      flwr-dmml cache

      flwr-dmml cache --verify

      flwr-dmml cache --clear av-digits
    """
    if clear_it and verify_it:
        raise typer.BadParameter("give --clear or --verify, not both")
    from ..data.cache import clear, entries, verify

    with errors_in_words():
        found = (clear if clear_it else verify if verify_it else entries)(dataset)
    folder, of = cache_folder(), f" of {dataset}" if dataset else ""
    if not found:
        say(f"{folder}: {f'nothing{of} to delete' if clear_it else f'empty{of}'}")
        return
    for entry in found:
        if entry.problem:
            labelled("Warning", "bold yellow", entry.problem)
        if entry.busy:
            labelled("Warning", "bold yellow", f"in use, not deleted: '{entry.files[0]}'")
    if clear_it:
        say(f"{folder}: {_counted([entry for entry in found if not entry.busy])} deleted")
        return
    damaged = [entry for entry in found if entry.problem and not entry.busy]
    if verify_it:
        there = [entry for entry in found if entry.kind == "data set"]
        deleted = f", {_counted(damaged)} deleted" if damaged else ""
        say(f"{folder}: {_counted(there)} as written{deleted}")
        raise typer.Exit(1 if damaged else 0)
    table = Table("data set", Column("MB", justify="right"), Column("settings", overflow="fold"))
    for entry in found:
        if entry.kind == "data set":
            settings = ", ".join(f"{key}={value}" for key, value in entry.settings.items())
            table.add_row(entry.dataset, f"{entry.size / 1e6:.1f}", settings)
    Console().print(table)
    say(f"{folder}: {_counted(found)}")


def _counted(entries: Sequence["Entry"]) -> str:
    """Return how many there are of each kind, and their size."""
    counts = Counter(entry.kind for entry in entries)
    told = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items()]
    size = sum(entry.size for entry in entries) / 1e6
    return ", ".join([*(told or ["nothing"]), f"{size:.0f} MB"])
