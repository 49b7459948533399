"""Output of the commands: plain text, labelled messages, errors and exit statuses."""

import signal
import webbrowser
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from ..base.errors import UserError
from ..base.stopping import status_of

STOPPED = tuple(status_of(number) for number in (signal.SIGINT, signal.SIGTERM))
"""Exit statuses after Ctrl-C and SIGTERM: 130 and 143."""


def say(text: str, *, err: bool = False) -> None:
    """Print plain text, to standard error if asked: no markup, no wrapping."""
    Console(stderr=err).print(text, markup=False, highlight=False, soft_wrap=True)


def labelled(label: str, style: str, text: str) -> None:
    """Print text to standard error behind a coloured label."""
    console = Console(stderr=True)
    console.print(f"[{style}]{label}:[/{style}]", end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Show an error that says all there is to say as one line, and end with its exit status."""
    try:
        yield
    except (UserError, OSError) as error:
        labelled("Error", "bold red", f"{type(error).__name__}: {error}")
        raise typer.Exit(error.exit_status if isinstance(error, UserError) else 1) from error


def page_written(path: Path, warnings: Iterable[str], open_it: bool) -> None:
    """Name the page that was written and its size, after what is doubtful about it."""
    for text in warnings:
        labelled("Warning", "bold yellow", text)
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if open_it:
        webbrowser.open(path.resolve().as_uri())
