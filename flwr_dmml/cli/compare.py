"""The command ``flwr-dmml compare``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from .output import errors_in_words, page_written, say


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders that contain run folders.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path(
        "comparison.html"
    ),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the web browser.")] = False,
    baseline: Annotated[
        str, typer.Option(metavar="NAME", help="Row, or its method, to compare the others with.")
    ] = "",
    by: Annotated[
        str, typer.Option(metavar="KEY", help="A block for each value of this setting.")
    ] = "",
    columns: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Columns of the table; see above.")
    ] = "",
    percent: Annotated[bool, typer.Option("--percent", help="Show accuracies in percent.")] = False,
    metric: Annotated[
        Literal["accuracy", "macro-f1", "uar"],
        typer.Option(help="Metric to test for significance."),
    ] = "accuracy",
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Name of a row, in order of appearance. Repeatable."),
    ] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as LaTeX.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one line per row and column.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same, with each seed's values.")
    ] = None,
    appendix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write commands, settings, versions and energy model as LaTeX.",
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures there as files, too.")
    ] = None,
    form: Annotated[
        Literal["pdf", "svg", "png"], typer.Option("--format", help="Format of these files.")
    ] = "pdf",
) -> None:
    """Compare runs on one HTML page; write tables and figures for a paper.

    Runs that differ only in the seed are one row, with their mean and standard deviation. Each row
    is paired by seed with the baseline: the method that compare-with names, else dpsgd, local or
    the first row. --baseline chooses another.

    [bold]Columns[/bold]  seeds, accuracy, macro-f1, uar, worst, best (device), own-shares (classes
    as on the device), missing (inputs), difference (to the baseline, with its interval), joules,
    measured-joules, kb (per device and round), mb (of all), seconds. sets, modalities and without
    are a column for each of them; set=audio+image, modality=audio and without=audio choose one.

    [bold]Examples[/bold]

      flwr-dmml compare runs/a-0 runs/a-1 runs/b-0 --label old --label new

      flwr-dmml compare runs/grid --by topology --columns accuracy,difference

      flwr-dmml compare runs/grid --latex table.tex --appendix appendix.tex

      flwr-dmml compare runs/grid --percent --figures figures --format pdf

    [bold]Exit status[/bold]  0: written.  1: a run cannot be read, there is nothing to compare, or
    something is not installed.  2: wrong command line.
    """
    from ..base.libraries import require
    from ..report import compare_runs, comparison_sections, read_runs, render_page, write_page
    from ..report.appendix import to_latex
    from ..report.columns import USUAL
    from ..report.export import export_figures

    with errors_in_words():
        require("plotly", *(["kaleido"] if figures is not None else []))
        found, skipped = read_runs(runs)
        comparison, warnings = compare_runs(
            found,
            labels=labels or [],
            baseline=baseline,
            by=by,
            columns=[name.strip() for name in columns.split(",")] if columns else USUAL,
            percent=percent,
            metric=metric,
        )
        read = [f"{run.name}: {text}" for run in found for text in run.warnings]
        warnings = [*skipped, *read, *warnings]
        subtitle = f"{len(found)} runs in {len(comparison.groups)} groups"
        sections = comparison_sections(comparison)
        if figures is not None:  # first: what it needs may be missing
            count = export_figures(sections, figures, form)
            say(f"{count} figures in {figures}")
        write_page(output, render_page("Comparison", subtitle, sections, warnings))
        tables = [table for table in (comparison.results, comparison.differences) if table]
        files: tuple[tuple[Path | None, Callable[[], str]], ...] = (
            (latex, lambda: "\n".join(table.to_latex() for table in tables)),
            (markdown, lambda: "\n".join(table.to_markdown() for table in tables)),
            (csv, comparison.to_csv),
            (json, comparison.to_json),
            (appendix, lambda: to_latex(comparison)),
        )
        for path, text in files:
            if path is not None:
                write_page(path, text())
        page_written(output, warnings, open_it)
