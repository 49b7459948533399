"""The command ``flwr-dmml fleet push``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .fleet import File, Output, Ssh, User
from .output import errors_in_words, say

if TYPE_CHECKING:
    from ..fleet.push import Pushed


def push(
    file: File,
    output: Output,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="A wheel, a folder of wheels, or what pip takes.",
            show_default=False,
        ),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the version before; without WHAT.")
    ] = False,
    leaving: Annotated[
        str,
        typer.Option(metavar="VERSION", help="With --rollback: only from this version."),
    ] = "",
    canary: Annotated[
        int, typer.Option(min=0, metavar="K", help="Try the first K devices before the others.")
    ] = 0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this device. Repeatable.")
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, metavar="N", help="Devices to update at the same time.")
    ] = 1,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a folder to copy to the devices instead."),
    ] = None,
    user: User = "root",
    ssh: Ssh = "ssh",
) -> None:
    """Install a version of flwr-dmml on the devices, by ssh.

    WHAT is a wheel of flwr-dmml; a folder with it and the wheels of new requirements, for devices
    without a package index; or what pip makes a wheel of: flwr-dmml==1.3.0, or a clone of the
    repository. An app needs no push: Flower sends it with every run.

    Each device keeps its last two versions in the folder versions, over its virtual environment,
    which stays as it is: torch is not installed again. It tests the new version (an import, doctor,
    one dry round), switches, and starts anew. If that fails, or the device does not come back, or
    the SuperLink does not see it (where this machine reaches the SuperLink), the version before
    runs again. One device after another is updated, so that a run loses one at a time.

    [bold]--rollback[/bold] takes back the last push, once: devices must run the same version, or
    --leaving names the one (as the table shows it) that devices are to go back from.

    [bold]--bundle[/bold] writes the same as a folder. Copy it to a device, and run there, as root,
    the command that is printed.

    [bold]Examples[/bold]

      flwr-dmml fleet push fleet.toml flwr-dmml==1.3.0 -o lab --canary 1

      flwr-dmml fleet push fleet.toml dist -o lab --only pi-1

      flwr-dmml fleet push fleet.toml -o lab --rollback

    [bold]Exit status[/bold]  0: these devices run the version, or the bundle is written.  1: one
    does not; the output says which, and why.  2: wrong command line.
    """
    from ..fleet import by_ssh, read_fleet
    from ..fleet import push as pushing

    if rollback == (what is not None):
        raise typer.BadParameter("give WHAT, or --rollback")
    if leaving and not rollback:
        raise typer.BadParameter("--leaving goes with --rollback")
    with errors_in_words(), tempfile.TemporaryDirectory() as scratch:
        fleet = read_fleet(file)
        devices = fleet.called(only) if only else fleet.devices
        version = None if what is None else pushing.find_version(what, Path(scratch))
        if bundle is not None:
            pushing.write_bundle(fleet, devices, bundle, version, leaving)
            say(f"copy {bundle} to each device, for example to /root/update; then there, as root:")
            for device in devices:
                command = pushing.by_hand(fleet, device, "/root/update")
                say(f"{device.name}: {command}" + (" --rollback" if rollback else ""))
            return
        remote = by_ssh(user, ssh)
        done = pushing.push(
            fleet,
            output,
            devices,
            version,
            remote,
            leaving=leaving,
            canary=canary,
            at_once=at_once,
            tell=_tell,
        )
    Console().print(_table(done))
    if not all(one.done for one in done):
        raise typer.Exit(1)


def _tell(one: "Pushed") -> None:
    say(f"{one.device}: {one.result}")


def _table(done: "Sequence[Pushed]") -> Table:
    table = Table("who", "was", "now", "result", Column("why", overflow="fold"))
    for one in done:
        table.add_row(*map(escape, (one.device, one.was, one.now, one.result, one.why)))
    return table
