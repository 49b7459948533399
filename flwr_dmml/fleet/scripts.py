"""Start files of the SuperLink and of devices: scripts, environments, and systemd units.

A unit, and what it starts, is root's: ``install.sh`` puts the unit into systemd's own folder, and
leaves the service's user nothing to write in but folders of its own (:data:`OWN`).
"""

import shlex
from pathlib import Path

from ..supernode import RUN
from .certificates import REVOKED
from .config import NAME, Device, Fleet
from .quoting import node_config, toml_value, unit_path, unit_word
from .update import CURRENT, PID, VERSIONS

CONFIG = Path("flwr") / "config.toml"
"""The connection for ``flwr run``, in a folder that can be ``FLWR_HOME``."""

OWN = "state", "flwr", "cache"
"""Folders in which a device or the SuperLink writes."""
RUNS = "runs"
"""One more of the SuperLink's: run folders, where the run config does not say another place."""

LOG = "state/log"
"""The file in which start.sh leaves where it prints."""

LAYERED = """\
# The version that fleet push has switched to lies over what the virtual environment holds.
PYTHONPATH={current}"${{PYTHONPATH:+:$PYTHONPATH}}"
"""

START = """\
#!/bin/sh
# {title} Made by flwr-dmml fleet init.
set -eu
umask 077
cd -- {folder}
mkdir -p {own}
echo $$ > {pid}
echo "$(readlink /proc/$$/fd/1)" > {log}
set -a
. ./environment
set +a
exec {command}
"""

ENVIRONMENT = """\
# Read by start.sh. Made by flwr-dmml fleet init.
PATH={programs}:"$PATH"
FLWR_HOME={home}
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
FLWR_DMML_CACHE={cache}
"""

UNIT = """\
# Made by flwr-dmml fleet init.
[Unit]
Description={title}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User={user}
ExecStart=/bin/sh {script}
Restart=always
RestartSec=10
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={own}

[Install]
WantedBy=multi-user.target
"""

UNIT_NAME = "flwr-dmml-{}.service"

INSTALL = """\
#!/bin/sh
# {title} Installs and starts its systemd unit: run it as root. Made by flwr-dmml fleet init.
set -eu
units=${{1:-/etc/systemd/system}}
stop() {{ echo "install.sh: $1" >&2; exit 1; }}
[ "$(id -u)" = 0 ] || stop "run it as root"
cd -- {folder}
for file in . {files}; do
  [ -O "$file" ] && [ ! -L "$file" ] ||
    stop "$file is not root's: remove this folder, and copy it again as root"
done
id -u {user} >/dev/null 2>&1 || useradd --system --user-group --shell /usr/sbin/nologin {user}
group=$(id -gn {user})
# The service reads what is here. It writes in folders of its own, never its unit or its scripts.
chown root:"$group" . {files}
chmod 0750 .
chmod 0640 {files}
for own in {own}; do
  [ ! -L "$own" ] || stop "$own is a link"
  install -d -o {user} -g "$group" -m 0700 "$own"
done
install -o root -g root -m 0644 {unit} "$units/{unit}"
systemctl daemon-reload
systemctl enable {unit}
systemctl restart {unit}
"""


def superlink_command(fleet: Fleet, folder: str) -> list[str]:
    """Return what starts the SuperLink: TLS, only registered devices, on the told address only."""
    link = fleet.superlink
    return [
        "flower-superlink",
        "--host", link.host,
        "--port", str(link.port),
        "--ssl-ca-certfile", f"{folder}/ca.crt",
        "--ssl-certfile", f"{folder}/server.crt",
        "--ssl-keyfile", f"{folder}/server.key",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database", f"{folder}/state/superlink.db",
    ]  # fmt: skip


def device_command(fleet: Fleet, device: Device) -> list[str]:
    """Return what starts a device's SuperNode, and what makes its messages cheap."""
    folder = fleet.folder_of(device)
    options = [] if device.zygote else ["--no-zygote"]
    if device.metrics_port:
        options += ["--metrics-port", str(device.metrics_port)]
        options += ["--metrics-host", device.metrics_host]
    return [
        "flwr-dmml", "fleet", "device", *options, "--",
        "--superlink", fleet.superlink.address,
        "--root-certificates", f"{folder}/ca.crt",
        "--auth-supernode-private-key", f"{folder}/node-key",
        "--port", str(device.runtime_port),
        "--node-config", node_config(device_config(fleet, device)),
    ]  # fmt: skip


def device_config(fleet: Fleet, device: Device) -> dict[str, str | int]:
    """Return the node config of a device: its data, its place, and how neighbours reach it.

    It talks to them over TLS, or not at all.
    """
    folder = fleet.folder_of(device)
    config: dict[str, str | int | None] = {
        "data-path": device.data_path,
        "partition-id": device.partition_id,
        "num-partitions": len(fleet.devices),
        "direct-address": device.direct_address,
        "tls-ca": f"{folder}/ca.crt",
        "tls-certificate": f"{folder}/peer.crt",
        "tls-key": f"{folder}/peer.key",
        "tls-revoked": f"{folder}/{REVOKED}",
        "require-tls": True,
        "require-sealed": device.require_sealed or None,
        "state-dir": f"{folder}/state",
        "profile": device.profile,
        "battery-j": device.battery_j,
        "meter": device.meter,
        "device": device.device,
        "torch-threads": device.torch_threads,
    }
    return {key: value for key, value in config.items() if value is not None}


def connection(fleet: Fleet, ca: Path) -> str:
    """Return the connection for ``flwr run``."""
    return (
        "# For ~/.flwr/config.toml; or set FLWR_HOME to this folder. Made by flwr-dmml fleet init."
        f'\n[superlink]\ndefault = "{fleet.name}"\n\n'
        f"[superlink.{fleet.name}]\n"
        f"address = {toml_value(fleet.superlink.address)}\n"
        f"root-certificates = {toml_value(str(ca))}\n"
    )


def superlink_files(fleet: Fleet, folder: str) -> dict[str, str]:
    """Return the text files of the SuperLink's folder."""
    title = f"SuperLink of the fleet {fleet.name}."
    keys = "ca.crt", "server.crt", "server.key"
    command = superlink_command(fleet, folder)
    return _files(fleet, folder, title, command, "superlink", keys, (*OWN, RUNS))


def device_files(fleet: Fleet, device: Device) -> dict[str, str]:
    """Return the text files of a device's folder."""
    title = f"Device {device.name} of the fleet {fleet.name}."
    command, folder = device_command(fleet, device), fleet.folder_of(device)
    keys = "ca.crt", "peer.crt", "peer.key", "node-key", "node-key.pub", REVOKED
    current = f"{folder}/{VERSIONS}/{CURRENT}"
    files = _files(
        fleet, folder, title, command, _called(fleet, device), keys, (*OWN, RUN), current
    )
    files["environment"] += LAYERED.format(current=shlex.quote(current))
    return files


def unit_of(fleet: Fleet, device: Device) -> str:
    """Return the name of a device's systemd unit."""
    return UNIT_NAME.format(_called(fleet, device))


def _called(fleet: Fleet, device: Device) -> str:
    return device.name if NAME in fleet.device_dir else "device"  # of several on one machine


def _files(
    fleet: Fleet,
    folder: str,
    title: str,
    command: list[str],
    name: str,
    keys: tuple[str, ...],
    own: tuple[str, ...],
    layer: str = "",
) -> dict[str, str]:
    first, *others = command
    lines = [first]
    for word in others:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    place, unit = shlex.quote(folder), UNIT_NAME.format(name)
    programs = [f"{one}/bin" for one in (layer, fleet.venv) if one]
    files = "start.sh", "install.sh", "environment", unit, *keys
    return {
        "start.sh": START.format(
            title=title,
            folder=place,
            own=" ".join(own),
            pid=PID,
            log=LOG,
            command=" \\\n  ".join(lines),
        ),
        "install.sh": INSTALL.format(
            title=title,
            folder=place,
            user=fleet.user,
            files=" ".join(files),
            own=" ".join(own),
            unit=unit,
        ),
        "environment": ENVIRONMENT.format(
            programs=shlex.quote(":".join(programs)),
            home=shlex.quote(f"{folder}/flwr"),
            cache=shlex.quote(f"{folder}/cache"),
        ),
        unit: UNIT.format(
            title=title,
            user=fleet.user,
            script=unit_word(f"{folder}/start.sh"),
            own=" ".join(unit_path(f"{folder}/{one}") for one in own),
        ),
    }
