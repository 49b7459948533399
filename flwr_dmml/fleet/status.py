"""Whether a running fleet is well, and what is wrong if it is not."""

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .config import Device, Fleet, FleetError
from .folder import authority, certificate_problem, device_folder
from .superlink import TIMEOUT_S, UNREGISTERED, handshake, in_words, list_nodes, node_of

SOON_DAYS = 30
"""A certificate that expires in fewer days is reported."""
CONNECTIONS = 16


@dataclass(frozen=True)
class DeviceState:
    """What is known of a device.

    Attributes
    ----------
    device : Device
        The device.
    node : str
        What the SuperLink says of its node.
    until : str
        The last day of its certificate.
    peer_port : str
        Whether something listens there.
    said : dict of str to str
        What it says of itself, see :func:`said_by_devices`.
    """

    device: Device
    node: str
    until: str
    peer_port: str
    said: Mapping[str, str] = field(default_factory=dict)


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


Ask = Callable[[Fleet, Path], Mapping[str, Mapping[str, str]]]


def said_by_devices(fleet: Fleet, folder: Path) -> Mapping[str, Mapping[str, str]]:
    """Return what devices say of themselves, by their names: a column of the table for each key.

    The place for versions, the data's summary and the clock's skew. Only a Flower app can ask a
    device, and this package has none for it yet: nobody is asked. :func:`examine` takes another
    function in its stead.
    """
    return {}


def examine(fleet: Fleet, folder: Path, ask: Ask = said_by_devices) -> Report:
    """Check the SuperLink, the nodes, the certificates, and who can be reached from here.

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
        ports = list(pool.map(_peer_port, fleet.devices))
    said = ask(fleet, folder) if not link else {}
    states = []
    for device, port in zip(fleet.devices, ports, strict=True):
        file = device_folder(folder, device) / "peer.crt"
        valid, expiry = certificate_problem(device.name, file, SOON_DAYS)
        node, trouble = _node(device, own[device.name], nodes)
        problems += [text for text in (trouble, expiry, port[1]) if text]
        states.append(DeviceState(device, node, valid, port[0], said.get(device.name, {})))
    for node_id, status in (nodes or {}).items():
        if status != UNREGISTERED and node_id not in own.values():
            problems.append(
                f"node {node_id} ({status}) is no device of this fleet: to refuse it, "
                f"flwr supernode unregister {node_id} {fleet.name}"
            )
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
        UNREGISTERED: "was unregistered and is refused: it needs a new node key",
    }
    trouble = advice.get(status, f"has the unknown status {status}")
    return status, f"{device.name} {trouble}" if trouble else ""


def _peer_port(device: Device) -> tuple[str, str]:
    """Return whether a device's peer port is open, and what is wrong with it, or nothing.

    Devices listen only while they train together, so that nobody listens is no fault.
    """
    try:
        socket.create_connection((device.address, device.peer_port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "closed", ""
    except OSError as error:
        why = in_words(error)
        return why, f"{device.name}: {device.peer_address} cannot be reached from here: {why}"
    return "open", ""
