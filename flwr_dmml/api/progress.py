"""Progress of a run that Python started: a bar in a notebook or on a terminal."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..tracking.pace import Pace
from ..tracking.records import RoundRecord


class ProgressBar:
    """A tracker that tells a subclass what to show: rounds done of all, in words and as a share."""

    def __init__(self) -> None:
        self._method, self._accuracy, self._replies = "", "", ""
        self._pace = Pace(1)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show()

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Begin the bar of a method."""
        self._method, self._accuracy, self._replies = method, "", ""
        self._pace = Pace(num_rounds)
        self._begin()
        self._show()

    def run_shortened(self, num_rounds: int) -> None:
        """Shorten the bar."""
        self._pace.total = num_rounds
        self._show()

    def on_reply(self, done: int, total: int) -> None:
        """Take note of how many devices have answered in this round."""
        self._replies = f", {done} of {total} devices"
        self._show()

    def round_ended(self, record: RoundRecord) -> None:
        """Advance the bar."""
        self._pace.advance()
        self._replies = ""
        if record.accuracy is not None:
            self._accuracy = f", accuracy {record.accuracy:.3f}"
        self._show()

    @property
    def text(self) -> str:
        """What is beside the bar."""
        return f"{self._pace}{self._replies}{self._accuracy}"

    def _begin(self) -> None:
        """Make room for another method."""

    def _show(self) -> None:
        """Show the state."""
        raise NotImplementedError


class NotebookBar(ProgressBar):
    """A bar below the cell, one for each method."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def _begin(self) -> None:
        display: Any = import_module("IPython.display").display
        self._handle = display(self, display_id=True)

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.update(self)

    def _repr_html_(self) -> str:
        method, pace = escape(self._method), self._pace
        return (
            f'<div>{method} <progress value="{pace.done}" max="{pace.total}" '
            f'aria-label="{method}"></progress> {escape(self.text)}</div>'
        )


class TerminalBar(ProgressBar):
    """A line on standard error for each method."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None

    def __enter__(self) -> "TerminalBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._progress.stop()

    def _begin(self) -> None:
        self._task = self._progress.add_task(self._method, note="")

    def _show(self) -> None:
        if self._task is not None:
            pace = self._pace
            self._progress.update(self._task, completed=pace.done, total=pace.total, note=self.text)


def progress_of(asked: bool | None) -> AbstractContextManager[ProgressBar | None]:
    """Return a bar that fits where this runs; none where nobody looks, unless it is asked for."""
    if asked is False:
        return nullcontext()
    if in_notebook():
        return NotebookBar()
    console = Console(stderr=True)
    return TerminalBar(console) if asked or console.is_terminal else nullcontext()


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and hasattr(found, "kernel")
