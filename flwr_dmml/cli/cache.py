"""The command ``flwr-dmml cache``."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from ..base.machine import cache_folder
from .output import say


def cache(
    clear_it: Annotated[
        bool, typer.Option("--clear", help="Delete what is cached of DATASET, or everything.")
    ] = False,
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="Only of this data set.")
    ] = "",
) -> None:
    """Show which data sets are kept as tensors, where and how large; or delete them.

    What a run has read and transformed is kept for the next one, by the content of its files, the
    settings that matter and the version of the code. The folder is ~/.cache/flwr-dmml, or what
    FLWR_DMML_CACHE names. The run config's [bold]data-cache = false[/bold] keeps nothing.

    [bold]Examples[/bold]

      flwr-dmml cache

      flwr-dmml cache --clear av-digits
    """
    from ..data.cache import clear, entries

    found = [entry for entry in entries() if dataset in ("", entry.dataset)]
    size = sum(entry.size for entry in found) / 1e6
    if not found:
        of = f" of {dataset}" if dataset else ""
        text = f"nothing{of} to delete" if clear_it else f"empty{of}"
        say(f"{cache_folder()}: {text}")
        return
    if clear_it:
        count = len(clear(dataset))
        text = f"{count} file{'s' * (count > 1)}, {size:.0f} MB deleted"
        say(f"{cache_folder()}: {text}")
        return
    table = Table("data set", Column("MB", justify="right"), Column("settings", overflow="fold"))
    for entry in found:
        settings = ", ".join(f"{key}={value}" for key, value in json.loads(entry.settings).items())
        table.add_row(entry.dataset, f"{entry.size / 1e6:.1f}", settings)
    Console().print(table)
    say(f"{cache_folder()}: {size:.0f} MB")
