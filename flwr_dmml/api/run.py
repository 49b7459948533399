"""A run folder in Python: its rounds, devices and confusions as tables, its figures and models."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.libraries import needed
from ..report import read_run, render_page, report_sections, write_page
from ..report.parts import Figure
from ..report.reading import MethodRun, ReportError
from ..report.summary import final_accuracies
from ..report.theme import resolve
from ..tracking.sinks import scalars

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..deploy.model import TrainedModel


class Run:
    """What a run has left, from :func:`~flwr_dmml.simulate` or :func:`~flwr_dmml.open_run`.

    A run that is still going, or was stopped, is shown as far as it got when it was opened.
    Tables are pandas DataFrames (``pip install "flwr-dmml[notebook]"``).

    Parameters
    ----------
    path : str or Path
        The run folder.

    Raises
    ------
    ReportError
        It is no run folder, has no finished round, or a file in it is broken.
    """

    def __init__(self, path: str | Path) -> None:
        self.read = read_run(Path(path).expanduser())

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.read.path

    @property
    def config(self) -> dict[str, Any]:
        """All settings, by their keys in a run config."""
        return self.read.config

    @property
    def methods(self) -> list[str]:
        """The methods that ran, in their order: ``compare-with`` first."""
        return [method.name for method in self.read.methods]

    @property
    def method(self) -> str:
        """The method of the setting ``method``; where it has not begun, the one that has."""
        return self._main.name

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of :attr:`method` at the last evaluated round, mean over devices."""
        return self._main.last.accuracy

    @property
    def problems(self) -> list[str]:
        """What is missing or odd: rounds not done, devices lost, lines cut short."""
        return [*self.read.warnings, *self.read.unfinished]

    @property
    def rounds(self) -> "pd.DataFrame":
        """A row for each method and round: ``method``, ``round``, ``accuracy``, ``total_j``, ….

        Columns are the numbers of ``metrics.jsonl``, over all devices; those of a table there have
        names such as ``accuracy_by_modality/audio``. What was not measured in a round is NaN.
        """
        return frame(
            {"method": method.name, "round": line.round, **scalars(line)}
            for method in self.read.methods
            for line in method.rounds
        )

    @property
    def nodes(self) -> "pd.DataFrame":
        """A row for each method, round and device: ``method``, ``round``, ``partition``, ….

        Columns as in ``nodes`` of ``metrics.jsonl``, tables flattened as in :attr:`rounds`.
        """
        return frame(
            {"method": method.name, "round": line.round, **_flat(node)}
            for method in self.read.methods
            for line in method.rounds
            for node in line.to_json()["nodes"]
        )

    @property
    def confusion(self) -> "pd.DataFrame":
        """Test samples of :attr:`method` at the end, all devices together.

        Rows are true classes, columns predicted ones.

        Raises
        ------
        ReportError
            The run has none: the method has not ended.
        """
        found = self._main.confusion
        if found is None:
            raise ReportError(f"{self.path}: no confusion table of {self.method}, it has not ended")
        names = self._main.labels(len(found.matrix))
        with needed("pandas"):
            import pandas as pd
        table = pd.DataFrame(found.matrix, index=names, columns=names, dtype=int)
        return table.rename_axis(index="true", columns="predicted")

    @property
    def figures(self) -> list[str]:
        """The names of the figures of the report, for :meth:`figure`."""
        return [part.name for part in self._figures]

    def figure(self, name: str = "accuracy-rounds") -> "go.Figure":
        """Return a figure of the report, as a plotly Figure.

        Parameters
        ----------
        name : str
            One of :attr:`figures`.

        Raises
        ------
        ReportError
            There is none of this name.
        """
        return figure_named(name, self._figures)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, an HTML page, and return where it is: ``report.html`` by default."""
        page = self.path / "report.html" if path is None else Path(path)
        read = self.read
        data, devices, seed = (
            read.config.get(key, "?") for key in ("dataset", "num-nodes", "seed")
        )
        subtitle = f"{' and '.join(self.methods)} on {data}, {devices} devices, seed {seed}"
        write_page(page, render_page(read.name, subtitle, report_sections(read), self.problems))
        return page

    def model(self, device: int, *, method: str = "", best: bool = False) -> "TrainedModel":
        """Return a device's model as it was evaluated at the end, ready to predict.

        Parameters
        ----------
        device : int
            The device's number, its ``partition``.
        method : str
            One of :attr:`methods`; by default that of the setting ``method``.
        best : bool
            Whether it is to be that of ``keep-best``, of the best validated round.

        Raises
        ------
        ModelError
            There is none, or its files are damaged.
        """
        from ..deploy.model import load_model
        from ..deploy.runs import find_model

        return load_model(find_model(self.path, device, method, best=best))

    @property
    def _main(self) -> MethodRun:
        return self.read.methods[-1]

    @property
    def _figures(self) -> list[Figure]:
        sections = report_sections(self.read)
        return [p for section in sections for p in section.parts if isinstance(p, Figure)]

    def __repr__(self) -> str:
        reached = "" if self.accuracy is None else f", accuracy {self.accuracy:.3f}"
        return f"<Run {self.read.name}: {' and '.join(self.methods)}{reached}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(text)}</li>" for text in self.problems)
        return (
            f"<p><b>{escape(self.read.name)}</b> {escape(str(self.path))}</p>"
            f"{final_accuracies(self.read).to_html()}{f'<ul>{notes}</ul>' if notes else ''}"
        )


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises
    ------
    ReportError
        ``path`` is no run folder, has no finished round, or a file in it is broken.
    """
    return Run(path)


def figure_named(name: str, figures: Sequence[Figure]) -> "go.Figure":
    """Return one of the figures, as a plotly Figure.

    Raises
    ------
    ReportError
        There is none of this name.
    """
    with needed("plotly"):
        import plotly.graph_objects as go
    found = {figure.name: figure for figure in figures}
    if name not in found:
        raise ReportError(f"figure {name!r}: there are {', '.join(found)}")
    return go.Figure(resolve(found[name].to_plotly(), "light"))


def frame(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return a DataFrame with a row for each mapping."""
    with needed("pandas"):
        import pandas as pd
    return pd.DataFrame(list(rows))


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with what its own tables hold as ``name/key``."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat
