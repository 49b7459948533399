"""Status check of a running fleet: its state, and the problems found."""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .answers import Heard, problems_of
from .asking import Asked
from .config import Device, Fleet, FleetError
from .folder import authority, certificate_problem, device_folder
from .superlink import TIMEOUT_S, UNREGISTERED, handshake, in_words, list_nodes, node_of

SOON_DAYS = 30
"""A certificate that expires in fewer days is reported."""
CONNECTIONS = 16


@dataclass(frozen=True)
class DeviceState:
    """State of a device.

    Attributes
    ----------
    device : Device
        The device.
    node : str
        What the SuperLink says of its node.
    until : str
        The last day of its certificate.
    direct_port : str
        Whether something listens there.
    heard : Heard, optional
        What it says of itself; nothing if it was not asked, or has not answered.
    """

    device: Device
    node: str
    until: str
    direct_port: str
    heard: Heard | None = None


@dataclass(frozen=True)
class Report:
    """The state of a fleet.

    Attributes
    ----------
    superlink : str
        How the SuperLink is.
    until : str
        The last day of its certificate.
    devices : list of DeviceState
        In the fleet's order.
    problems : list of str
        What is wrong, in words; nothing if all is well.
    """

    superlink: str
    until: str
    devices: list[DeviceState]
    problems: list[str]

    def as_json(self) -> str:
        """Return all of it for programs."""
        devices = [
            {
                "name": state.device.name,
                "partition-id": state.device.partition_id,
                "address": state.device.direct_address,
                "node": state.node,
                "certificate-until": state.until,
                "direct-port": state.direct_port,
                "answer": state.heard and state.heard.answer.model_dump(mode="json"),
                "clock-ahead-s": state.heard and state.heard.skew_s,
            }
            for state in self.devices
        ]
        superlink = {"state": self.superlink, "certificate-until": self.until}
        whole = {"superlink": superlink, "devices": devices, "problems": self.problems}
        return json.dumps(whole, indent=2)


Ask = Callable[[Fleet, Path, Sequence[Device]], Asked]


def examine(fleet: Fleet, folder: Path, ask: Ask | None = None) -> Report:
    """Check the SuperLink, the nodes, the certificates, and who can be reached from here.

    Devices that are online are asked by ``ask``, if it is given: a run of a minute at most.

    Raises
    ------
    FleetError
        The folder is not one that ``fleet init`` has made for this fleet.
    """
    problems = []
    _, expiry = certificate_problem("ca", authority(folder).certificate_file, SOON_DAYS)
    problems += [expiry] if expiry else []
    until, expiry = certificate_problem("superlink", folder / "superlink" / "server.crt", SOON_DAYS)
    problems += [expiry] if expiry else []
    own = {device.name: node_of(folder, device) for device in fleet.devices}
    nodes: dict[str, str] | None = None
    link = handshake(fleet, folder)
    if link:
        problems.append(link)
    else:
        try:
            nodes = list_nodes(fleet, folder)
        except FleetError as error:
            link = str(error)
            problems.append(link)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        ports = list(pool.map(_direct_port, fleet.devices))
    online = [d for d in fleet.devices if (nodes or {}).get(own[d.name]) == "online"]
    asked = Asked()
    if ask is not None and online:
        try:
            asked = ask(fleet, folder, online)
        except FleetError as error:
            asked = Asked(problems=[str(error)])
    states = []
    for device, port in zip(fleet.devices, ports, strict=True):
        file = device_folder(folder, device) / "peer.crt"
        valid, expiry = certificate_problem(device.name, file, SOON_DAYS)
        node, trouble = _node(device, own[device.name], nodes)
        if authority(folder).has_revoked(file):
            trouble, expiry = _revoked(device, node), ""
        problems += [text for text in (trouble, expiry, port[1]) if text]
        states.append(DeviceState(device, node, valid, port[0], asked.heard.get(device.name)))
    for node_id, status in (nodes or {}).items():
        if status != UNREGISTERED and node_id not in own.values():
            problems.append(
                f"node {node_id} ({status}) is no device of this fleet: to refuse it, "
                f"flwr supernode unregister {node_id} {fleet.name}"
            )
    problems += [*asked.problems, *problems_of(fleet, asked.heard)]
    return Report("not well" if link else "well", until, states, problems)


def _node(device: Device, node_id: str, nodes: Mapping[str, str] | None) -> tuple[str, str]:
    """Return the status of a device's node, and what is wrong with it, or nothing."""
    if nodes is None:
        return "unknown", ""
    status = nodes.get(node_id, "not registered")
    advice = {
        "online": "",
        "registered": "is registered and was never there: start its start.sh, or read its log",
        "offline": "is offline: read its log, and whether it reaches the SuperLink",
        "not registered": "is not registered and is refused: flwr-dmml fleet register",
        UNREGISTERED: "was unregistered and is refused: flwr-dmml fleet rotate gives it new keys",
    }
    trouble = advice.get(status, f"has the unknown status {status}")
    return status, f"{device.name} {trouble}" if trouble else ""


def _revoked(device: Device, status: str) -> str:
    """Return what is to be done about a device that is revoked."""
    if status in ("online", "registered", "offline"):
        return f"{device.name} is revoked, and still registered: flwr-dmml fleet revoke once more"
    return (
        f"{device.name} is revoked: take it out of the file, or give it new keys "
        "(flwr-dmml fleet rotate)"
    )


def _direct_port(device: Device) -> tuple[str, str]:
    """Return whether a device's direct port is open, and what is wrong with it, or nothing.

    Devices listen only while they train together, so a closed port is normal.
    """
    try:
        socket.create_connection((device.address, device.direct_port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "closed", ""
    except OSError as error:
        why = in_words(error)
        return why, f"{device.name}: {device.direct_address} cannot be reached from here: {why}"
    return "open", ""
