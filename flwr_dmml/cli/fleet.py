"""The commands ``flwr-dmml fleet``."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..supernode import RUN
from .output import errors_in_words, say

if TYPE_CHECKING:
    from ..fleet import Fleet, Prepared, Report

fleet_app = typer.Typer(
    name="fleet",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

COPY_AGAIN = "copy the folders again, and run install.sh in them (without units: start anew)"
File = Annotated[Path, typer.Argument(metavar="FLEET.TOML", help="The file of the fleet.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder that fleet init makes.")]
User = Annotated[str, typer.Option(help="Who logs in on the devices.")]
Ssh = Annotated[str, typer.Option(help="The ssh command, with its options.")]


@fleet_app.callback()
def _root() -> None:
    r"""Prepare and check a fleet of devices under Flower's SuperLink, from one file.

    [bold]fleet.toml[/bold]

      name = "lab"                  # of the connection for flwr run

      \[superlink]
      host = "10.0.0.1"             # it listens there, and only there
      port = 8000

      \[\[device]]
      name = "pi-1"
      address = "10.0.0.11"
      data-path = "/data/part-000"  # on the device

    A device may also have partition-id (by default its place in the file), direct-port (7447),
    runtime-port (9094), profile ("raspberry-pi-4"), battery-j, meter ("none"), device ("cuda"),
    torch-threads, require-sealed (it takes part in runs with exchange.sealed only), zygote (false),
    metrics-port and metrics-host (see fleet device).

    Optional at the top: device-dir ("/etc/flwr-dmml"; {name} in it is the device's name), venv
    ("/opt/flwr-dmml") and user ("flwr-dmml", of the systemd units). In \[superlink]: dir, where its
    folder will be (by default where it is made).

    [bold]In this order[/bold]

      flwr-dmml fleet init fleet.toml -o lab

      sh lab/superlink/start.sh

      flwr-dmml fleet register fleet.toml -o lab

      rsync -a --chown=root:root lab/devices/pi-1/ root@10.0.0.11:/etc/flwr-dmml/

      sh /etc/flwr-dmml/install.sh  # on the device, as root

      flwr-dmml fleet status fleet.toml -o lab

      FLWR_HOME=lab/flwr flwr run examples/fleet lab --stream
    """


@fleet_app.command()
def init(
    file: File,
    output: Output,
    device_dir: Annotated[
        str | None,
        typer.Option(help="Path of a device's folder on the device; overrides the file's."),
    ] = None,
    renew: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Issue a new certificate for this device. Repeatable."),
    ] = None,
) -> None:
    """Make certificates, node keys, start scripts and systemd units for a fleet.

    OUTPUT/ca holds the fleet's own certificate authority. Its key (ca.key) is needed only for new
    devices and renewals: keep it where nobody else can read it. OUTPUT/superlink and
    OUTPUT/devices/NAME hold what the SuperLink and each device need, and nothing else: copy the
    whole folders. OUTPUT/flwr/config.toml is the connection for flwr run.

    Run it again when the file changes: existing devices are kept, new ones are added. Keys are
    never overwritten; scripts, environments and units are written again. A certificate that no
    longer matches (another address or partition-id) is refused until --renew NAME;
    [bold]superlink[/bold] is the SuperLink's name. --renew keeps the key; fleet rotate makes new
    keys, and fleet revoke bans a device.

    Certificates are valid for two years, the authority's for ten. In each folder install.sh, run as
    root, puts the systemd unit into /etc/systemd/system and starts it: the service's user owns
    neither the unit nor what it starts.

    [bold]Examples[/bold]

      flwr-dmml fleet init fleet.toml -o lab

      flwr-dmml fleet init fleet.toml -o lab --renew pi-1 --renew superlink

      flwr-dmml fleet init fleet.toml -o lab --device-dir '/srv/{name}'

    [bold]Exit status[/bold]  0: all is there.  1: the file is wrong, or something cannot be
    written; standard error says what.  2: wrong command line.
    """
    from ..fleet import prepare, read_fleet

    with errors_in_words():
        fleet = read_fleet(file, device_dir)
        _tell(fleet, output, prepare(fleet, output, renew or []))


def _tell(fleet: "Fleet", output: Path, done: "Prepared") -> None:
    from ..fleet.certificates import CA_DAYS, CERTIFICATE_DAYS
    from ..fleet.scripts import CONFIG

    for what, names in (
        ("made", done.made),
        ("new certificate", done.renewed),
        ("new keys and certificates", done.rotated),
        ("kept", done.kept),
    ):
        if names:
            say(f"{what}: {', '.join(names)}")
    if done.revoked:
        say(f"revoked: {', '.join(done.revoked)}")
    again = [*done.renewed, *done.rotated, *done.changed]
    if again:
        say(f"{COPY_AGAIN}: {', '.join(again)}")
    if done.dropped:
        say(f"no longer in the file, left as they are: {', '.join(done.dropped)}")
    if done.made or done.renewed or done.rotated:
        say(f"new certificates are valid for {CERTIFICATE_DAYS} days, the CA's for {CA_DAYS}")
    say(f"start the SuperLink: sh {output / 'superlink' / 'start.sh'}")
    for device in fleet.devices:
        say(f"copy {output / 'devices' / device.name} to {device.name}:{fleet.folder_of(device)}")
    say(f"the connection for flwr run: {output / CONFIG}")


@fleet_app.command(name="rotate")
def rotate_command(
    file: File,
    output: Output,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Devices, or superlink. By default all."),
    ] = None,
) -> None:
    """Make new keys and certificates; the old ones are refused.

    For each named device, its neighbours refuse the old certificate by the revocation list
    (revoked.crl in every device's folder), and the SuperLink refuses the old node key, which is
    unregistered there. Without names this applies to all devices and to the authority: everything
    that the old one has issued is refused everywhere. Flower itself reads no revocation list, so
    this is the only way to get the SuperLink's old certificate refused.

    The SuperLink must be running if devices were registered. Afterwards copy the folders, run their
    install.sh, and run fleet register. Rotate between runs: data that a device has encrypted for
    itself (exchange.sealed) can be read only with its old key.

    [bold]Examples[/bold]

      flwr-dmml fleet rotate fleet.toml -o lab pi-1

      flwr-dmml fleet rotate fleet.toml -o lab

    [bold]Exit status[/bold]  0: done.  1: nothing was changed, or something cannot be written;
    standard error says what.  2: wrong command line.
    """
    from ..fleet import read_fleet, rotate, unregister_devices

    with errors_in_words():
        fleet = read_fleet(file)
        unregister = partial(unregister_devices, fleet, output)
        _tell(fleet, output, rotate(fleet, output, names or [], unregister))
    say(f"then register the new keys: flwr-dmml fleet register {file} -o {output}")


@fleet_app.command(name="revoke")
def revoke_command(
    file: File,
    output: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.")],
) -> None:
    """Ban a device: its neighbours and the SuperLink refuse it.

    Its certificate is added to the authority's revocation list, which is written to the folders of
    all other devices (revoked.crl): once that is copied to them, they neither answer the device nor
    read its letters, whatever it presents. Its node is unregistered at the SuperLink, which must be
    running for that. The device need not be in the file any more. fleet rotate readmits it, with
    new keys.

    [bold]Example[/bold]

      flwr-dmml fleet revoke fleet.toml -o lab pi-1

    [bold]Exit status[/bold]  0: done, or was done before.  1: something is left to do: standard
    error says what; run it again.  2: wrong command line.
    """
    from ..fleet import read_fleet, revoke, unregister_devices

    with errors_in_words():
        fleet = read_fleet(file)
        told = revoke(output, name)
        say(f"revoked: {name}")
        if told:
            say(f"{COPY_AGAIN}: {', '.join(told)}")
        if unregister_devices(fleet, output, [name]):
            say(f"unregistered at the SuperLink: {name}")


@fleet_app.command(name="register")
def register_command(file: File, output: Output) -> None:
    """Register every device's public key with the SuperLink, which refuses all others.

    The SuperLink must be running. Registered devices stay registered: run it again after you add
    new ones. OUTPUT/nodes.json keeps the nodes' ids.

    [bold]Example[/bold]

      flwr-dmml fleet register fleet.toml -o lab

    [bold]Exit status[/bold]  0: all devices are registered.  1: one is not, or the SuperLink does
    not answer; the output says which, and why.  2: wrong command line.
    """
    from ..fleet import FleetError, read_fleet, register_devices

    with errors_in_words():
        done = register_devices(read_fleet(file), output)
        for one in done:
            say(f"{one.device}: {one.said}" + (f", node {one.node_id}" if one.node_id else ""))
        if failed := [one.device for one in done if one.failed]:
            raise FleetError(f"not registered: {', '.join(failed)}")


@fleet_app.command()
def status(
    file: File,
    output: Output,
    ask: Annotated[bool, typer.Option(help="Query the devices themselves.")] = True,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for the devices' answers.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Also certificates, ports, data, space and clocks.")
    ] = False,
    watch: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Check again after so long.")
    ] = None,
) -> None:
    """Check a running fleet: a line for each device, and below them every problem in words.

    Checked from here: the SuperLink's TLS against the fleet's authority; whether each device is
    registered and online, and whether unknown nodes are registered; when certificates expire (a
    problem from 30 days before); whether a device's direct port can be reached. Devices listen on
    that port only while they train together: closed is normal; a timeout is an error.

    Then a run queries the devices that are online: their last round and its error, the charge of
    the board's battery, versions, data, free disk and memory, their clock, and which of the others
    they reach. That takes about 20 s; a device that trains in
    another run answers after its current message, possibly too late. --no-ask skips this. The clock
    is compared with that of the SuperLink's machine, to within the seconds between question and
    answer.

    [bold]Examples[/bold]

      flwr-dmml fleet status fleet.toml -o lab

      flwr-dmml fleet status fleet.toml -o lab --no-ask --json

      flwr-dmml fleet status fleet.toml -o lab --watch 60

    [bold]Exit status[/bold]  0: all is well.  1: something is wrong.  2: wrong command line.
    130: --watch, ended by Ctrl-C.
    """
    while True:
        wrong = _status(file, output, timeout if ask else None, as_json=as_json, details=details)
        if watch is None:
            raise typer.Exit(1 if wrong else 0)
        time.sleep(watch)


def _status(
    file: Path, output: Path, timeout: float | None, *, as_json: bool, details: bool
) -> bool:
    """Check the fleet once, and print what was found; return whether something is wrong."""
    from ..fleet import ask_devices, examine, read_fleet
    from ..fleet.answers import cells
    from ..fleet.status import SOON_DAYS

    with errors_in_words():
        fleet = read_fleet(file)
        ask = None if timeout is None else partial(ask_devices, timeout_s=timeout)
        report = examine(fleet, output, ask)
    if as_json:
        say(report.as_json())
        return bool(report.problems)
    Console().print(_short(report))
    if details:
        Console().print(_table(fleet, report))
        if answered := {s.device.name: cells(s.heard) for s in report.devices if s.heard}:
            Console().print(_answers(answered))
    for problem in report.problems:
        say(f"- {problem}")
    if not report.problems:
        say(f"all is well; no certificate expires in the next {SOON_DAYS} days")
    return bool(report.problems)


@fleet_app.command()
def device(
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- ARGUMENT...", help="Of flower-supernode.")
    ],
    zygote: Annotated[
        bool, typer.Option(help="Keep torch loaded between messages, in a process of its own.")
    ] = True,
    run_dir: Annotated[
        Path, typer.Option(help="Folder of this device's own, for its socket and programs.")
    ] = Path(RUN),
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Serve metrics for Prometheus there; 0: do not.")
    ] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address for --metrics-port.")] = "127.0.0.1",
) -> None:
    r"""Run a device: Flower's SuperNode, with cheap messages. start.sh calls it.

    Flower starts a process for every message, which would load torch every time. Here a process
    that has loaded it (the zygote) forks for every message instead. If it does not answer within
    5 s, Flower's own program starts as usual. --no-zygote turns it off.

    While a run is on, the SuperNode also looks for messages more often than every 3 s, and less
    often again when none comes. That replaces names private to Flower: if they are not there, the
    log says "Flower's own waits". FLWR_DMML_FLOWER_WAITS=1 turns it off.

    --metrics-port serves what the device knows of its rounds (pip install "flwr-dmml\[metrics]"),
    on the loopback only unless --metrics-host says otherwise: whoever reaches it can read it.

    [bold]Example[/bold]

      flwr-dmml fleet device -- --insecure --superlink 10.0.0.1:8000

    [bold]Exit status[/bold]  that of flower-supernode.  1: Flower is not there, or the folder
    cannot be written; standard error says what.  2: wrong command line.
    """
    from ..base.openmetrics import served
    from ..supernode.device import ready_device
    from ..supernode.metrics import OnDevice

    with ExitStack() as stack:
        with errors_in_words():
            if metrics_port:
                collector = OnDevice(run_dir.absolute())
                stack.enter_context(served(collector, metrics_host, metrics_port))
            run = ready_device(run_dir, arguments, zygote=zygote)
        run()


@fleet_app.command(name="pull-models")
def pull_models_command(
    file: File,
    output: Output,
    user: User = "root",
    ssh: Ssh = "ssh",
) -> None:
    """Fetch the trained models that the devices keep, by ssh.

    At the end of a run each device writes its evaluated model beside its state, and with keep-best
    the best one, too. No model passes the SuperLink. This command copies all of them from each
    device to OUTPUT/models/NAME/run-ID/METHOD, and checks their digests. It runs
    [bold]ssh USER@ADDRESS tar[/bold]: only root and the service's user can read the files.

    [bold]Examples[/bold]

      flwr-dmml fleet pull-models fleet.toml -o lab

      flwr-dmml fleet pull-models fleet.toml -o lab --ssh 'ssh -p 2222'

    [bold]Exit status[/bold]  0: the models of all devices are here.  1: some are not;
    standard error says why.  2: wrong command line.
    """
    from ..fleet import FleetError, by_ssh, pull_models, read_fleet

    with errors_in_words():
        done = pull_models(read_fleet(file), output, by_ssh(user, ssh))
        for one in done:
            say(f"{one.device}: {len(one.models)} models" + "".join(f"\n  {m}" for m in one.models))
        if failed := [f"{one.device}: {one.problem}" for one in done if one.problem]:
            raise FleetError("not all models are here:\n  " + "\n  ".join(failed))


@fleet_app.command(name="logs")
def logs_command(
    file: File,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The last so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    user: User = "root",
    ssh: Ssh = "ssh",
) -> None:
    """Show the log of a device, by ssh.

    It is that of its systemd unit (journalctl); without one, the file that start.sh prints to.
    Control characters are shown escaped.

    [bold]Examples[/bold]

      flwr-dmml fleet logs fleet.toml pi-1 -n 200

      flwr-dmml fleet logs fleet.toml pi-1 --follow

    [bold]Exit status[/bold]  0: here it is.  1: it cannot be read; standard error says why.
    2: wrong command line.
    """
    from ..fleet import by_ssh, read_fleet
    from ..fleet.logs import read_log

    with errors_in_words():
        for line in read_log(read_fleet(file), name, by_ssh(user, ssh), lines, follow=follow):
            say(line)


def _short(report: "Report") -> Table:
    from ..fleet.answers import in_short

    table = Table("who", "state", *in_short(None))
    table.add_row("SuperLink", report.superlink)
    for state in report.devices:
        told = in_short(state.heard).values()
        table.add_row(state.device.name, state.node, *map(escape, told))
    return table


def _table(fleet: "Fleet", report: "Report") -> Table:
    table = Table("who", "part", "address", "state", "certificate until", "direct port")
    table.add_row("SuperLink", "", fleet.superlink.address, report.superlink, report.until, "")
    for state in report.devices:
        device = state.device
        table.add_row(
            device.name, str(device.partition_id), device.direct_address, state.node, state.until,
            state.direct_port,
        )  # fmt: skip
    return table


def _answers(answered: Mapping[str, Mapping[str, str]]) -> Table:
    columns = next(iter(answered.values()))
    table = Table("who", *columns)
    for name, told in answered.items():
        table.add_row(name, *map(escape, told.values()))
    return table
