"""The command ``flwr-dmml report``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import errors_in_words, page_written, say


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/20261121-120000-dmml-kd.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; RUN/report.html by default.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the web browser.")] = False,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures there as files, too.")
    ] = None,
    form: Annotated[
        Literal["pdf", "svg", "png"], typer.Option("--format", help="Format of these files.")
    ] = "svg",
) -> None:
    """Write one HTML page that shows a run: needs no network, works on a phone.

    A run that is still going, or was stopped, is shown as far as it got.

    [bold]Examples[/bold]

      flwr-dmml report runs/mine --open

      flwr-dmml report runs/mine --figures paper --format svg

    [bold]Exit status[/bold]  0: written.  1: RUN cannot be read, or something is not installed.
    2: wrong command line.
    """
    from ..api.run import Run
    from ..base.libraries import require
    from ..report import report_sections
    from ..report.export import export_figures

    with errors_in_words():
        require("plotly", *(["kaleido"] if figures is not None else []))
        found = Run(run)
        if figures is not None:  # first: what it needs may be missing
            count = export_figures(report_sections(found.read), figures, form)
            say(f"{count} figures in {figures}")
        page_written(found.report(output), found.problems, open_it)
