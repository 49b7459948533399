"""Runs side by side in Python."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..report import (
    compare_runs,
    comparison_sections,
    read_runs,
    render_page,
    write_page,
)
from ..report.appendix import to_latex
from ..report.columns import USUAL
from ..report.parts import Figure, Table
from ..report.reading import Run as ReadRun
from .run import Run, figure_named, frame

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class Comparison:
    """Runs side by side, from :func:`~flwr_dmml.compare`. In a notebook it shows its tables."""

    def __init__(self, runs: Sequence[ReadRun], **how: object) -> None:
        self.compared, self.warnings = compare_runs(runs, **how)  # type: ignore[arg-type]

    @property
    def table(self) -> "pd.DataFrame":
        """A line for each row and column: ``mean``, ``std``, ``difference``, ``low``, ``high``, ….

        ``difference`` is to the baseline, paired by seed, with its 95 % interval and ``p``.
        """
        return frame(
            {key: value for key, value in record.items() if key != "values"}
            for record in self.compared.records()
        )

    @property
    def figures(self) -> list[str]:
        """The names of the figures, for :meth:`figure`."""
        return [part.name for part in self._figures]

    def figure(self, name: str) -> "go.Figure":
        """Return a figure of the page, as a plotly Figure.

        Raises
        ------
        ReportError
            There is none of this name.
        """
        return figure_named(name, self._figures)

    def to_latex(self) -> str:
        """Return the tables as LaTeX."""
        return "\n".join(table.to_latex() for table in self._tables)

    def to_markdown(self) -> str:
        """Return the tables as Markdown."""
        return "\n".join(table.to_markdown() for table in self._tables)

    def appendix(self) -> str:
        """Return commands, settings, versions and energy model as LaTeX."""
        return to_latex(self.compared)

    def report(self, path: str | Path) -> Path:
        """Write the comparison as an HTML page, and return where it is."""
        sections = comparison_sections(self.compared)
        count = sum(len(group.runs) for group in self.compared.groups)
        subtitle = f"{count} runs in {len(self.compared.groups)} groups"
        write_page(Path(path), render_page("Comparison", subtitle, sections, self.warnings))
        return Path(path)

    @property
    def _tables(self) -> list[Table]:
        return [t for t in (self.compared.results, self.compared.differences) if t]

    @property
    def _figures(self) -> list[Figure]:
        sections = comparison_sections(self.compared)
        return [p for section in sections for p in section.parts if isinstance(p, Figure)]

    def __repr__(self) -> str:
        return f"<Comparison of {'; '.join(self.compared.rows)}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(text)}</li>" for text in self.warnings)
        tables = "".join(table.to_html() for table in self._tables)
        return tables + (f"<ul>{notes}</ul>" if notes else "")


def compare(
    runs: Iterable[Run | str | Path],
    *,
    baseline: str = "",
    by: str = "",
    columns: Sequence[str] = USUAL,
    percent: bool = False,
    metric: str = "accuracy",
    labels: Sequence[str] = (),
) -> Comparison:
    """Put runs side by side: those that differ in nothing but the seed are one row.

    Parameters
    ----------
    runs : iterable of Run or path
        Runs, run folders, or folders that hold many of them.
    baseline : str
        The row, or its method, that the others are paired with. By default the method that
        ``compare-with`` names, else dpsgd, local, or the first one.
    by : str
        A setting: a block for each of its values.
    columns : sequence of str
        Columns of the tables; ``flwr-dmml compare --help`` lists them.
    percent : bool
        Whether the tables show accuracies in percent.
    metric : {"accuracy", "macro-f1", "uar"}
        What differences are of.
    labels : sequence of str
        Names of the rows in their order of appearance.

    Raises
    ------
    ReportError
        A run cannot be read, there is nothing to compare, or no such row, setting or column.

    Examples
    --------
    >>> from flwr_dmml import compare, simulate
    >>> runs = [simulate(method=m, seed=s) for m in ("dpsgd", "dmml-kd") for s in range(3)]
    >>> print(compare(runs).to_latex())
    """
    folders = [run.path if isinstance(run, Run) else Path(run).expanduser() for run in runs]
    found, skipped = read_runs(folders)
    made = Comparison(
        found,
        baseline=baseline,
        by=by,
        columns=columns,
        percent=percent,
        metric=metric,
        labels=labels,
    )
    made.warnings[:0] = [
        *skipped,
        *(f"{run.name}: {text}" for run in found for text in run.warnings),
    ]
    return made
