"""Queries to the SuperLink: over TLS, and through Flower's own command line."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from ..base.files import write_whole
from ..base.formats import parse_json
from ..base.text import one_line
from .certificates import read_certificate
from .config import Device, Fleet, FleetError
from .folder import DEVICES, authority, device_folder
from .scripts import CONFIG

NODES = "nodes.json"
"""In a fleet's folder: the digest of each registered public key -> its node's id."""
UNREGISTERED = "unregistered"
IN_USE = "already in use"
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Registration:
    """Outcome of registering a device.

    Attributes
    ----------
    device : str
        Its name.
    node_id : str
        Its node's id; empty if it has none.
    said : str
        What happened.
    failed : bool
        Whether it is not registered now.
    """

    device: str
    node_id: str
    said: str
    failed: bool = False


def register_devices(fleet: Fleet, folder: Path) -> list[Registration]:
    """Register every device's public key; those that are registered stay as they are.

    Raises
    ------
    FleetError
        The SuperLink does not answer, or the folder lacks a key.
    """
    keys = {device.name: _public_key(folder, device) for device in fleet.devices}
    listed, known = list_nodes(fleet, folder), known_nodes(folder)
    done = []
    for device in fleet.devices:
        digest = key_digest(keys[device.name])
        status = listed.get(known.get(digest, ""))
        if status is None:
            result = _register(fleet, folder, device, keys[device.name])
            if result.node_id:
                known[digest] = result.node_id
                write_whole(folder / NODES, json.dumps(known, indent=2) + "\n")
        elif status == UNREGISTERED:
            said = (
                "was unregistered, and Flower takes no key twice: "
                f"flwr-dmml fleet rotate ... {device.name}, then fleet register"
            )
            result = Registration(device.name, known[digest], said, failed=True)
        else:
            result = Registration(device.name, known[digest], "was registered")
        done.append(result)
    return done


def unregister_devices(fleet: Fleet, folder: Path, names: Sequence[str]) -> list[str]:
    """Have the SuperLink refuse devices' present keys from now on, for good.

    Devices that were never registered from this folder stay as they are, as do those that it
    refuses already. Returns whom it refuses now and did not before.

    Raises
    ------
    FleetError
        The SuperLink does not answer, or does not do it.
    """
    known = known_nodes(folder)
    keys = {name: folder / DEVICES / name / "node-key.pub" for name in names}
    nodes = {
        name: known[digest]
        for name, key in keys.items()
        if key.exists() and (digest := key_digest(key)) in known
    }
    if not nodes:
        return []
    listed = list_nodes(fleet, folder)
    gone = []
    for name, node in nodes.items():
        if listed.get(node, UNREGISTERED) == UNREGISTERED:
            continue
        answer = flower(fleet, folder, ["supernode", "unregister", node, fleet.name])
        if not answer.get("success"):
            raise FleetError(f"{name} is still registered: {error_of(answer)}")
        gone.append(name)
    return gone


def _register(fleet: Fleet, folder: Path, device: Device, key: Path) -> Registration:
    answer = flower(
        fleet, folder,
        ["supernode", "register", str(key), fleet.name, "--name", device.name],
    )  # fmt: skip
    if answer.get("success"):
        return Registration(device.name, str(answer["node-id"]), "registered")
    said = error_of(answer)
    if IN_USE in said.lower():
        said = (
            f"its key is registered, but not from this folder: {folder / NODES} does not have its "
            "node's id, so it cannot be told from others. Bring that file back, or give the device "
            f"new keys: flwr-dmml fleet rotate ... {device.name}, then fleet register"
        )
    return Registration(device.name, "", said, failed=True)


def list_nodes(fleet: Fleet, folder: Path) -> dict[str, str]:
    """Return the status of every node that the SuperLink knows, by its id.

    Raises
    ------
    FleetError
        The SuperLink does not answer.
    """
    answer = flower(fleet, folder, ["supernode", "list", fleet.name])
    if not answer.get("success"):
        raise FleetError(f"the SuperLink lists no nodes: {error_of(answer)}")
    return {str(node["node-id"]): str(node["status"]) for node in answer["nodes"]}


def known_nodes(folder: Path) -> dict[str, str]:
    """Return the ids of the nodes that were registered from this folder, by their keys' digests.

    Raises
    ------
    FleetError
        The file that remembers them is damaged.
    """
    file = folder / NODES
    if not file.exists():
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        return {str(key): str(node) for key, node in content.items()}
    except (ValueError, AttributeError) as error:
        raise FleetError(f"{file} is damaged: {error}") from error


def key_digest(public_key: Path) -> str:
    """Return the digest that identifies a public key, whatever its comment.

    Raises
    ------
    FleetError
        The file holds no key as OpenSSH writes them.
    """
    try:
        kind, key, *_ = public_key.read_text(encoding="utf-8").split()
    except ValueError as error:
        raise FleetError(f"{public_key} holds no public key") from error
    return sha256(f"{kind} {key}".encode()).hexdigest()


def _public_key(folder: Path, device: Device) -> Path:
    file = device_folder(folder, device) / "node-key.pub"
    if not file.exists():
        raise FleetError(f"{file} is missing: run flwr-dmml fleet init")
    return file.resolve()


def node_of(folder: Path, device: Device) -> str:
    """Return the id of a device's node, or nothing if it was not registered from this folder."""
    return known_nodes(folder).get(key_digest(_public_key(folder, device)), "")


def flower_program(folder: Path) -> tuple[str, dict[str, str]]:
    """Return where the command ``flwr`` is, and the environment in which it knows the fleet.

    Raises
    ------
    FleetError
        It is not installed, or the folder is not one that ``fleet init`` has made.
    """
    config = folder / CONFIG
    if not config.exists():
        raise FleetError(f"{config} is missing: run flwr-dmml fleet init")
    beside = Path(sys.executable).with_name("flwr")
    program = str(beside) if beside.exists() else shutil.which("flwr")
    if program is None:
        raise FleetError("the command flwr is not there: install Flower in this environment")
    environment = os.environ | {
        "FLWR_HOME": str(config.parent.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    return program, environment


def flower(fleet: Fleet, folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command of ``flwr`` against the fleet's SuperLink; return the JSON that it prints.

    Raises
    ------
    FleetError
        It is not installed, does not end, or prints something else.
    """
    done = _ended(folder, [*arguments, "--format", "json"])
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        said = (done.stderr or done.stdout).strip() or f"nothing, exit status {done.returncode}"
        raise FleetError(f"flwr {' '.join(arguments[:2])}: {said}") from error
    return dict(answer)


def _ended(folder: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run ``flwr`` to its end.

    Raises
    ------
    FleetError
        It is not installed, cannot be run, or does not end in a minute.
    """
    program, environment = flower_program(folder)
    said = f"flwr {' '.join(arguments[:2])}"
    try:
        return subprocess.run(
            [program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(f"{said} did not end in a minute") from error
    except OSError as error:
        raise FleetError(f"{said} cannot be run: {error.strerror}") from error


def last_error(fleet: Fleet, folder: Path, run_id: str) -> str:
    """Return the last error in a run's log, of several lines maybe; the last line if none does.

    Raises
    ------
    FleetError
        See :func:`flower`.
    """
    done = _ended(folder, ["log", run_id, fleet.name, "--show"])
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    named = [k for k, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    if not named:
        return one_line((lines or ["its log is empty"])[-1])
    text = lines[named[-1]]
    for line in lines[named[-1] + 1 :]:
        if not line.startswith("  "):  # what belongs to it is indented
            break
        text += f" {line.strip()}"
    return one_line(text)


def error_of(answer: dict[str, Any]) -> str:
    """Return what an answer of :func:`flower` says is wrong."""
    return " ".join(str(answer.get("error-message", answer)).split())


def handshake(fleet: Fleet, folder: Path) -> str:
    """Return what is wrong with the SuperLink's TLS, as seen from here, or nothing."""
    link = fleet.superlink
    where = f"the SuperLink at {link.address}"
    issuer = authority(folder).certificate_file
    held = read_certificate(folder / "superlink" / "server.crt")
    context = ssl.create_default_context(cafile=str(issuer))
    try:
        with (
            socket.create_connection((link.host, link.port), timeout=TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=link.host) as secured,
        ):
            served = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        return f"{where} shows a certificate that is not to be trusted: {error.verify_message}"
    except ssl.SSLError as error:
        return f"{where} answers, but not in TLS: {error.reason or error}"
    except OSError as error:
        return f"{where} cannot be reached: {in_words(error)}"
    if served != held.public_bytes(Encoding.DER):
        return f"{where} has another certificate than this folder: copy it, and start it anew"
    return ""


def in_words(error: OSError) -> str:
    """Return why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    if isinstance(error, socket.gaierror):
        return "no such host name"
    return error.strerror or str(error)
