"""The commands ``flwr-dmml report`` and ``flwr-dmml compare``."""

import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from .comparison import group_runs
from .comparison_page import comparison_sections, results
from .export import NEEDS_KALEIDO, export_figures
from .page import NEEDS_PLOTLY, render_page, write_page
from .reading import ReportError, read_run, read_runs
from .run_sections import report_sections


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(report)
    app.command()(compare)


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
        Literal["svg", "png"], typer.Option("--format", help="Format of these files.")
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
    try:
        _check(figures is not None)
        found = read_run(run)
        sections = report_sections(found)
        methods = " and ".join(method.name for method in found.methods)
        subtitle = (
            f"{methods} on {found.config.get('dataset', '?')}, "
            f"{found.config.get('num-nodes', '?')} devices, seed {found.config.get('seed', '?')}"
        )
        if figures is not None:  # first: what it needs may be missing
            count = export_figures(sections, figures, form)
            Console().print(f"{count} figures in {figures}", markup=False, soft_wrap=True)
        warnings = [*found.warnings, *found.unfinished]
        path = output or run / "report.html"
        write_page(path, render_page(found.name, subtitle, sections, warnings))
        _finish(path, warnings, open_it)
    except (ReportError, OSError) as error:
        raise _failed(error) from error


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
    try:
        _check(False)
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
                path.write_text(text, encoding="utf-8")
        _finish(output, warnings, open_it)
    except (ReportError, OSError) as error:
        raise _failed(error) from error


def _check(exports: bool) -> None:
    """Refuse before any work what cannot be done without what is missing."""
    if find_spec("plotly") is None:
        raise ReportError(NEEDS_PLOTLY)
    if exports and find_spec("kaleido") is None:
        raise ReportError(NEEDS_KALEIDO)


def _finish(path: Path, warnings: list[str], open_it: bool) -> None:
    err = Console(stderr=True)
    for text in warnings:
        err.print("[bold yellow]Warning:[/bold yellow]", end=" ")
        err.print(text, markup=False, highlight=False, soft_wrap=True)
    size = path.stat().st_size / 1e6
    Console().print(f"{path} ({size:.1f} MB)", markup=False, highlight=False, soft_wrap=True)
    if open_it:
        webbrowser.open(path.resolve().as_uri())


def _failed(error: Exception) -> typer.Exit:
    err = Console(stderr=True)
    err.print(f"[bold red]Error:[/bold red] {type(error).__name__}:", end=" ")
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)
