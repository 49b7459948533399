"""The command ``flwr-dmml data check``."""

from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import Overrides, changed_settings
from .output import errors_in_words, labelled, say

if TYPE_CHECKING:
    from ..data import LoadOptions
    from ..data.check import Checked

data_app = typer.Typer(name="data", no_args_is_help=True, rich_markup_mode="rich")

KEYS = ("snr-db", "image-visible", "seed", "standardise")
"""Settings that bear on what is read, with those of the groups."""
GROUPS = ("audio.", "image.", "series.")


@data_app.callback()
def _root() -> None:
    """Look at data before training."""


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The folder of the data, as data-path names it.")],
    dataset: Annotated[
        str,
        typer.Option(help="The data set; by default folder, or feature-table with a labels.csv."),
    ] = "",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the same as a page, too.")
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help='Where it helps, write standardise = "auto" to dataset.toml.'),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show what is understood of a folder, and what may be wrong with it.

    Everything is read as a run would read it: rows, splits, classes, modalities with their shapes,
    values, lengths and rates. What cannot be used is an error; what may be wrong is a warning with
    a remedy: channels that look like an index, time stamps or constants, values far from 1, test
    samples that are training samples as well, silent or clipped sound, blank images.

    [bold]--fix[/bold] only writes standardise = "auto" to dataset.toml: vectors, series and
    sequences then get zero mean and unit variance, by the training samples. For data sets other
    than [bold]folder[/bold] it names the setting instead.

    [bold]Examples[/bold]

      flwr-dmml data check birds

      flwr-dmml data check birds --set audio.seconds=3 --html birds.html

    [bold]Exit status[/bold]  0: it can be used.  1: it cannot.  2: wrong command line.
    """
    from ..data.check import check as look
    from ..data.check import standardise_in
    from ..data.samples import DataError

    with errors_in_words():
        name = dataset or _dataset_in(folder)
        found = look(name, _options(name, folder, overrides))
        _show(found)
        if html is not None:
            from ..report import write_page

            write_page(html, page(f"{folder.resolve().name}: {name}", found))
            say(f"{html}")
        far = any(doubt.topic == "scale" for doubt in found.doubts)
        if fix and far and name == "folder":
            standardise_in(folder)
            say(f'{folder / "dataset.toml"}: standardise = "auto"')
        elif fix:
            say(
                f'--fix: set standardise = "auto" in the run config; {name} has no dataset.toml'
                if far
                else "--fix: nothing that it can mend"
            )
        if found.problem:
            raise DataError(found.problem)


def _dataset_in(folder: Path) -> str:
    """Return which data set of files of one's own is in a folder."""
    there = folder.is_dir() and not any(folder.glob("manifest.*"))
    return "feature-table" if there and (folder / "labels.csv").is_file() else "folder"


def _options(name: str, folder: Path, overrides: list[str] | None) -> "LoadOptions":
    """Return how a run with these settings would load the folder."""
    from dataclasses import replace

    from ..base.errors import SettingsError
    from ..data import find_dataset
    from ..settings import find_parts, parse_settings

    changed = changed_settings(overrides, None)
    groups = (*GROUPS, f"{name}.") if find_dataset(name).options_type is not None else GROUPS
    for key in changed:
        if key not in KEYS and not key.startswith(groups):
            allowed = ", ".join((*KEYS, *(f"{group}*" for group in groups)))
            raise SettingsError(f"--set {key}: has no influence here; allowed: {allowed}")
    config = {"method": "dpsgd", "topology": "complete", "modality-pattern": "auto", **changed}
    config |= {"dataset": name, "data-path": str(folder)}
    settings = parse_settings(config, find_parts(), side="device").settings
    return replace(settings.partition_options().load, path=str(folder))


def _show(found: "Checked") -> None:
    console = Console()
    for sheet in found.sheets:
        table = Table(*sheet.columns, title=sheet.title, title_justify="left")
        for row in sheet.rows:
            table.add_row(*map(_plain, row))
        console.print(table)
    for doubt in found.doubts:
        labelled("Warning", "bold yellow", doubt.text)
    if not found.doubts and not found.problem:
        say("Nothing looks wrong.")


def _plain(cell: str) -> str:
    from rich.markup import escape as unmarked

    return unmarked(cell)


def page(title: str, found: "Checked") -> str:
    """Return what was found as an HTML page that needs nothing else."""
    from ..report import parts, theme

    style = files("flwr_dmml.report") / "assets" / "page.css"
    noted = "".join(f"<li>{escape(doubt.text)}</li>" for doubt in found.doubts)
    problem = f'<p class="note">{escape(found.problem)}</p>' if found.problem else ""
    tables = [
        parts.Table(f"sheet-{k}", sheet.title, sheet.columns, sheet.rows)
        for k, sheet in enumerate(found.sheets)
    ]
    sections = "".join(f"<section>{table.to_html()}</section>" for table in tables)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{theme.css()}{style.read_text(encoding="utf-8")}</style>
</head>
<body>
<header><div><h1>{escape(title)}</h1></div></header>
<main>
{problem}
{f'<ul class="warnings" aria-label="Warnings">{noted}</ul>' if noted else ""}
{sections}
</main>
</body>
</html>
"""
