"""The command line, ``flwr-dmml``: a command a file.

Commands import what they need when they run: ``--help``, shell completion and ``doctor`` take no
second, and work where a library is broken.
"""

import inspect
import os
import re
import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

from .. import __version__
from . import (
    audit,
    cache,
    compare,
    data,
    doctor,
    fleet,
    models,
    new,
    partition,
    push,
    report,
    serve,
    simulate,
    status,
    sweep,
)
from .output import STOPPED, say

app = typer.Typer(
    name="flwr-dmml",
    help="Serverless multi-modal learning on Flower.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"flwr-dmml {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Serverless multi-modal learning on Flower: devices with different sensors train together."""


app.command()(new.new)
app.command()(simulate.simulate)
app.command()(status.status)
app.command()(report.report)
app.command()(compare.compare)
app.command()(audit.audit)
app.command()(sweep.sweep)
app.command()(models.predict)
app.command()(models.export)
app.command()(partition.partition)
app.add_typer(data.data_app)
app.command()(cache.cache)
fleet.fleet_app.command()(serve.serve)
fleet.fleet_app.command()(push.push)
app.add_typer(fleet.fleet_app)
app.command()(doctor.doctor)


def _wrapped_by_the_terminal(group: typer.Typer) -> None:
    """Join the lines of paragraphs in help texts; indented lines, the examples, stay."""
    commands: list[CommandInfo | TyperInfo] = [*group.registered_commands]
    if group.registered_callback is not None:
        commands.append(group.registered_callback)
    for command in commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", text)


for _group in (app, data.data_app, fleet.fleet_app):
    _wrapped_by_the_terminal(_group)


def main() -> None:
    """Run the command line; what a terminal's encoding lacks is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as stop:
        if stop.code in STOPPED:  # a device's thread may be deep inside torch: do not wait for it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise
