"""A table and a progress bar that grow while a run goes on."""

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .records import RoundRecord


class LiveTable:
    """Show every evaluated round in a table, above a bar for rounds and devices.

    Use it as a context manager. Log lines scroll by above it. Where the console is no terminal
    nothing is drawn: the log has the same figures.

    Parameters
    ----------
    console : rich.console.Console
        Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._console = console
        self._headers: list[str] = []
        self._rows: list[list[str]] = []
        self._columns: list[str] = []
        self._task: TaskID | None = None
        self._method, self._since, self._seconds = "", time.monotonic(), 0.0
        self._live = Live(console=console, auto_refresh=console.is_terminal, transient=False)
        self._drawn = console.is_terminal

    def __enter__(self) -> "LiveTable":
        if self._drawn:
            self._live.start()
            self._redirect_log()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._live.stop()
            self._redirect_log()
            if len(self._rows) > max(self._console.height - 8, 1):
                self._console.print(self._table(self._rows))

    @staticmethod
    def _redirect_log() -> None:
        """Point Flower's log at the standard error of this moment, which rich replaces."""
        for handler in logging.getLogger("flwr").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)

    def on_reply(self, done: int, total: int) -> None:
        """Show how many devices have answered in this round."""
        if self._task is not None:
            self._progress.update(self._task, note=f"{done} of {total} devices")

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Begin the rows of a method."""
        if not self._columns:
            owned = {m for sensors in node_modalities for m in sensors.split("+")}
            self._columns = sorted(owned)
            for name in ["method", "round", "mean", "min", *self._columns, "seconds", "kB sent"]:
                self._headers.append(name)
        self._method, self._since, self._seconds = method, time.monotonic(), 0.0
        self._task = self._progress.add_task(method, total=num_rounds, note="")
        self._draw()

    def round_ended(self, record: RoundRecord) -> None:
        """Advance the bar; add a row for an evaluated round."""
        if self._task is not None:
            self._progress.advance(self._task)
        self._seconds += record.seconds
        if record.accuracy is not None:
            alone = record.accuracy_by_modality
            row = [self._method, str(record.round)]
            row += [f"{record.accuracy:.3f}", f"{record.min_accuracy:.3f}"]
            row += [f"{alone[m]:.3f}" if m in alone else "-" for m in self._columns]
            self._rows.append([*row, f"{self._seconds:.1f}", f"{record.bytes_sent / 1e3:.0f}"])
        self._draw()

    def _draw(self) -> None:
        if self._drawn:
            fitting = max(self._console.height - 8, 1)  # rich would cut the newest rows
            self._live.update(Group(self._table(self._rows[-fitting:]), self._progress))

    def _table(self, rows: list[list[str]]) -> Table:
        table = Table(padding=(0, 0) if self._console.width < 80 else (0, 1))
        for name in self._headers:
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table
