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
from rich.text import Text

from .pace import Pace
from .records import RoundRecord

_LEAST_FIRST = ("Mbit", "device s", "balance", "updates", "min", "battery", "joules")


class LiveTable:
    """Show every evaluated round in a table, above a bar for rounds, time left and devices.

    Columns: mean, lowest and each modality's accuracy; wall-clock seconds; kB sent by a device in
    the round; updates of each modality's encoder in the round; joules of the run, and the median
    battery; balance metric; seconds that the run takes on the devices; Mbit on the air. A narrow
    console shows fewer.

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
        self._pace = Pace(1)
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
            self._headers += [
                "method",
                "round",
                "mean",
                "min",
                *self._columns,
                "seconds",
                "kB sent",
            ]
            self._headers += ["updates", "joules", "battery", "balance", "device s", "Mbit"]
        self._method, self._since, self._seconds = method, time.monotonic(), 0.0
        self._pace = Pace(num_rounds)
        self._task = self._progress.add_task(self._so_far, total=num_rounds, note="")
        self._draw()

    def run_shortened(self, num_rounds: int) -> None:
        """Shorten the bar."""
        self._pace.total = num_rounds
        if self._task is not None:
            self._progress.update(self._task, total=num_rounds, description=self._so_far)

    def round_ended(self, record: RoundRecord) -> None:
        """Advance the bar; add a row for an evaluated round."""
        self._pace.advance()
        if self._task is not None:
            self._progress.update(self._task, advance=1, description=self._so_far)
        self._seconds += record.seconds
        if record.accuracy is not None:
            alone, updates = record.accuracy_by_modality, record.updates_by_modality
            battery = record.battery_quantiles_j
            row = [self._method, str(record.round)]
            row += [f"{record.accuracy:.3f}", f"{record.min_accuracy:.3f}"]
            row += [f"{alone[m]:.3f}" if m in alone else "-" for m in self._columns]
            row += [f"{self._seconds:.1f}", f"{record.bytes_sent / 1e3:.0f}"]
            row += ["/".join(f"{updates[m]:.1f}" if m in updates else "-" for m in self._columns)]
            row += [f"{record.total_j:.1f}", f"{battery[2]:.2f}" if battery else "mains"]
            row += ["-" if record.balance is None else f"{record.balance:.2f}"]
            row += [f"{record.total_simulated_s:.1f}", f"{record.total_bits / 1e6:.0f}"]
            self._rows.append(row)
        self._draw()

    @property
    def _so_far(self) -> str:
        return f"{self._method}, {self._pace}"

    def _draw(self) -> None:
        if self._drawn:
            fitting = max(self._console.height - 8, 1)  # rich would cut the newest rows
            self._live.update(Group(self._table(self._rows[-fitting:]), self._progress))

    def _table(self, rows: list[list[str]]) -> Table:
        padding = 1 if self._console.width >= 130 else 0
        shown = self._fitting(rows, 2 * padding)
        table = Table(padding=(0, padding))
        for name in shown:
            table.add_column(
                Text(name), justify="left" if name == "method" else "right", no_wrap=True
            )
        for row in rows:
            cells = dict(zip(self._headers, row, strict=True))
            table.add_row(*(cells[name] for name in shown))
        return table

    def _fitting(self, rows: list[list[str]], padding: int) -> list[str]:
        """Return the headers that fit the console: what matters least goes first."""
        widths = {
            name: max(map(len, [name, *(row[i] for row in rows)])) + padding + 1
            for i, name in enumerate(self._headers)
        }
        for name in _LEAST_FIRST:
            if sum(widths.values()) < self._console.width:
                break
            widths.pop(name, None)
        return list(widths)
