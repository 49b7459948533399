"""The command ``flwr-dmml simulate``."""

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import INFO
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from ..base.log import log
from ..base.overrides import with_overrides
from ..base.stopping import Terminated, sigterm_exits, status_of, stop_requests
from ..engine.choice import Choice, devices, processes
from ..engine.local_ray import ahead
from ..engine.project import read_project
from .arguments import AppFolder, Nodes, Overrides, changed_settings
from .output import errors_in_words, labelled, say

Kind = Literal["methods", "gossip", "aggregation"]
_warn = partial(labelled, "Warning", "bold yellow")


def simulate(
    path: AppFolder = Path("."),
    nodes: Nodes = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes to spread the devices over; 0: all in this one. By default the size of "
            "the run decides.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Spread them over this Ray cluster; sets ray-address."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Continue a run that was stopped, with its settings."),
    ] = None,
    description: Annotated[
        bool,
        typer.Option("--describe", help="Show models, bytes and operations of each device kind."),
    ] = False,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="List the methods and their papers, and stop.")
    ] = False,
    list_gossip: Annotated[
        bool,
        typer.Option("--list-gossip", help="List the gossip rules and their papers, and stop."),
    ] = False,
    list_aggregation: Annotated[
        bool,
        typer.Option("--list-aggregation", help="List the aggregation rules, and stop."),
    ] = False,
    bibtex: Annotated[
        bool, typer.Option("--bibtex", help="With one of these lists: the papers, as BibTeX.")
    ] = False,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", help="List every run-config key, and stop.")
    ] = False,
) -> None:
    """Run a Flower app on this machine: its devices in one process or a few, without a server.

    PATH is the app's folder, the one with its pyproject.toml (default: the current folder).

    In a small run all devices take turns in this process. A run with more than about two minutes of
    training uses one process per core if Ray is installed, and a run on a Ray cluster always does;
    the log says which. --workers (or the setting [bold]workers[/bold]) sets the number; 0 means
    this process.

    The app, its settings and (on a CPU) its numbers are those of [bold]flwr run[/bold], bit for bit
    for the same seed. Log lines and a live table show the progress; the run folder holds
    the resolved settings (config.json) and one line of metrics per round (<method>/metrics.jsonl).

    Ctrl-C and SIGTERM stop after the round with a checkpoint; a second one stops at once. --resume
    RUN continues from the last checkpoint of a run that was stopped or killed (RUN: its folder, or
    its name in run-dir) and ends with the same numbers as an uninterrupted run.

    [bold]Examples[/bold]

      flwr-dmml simulate examples/quickstart

      flwr-dmml simulate examples/quickstart --nodes 24 --set method=dsgdm

      flwr-dmml simulate examples/quickstart --set topology=torus --set seed=3

      flwr-dmml simulate . --set dataset=av-digits --set data-path=DATA

      flwr-dmml simulate . --set dmml-kd.distillation=false --workers 4

      flwr-dmml simulate . --describe --set image-encoder=tiny

      flwr-dmml simulate . --resume runs/20261121-120000-dmml-kd

    [bold]Exit status[/bold]  0: all rounds ran.  1: the run failed, or could not start; standard
    error says why.  2: wrong command line.  130: stopped with Ctrl-C.  143: stopped with SIGTERM.
    """
    if list_settings:
        console = Console()
        console.print(_settings_table(narrow=console.width < 100))
        return
    if list_methods or list_gossip or list_aggregation:
        asked: list[tuple[bool, Kind]] = [
            (list_methods, "methods"),
            (list_gossip, "gossip"),
            (list_aggregation, "aggregation"),
        ]
        kinds = [kind for wanted, kind in asked if wanted]
        if bibtex:
            _say_bibliography(kinds)
            return
        for kind in kinds:
            Console().print(_parts_table(kind))
        return
    if bibtex:
        raise typer.BadParameter(
            "--bibtex goes with --list-methods, --list-gossip or --list-aggregation"
        )
    try:
        with errors_in_words(), sigterm_exits():
            changed = changed_settings(overrides, nodes)
            config = {**with_overrides(read_project(path)[1]), **changed}
            if ray_address is not None:
                config["ray-address"] = ray_address
            chosen = None if resume or description else processes(workers, config, _warn)
            early = 0
            if chosen is not None and not config.get("ray-address"):
                early = min(chosen.workers, devices(config))
            with ahead(early):  # Ray starts while the app, Flower and torch are loaded
                _run(path, changed, workers, ray_address, resume, description, chosen)
    except (KeyboardInterrupt, Terminated) as stop:
        say(
            "Stopped. Continue from the last checkpoint with --resume and the run folder.", err=True
        )
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise typer.Exit(status_of(number)) from stop


def _run(
    path: Path,
    changed: dict[str, Any],
    workers: int | None,
    ray_address: str | None,
    resume: str | None,
    description: bool,
    chosen: Choice | None,
) -> None:
    """Load the app and run it, or describe it; choose the processes where that is still open.

    Raises
    ------
    typer.Exit
        The run was stopped.
    """
    from flwr.common.logger import update_console_handler

    from ..engine import check_known, load_app, run_app
    from ..strategies import RunStoppedError, resumed_settings
    from ..tracking.live import LiveTable
    from .describe import describe, tables

    err = Console(stderr=True)
    update_console_handler(colored=err.is_terminal and not err.no_color)
    loaded = load_app(path)
    loaded = replace(loaded, run_config=dict(with_overrides(loaded.run_config)))
    check_known(loaded, changed)
    if resume is not None:
        changed = resumed_settings(resume, {**loaded.run_config, **changed}, changed)
    if ray_address is not None:
        changed["ray-address"] = ray_address
    config = {**loaded.run_config, **changed}
    if description:
        Console().print(tables(describe(loaded, config)))
        return
    if workers == 0 and config.get("ray-address"):
        raise typer.BadParameter("--workers 0 and ray-address: one process needs no cluster")
    chosen = chosen or processes(workers, config, _warn)
    if chosen.reason:
        where = f"{chosen.workers} processes" if chosen.workers else "this process"
        log(INFO, "Devices run in %s: %s (--workers N changes this)", where, chosen.reason)

    def said(number: int) -> None:
        err.print("Stopping after this round; Ctrl-C or SIGTERM again stops at once.")

    with stop_requests(said, signal.SIGINT, signal.SIGTERM) as stopping:
        try:
            with LiveTable(err) as live:
                run_app(
                    loaded,
                    devices(config),
                    changed,
                    workers=chosen.workers,
                    ray_address=str(config.get("ray-address", "")),
                    trackers=[live],
                    on_reply=live.on_reply,
                    stopping=stopping,
                )
        except RunStoppedError as error:
            say(str(error), err=True)
            raise typer.Exit(status_of(stopping.number)) from error


def _parts(kind: Kind) -> Mapping[str, Any]:
    from ..gossip.aggregation.nnm import NNM, Nnm
    from ..settings import find_parts

    prefixes = {NNM: Nnm} if kind == "aggregation" else {}
    return {**getattr(find_parts(), kind), **prefixes}


def _say_bibliography(kinds: Sequence[Kind]) -> None:
    from ..base.references import bibliography

    with errors_in_words():
        say(bibliography({name: part for kind in kinds for name, part in _parts(kind).items()}))


def _parts_table(kind: Kind) -> Table:
    title = {"methods": "method", "gossip": "gossip rule", "aggregation": "aggregation rule"}[kind]
    table = Table(title, "what it does", "source")
    for name, part in _parts(kind).items():
        summary = (part.__doc__ or "").strip().splitlines()
        table.add_row(name, summary[0] if summary else "", part.paper)
    return table


def _settings_table(*, narrow: bool) -> Table:
    """Return every key with its default, as it is written in TOML."""
    from ..settings import every_setting, find_parts

    default = Column("default", overflow="fold", max_width=13 if narrow else None)
    table = Table(Column("key", no_wrap=True), default, Column("meaning", overflow="fold"))
    for key, info in every_setting(find_parts()):
        table.add_row(key, json.dumps(info.default), info.description)
    return table
