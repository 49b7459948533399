"""The command ``flwr-dmml compare``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import errors_in_words, page_written


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders that hold many of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path(
        "comparison.html"
    ),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the web browser.")] = False,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Name of a group, in their order. Repeatable."),
    ] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table of results as LaTeX.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table of results as Markdown.")
    ] = None,
    metric: Annotated[
        Literal["accuracy", "macro-f1", "uar"], typer.Option(help="What is tested for chance.")
    ] = "accuracy",
) -> None:
    """Write one HTML page that puts runs side by side.

    Runs that differ in nothing but the seed make a group: their mean and standard deviation are
    shown. The first group is what the others are tested against.

    [bold]Examples[/bold]

      flwr-dmml compare runs/a-0 runs/a-1 runs/b-0 runs/b-1 --label old --label new

      flwr-dmml compare sweep --markdown table.md --latex table.tex

    [bold]Exit status[/bold]  0: written.  1: a run cannot be read, or there is nothing to compare.
    2: wrong command line.
    """
    from ..base.files import write_whole
    from ..base.libraries import require
    from ..report import (
        comparison_sections,
        group_runs,
        read_runs,
        render_page,
        results,
        write_page,
    )

    with errors_in_words():
        require("plotly")
        found, skipped = read_runs(runs)
        groups, warnings = group_runs(found, labels or [])
        read = [f"{run.name}: {text}" for run in found for text in run.warnings]
        warnings = [*skipped, *read, *warnings]
        subtitle = f"{len(found)} runs in {len(groups)} groups"
        sections = comparison_sections(groups, metric)
        write_page(output, render_page("Comparison", subtitle, sections, warnings))
        table = results(groups)
        for path, text in ((latex, table.to_latex()), (markdown, table.to_markdown())):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, text)
        page_written(output, warnings, open_it)
