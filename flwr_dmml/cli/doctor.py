"""The command ``flwr-dmml doctor``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .. import __version__
from .output import say

if TYPE_CHECKING:
    from ..doctor import Finding

_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "error": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check whether this machine can run flwr-dmml, and say how to fix it if it cannot.

    Every library is actually used: a spectrogram, a linear program, a task in Ray, a matrix product
    on the GPU if there is one. Cores, memory, shared memory, open files, disk and the folders that
    are written to are checked. This takes half a minute, a few minutes on a small board.

    "absent" is an extra that is not installed, which is fine. A "warning" may become a problem. An
    "error" does not work; everything that does not need it still runs.

    [bold]Examples[/bold]

      flwr-dmml doctor

      flwr-dmml doctor --json > machine.json

    [bold]Exit status[/bold]  0: no error.  1: something does not work.  2: wrong command line.
    """
    from ..doctor import examine

    err, findings = Console(stderr=True), list["Finding"]()
    with err.status("Checking…") as status:
        for finding in examine():
            findings.append(finding)
            status.update(f"Checking… {finding.what}: {finding.state}")
    failed = any(finding.state == "error" for finding in findings)
    if as_json:
        listed = [asdict(finding) for finding in findings]
        say(json.dumps({"version": __version__, "ok": not failed, "findings": listed}, indent=2))
    else:
        Console().print(_table(findings))
        _tell(findings)
    if failed:
        raise typer.Exit(1)


def _table(findings: "Sequence[Finding]") -> Table:
    table = Table("what", "version", "state", Column("seen", overflow="fold"))
    for one in findings:
        table.add_row(one.what, one.version, Text(one.state, _STYLES[one.state]), Text(one.seen))
    return table


def _tell(findings: "Sequence[Finding]") -> None:
    """Print what is wrong and how to fix it."""
    wrong = [one for one in findings if one.state in ("warning", "error")]
    for one in sorted(wrong, key=lambda one: one.state):
        say(f"{one.state}: {one.what}: {one.seen}\n  to fix it: {one.mend}")
    if not wrong:
        say(f"flwr-dmml {__version__}: all is well")
