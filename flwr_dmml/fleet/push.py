"""A new version of this package for the devices of a fleet, by ssh or as a folder to copy."""

import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.files import write_whole, writing
from ..base.text import one_line
from . import update
from .answers import Text
from .config import Device, Fleet, FleetError
from .remote import Remote
from .scripts import device_config, unit_of
from .superlink import handshake, list_nodes, node_of

SCRIPT = Path(update.__file__).name
ONLINE_S = 120.0
"""Seconds that an updated device is given until the SuperLink sees it."""
MOST_SAID = 1 << 20
"""Bytes of what a device says that are read."""
_POLL_S = 2.0

Result = Literal["updated", "rolled back", "not changed", "not reached", "left out"]


@dataclass(frozen=True)
class Version:
    """What is to be installed.

    Attributes
    ----------
    label : str
        Its version, and the first digits of the digest of all wheels.
    wheels : tuple of Path
        The wheel of this package, and others that devices may need.
    """

    label: str
    wheels: tuple[Path, ...]


@dataclass(frozen=True)
class Pushed:
    """What has come of a device.

    Attributes
    ----------
    device : str
        Its name.
    result : str
        What has happened.
    was, now : str
        What it ran before and runs now; empty where it has not said.
    why : str
        What went wrong, or is worth saying.
    up : bool
        Whether the device runs, as far as can be told from here.
    """

    device: str
    result: Result
    was: str = ""
    now: str = ""
    why: str = ""
    up: bool = False

    @property
    def done(self) -> bool:
        """Whether it runs what it was to."""
        return self.result in ("updated", "rolled back")


class _Said(BaseModel):
    """Last line that the script prints on a device."""

    model_config = ConfigDict(frozen=True, strict=True)

    was: Text
    now: Text
    done: bool
    up: bool
    why: Text


def find_version(what: str, scratch: Path) -> Version:
    """Return the wheels that ``what`` names.

    Parameters
    ----------
    what : str
        A wheel of this package; a folder of wheels, with those of new requirements; or what pip
        makes a wheel of, such as ``flwr-dmml==1.3.0`` or a clone of the repository.
    scratch : Path
        Folder for a wheel that pip makes.

    Raises
    ------
    FleetError
        There is not exactly one wheel of this package.
    """
    path = Path(what)
    if path.suffix == ".whl":
        wheels = [path]
    elif not (path.is_dir() and (wheels := sorted(path.glob("*.whl")))):
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--wheel-dir", str(scratch), what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = one_line((done.stderr.strip().splitlines() or ["no reason given"])[-1])
            raise FleetError(f"{what}: no wheel, no folder of wheels, and pip makes none: {said}")
        wheels = sorted(scratch.glob("*.whl"))
    own = {wheel: number for wheel in wheels if (number := _own_version(wheel))}
    if len(own) != 1:
        told = ", ".join(wheel.name for wheel in own) or "none"
        raise FleetError(f"{what}: must hold one wheel of {update.PACKAGE}; there is {told}")
    ((wheel, number),) = own.items()
    if not zipfile.is_zipfile(wheel):
        raise FleetError(f"{wheel} is missing, or is no wheel")
    digest = sha256(b"".join(sha256(one.read_bytes()).digest() for one in wheels))
    return Version(f"{number}-{digest.hexdigest()[:8]}", tuple(wheels))


def _own_version(wheel: Path) -> str:
    """Return the version of a wheel of this package; nothing if it is another's."""
    try:
        name, number, *_ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise FleetError(f"{wheel}: {error}") from error
    return str(number) if name == update.PACKAGE else ""


def write_bundle(
    fleet: Fleet,
    devices: Sequence[Device],
    folder: Path,
    version: Version | None,
    leaving: str = "",
) -> None:
    """Write a folder to copy to devices: the script, a file for each device, and the wheels.

    ``leaving`` is the version that they may go back from; by default whichever they run.

    Raises
    ------
    FleetError
        The folder holds something.
    WriteError
        It cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FleetError(f"{folder} is not empty: give a new folder")
        shutil.copyfile(update.__file__, folder / SCRIPT)
        for device in devices:
            about = _about(fleet, device) | {"label": version.label if version else ""}
            write_whole(folder / f"{device.name}.json", json.dumps(about | {"leaving": leaving}))
        if version is not None:
            (folder / update.WHEELS).mkdir()
            for wheel in version.wheels:
                shutil.copy(wheel, folder / update.WHEELS)


def _about(fleet: Fleet, device: Device) -> dict[str, Any]:
    """Return what the script is to know of a device."""
    return {
        "folder": fleet.folder_of(device),
        "unit": unit_of(fleet, device),
        "user": fleet.user,
        "port": device.runtime_port,
        "config": device_config(fleet, device),
    }


def by_hand(fleet: Fleet, device: Device, folder: str) -> str:
    """Return the command that updates a device from a bundle in a folder on it."""
    words = [f"{fleet.venv}/bin/python", f"{folder}/{SCRIPT}", f"{folder}/{device.name}.json"]
    return shlex.join(words)


def push(
    fleet: Fleet,
    folder: Path,
    devices: Sequence[Device],
    version: Version | None,
    remote: Remote,
    *,
    leaving: str = "",
    canary: int = 0,
    at_once: int = 1,
    tell: Callable[[Pushed], None] = lambda done: None,
) -> list[Pushed]:
    """Have devices run a version, or the one that they ran before.

    Parameters
    ----------
    fleet : Fleet
        The fleet.
    folder : Path
        What ``fleet init`` has made. If the SuperLink can be reached from here, a device counts as
        updated only once it is online there.
    devices : sequence of Device
        In this order.
    version : Version, optional
        What to install; by default they go back to what they ran before.
    remote : Remote
        Runs commands on them.
    leaving : str, optional
        With no version to install: only those that run this one go back. By default all do, if they
        run the same.
    canary : int (default: 0)
        The first so many are updated first; if one of them is not known to run then, the others are
        left.
    at_once : int (default: 1)
        Devices that are updated at the same time.
    tell : callable
        Called with what has come of each device.

    Raises
    ------
    FleetError
        They are to go back, and do not run the same version.
    """
    asks = not handshake(fleet, folder)

    def look(device: Device) -> Pushed:
        return _on_device(fleet, device, remote, option="--status")

    def one(device: Device) -> Pushed:
        if version is None:
            done = _on_device(fleet, device, remote, leaving=leaving, option="--rollback")
        else:
            done = _on_device(fleet, device, remote, version)
        if done.done and done.up and asks:
            done = _seen(fleet, folder, device, version, done, remote)
        tell(done)
        return done

    with ThreadPoolExecutor(at_once) as pool:
        if version is None and not leaving:
            _check_same(list(pool.map(look, devices)))
        done = list(pool.map(one, devices[:canary]))
        if all(one.done and one.up for one in done):
            return done + list(pool.map(one, devices[canary:]))
    why = "the devices before it are not all known to run it"
    return done + [Pushed(device.name, "left out", why=why) for device in devices[canary:]]


def _check_same(found: Sequence[Pushed]) -> None:
    """Refuse to send devices back that run different versions: some would go too far."""
    running: dict[str, list[str]] = {}
    for one in found:
        if one.now:
            running.setdefault(one.now, []).append(one.device)
    if len(running) > 1:
        told = "; ".join(f"{', '.join(names)}: {version}" for version, names in running.items())
        raise FleetError(f"devices run different versions ({told}): name one with --leaving")


def _on_device(
    fleet: Fleet,
    device: Device,
    remote: Remote,
    version: Version | None = None,
    *,
    leaving: str = "",
    option: str = "",
) -> Pushed:
    """Run the script on a device: install a version, or do what the option says."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryFile() as sent,
        tempfile.TemporaryFile() as said,
    ):
        bundle = Path(scratch) / "bundle"
        write_bundle(fleet, [device], bundle, version, leaving)
        with tarfile.open(fileobj=sent, mode="w") as archive:
            archive.add(bundle, ".")
        sent.seek(0)
        script = f"{by_hand(fleet, device, '.')} {option}"
        command = f'd=$(mktemp -d) && cd "$d" && tar -xf - && {script}; s=$?; rm -rf "$d"; exit $s'
        problem = remote(device, command, given=sent, into=said)
        said.seek(0)
        lines = said.read(MOST_SAID).decode(errors="replace").splitlines()
    try:
        told = _Said.model_validate_json((lines or [""])[-1])
    except ValidationError:
        return Pushed(device.name, "not reached", why=problem or "it says nothing of the update")
    changed: Result = "updated" if version else "rolled back"
    result = changed if told.done else "not changed"
    return Pushed(device.name, result, told.was, told.now, told.why, told.up)


def _seen(
    fleet: Fleet,
    folder: Path,
    device: Device,
    version: Version | None,
    done: Pushed,
    remote: Remote,
) -> Pushed:
    """Have a device that the SuperLink does not see go back from a version that it has got."""
    try:
        if _is_online(fleet, folder, device):
            return done
    except FleetError as error:
        return replace(done, up=False, why=f"the SuperLink cannot be asked: {error}")
    why = f"the SuperLink does not see it after {ONLINE_S:g} s"
    if version is None:
        return replace(done, up=False, why=why)
    back = _on_device(fleet, device, remote, leaving=version.label, option="--rollback")
    why += f"; {back.now} runs again" if back.done else f"; it cannot go back: {back.why}"
    return replace(done, result="not changed", now=back.now or done.now, why=why, up=back.up)


def _is_online(fleet: Fleet, folder: Path, device: Device) -> bool:
    deadline = time.monotonic() + ONLINE_S
    if not (node := node_of(folder, device)):
        raise FleetError(f"{device.name} was not registered from {folder}")
    while list_nodes(fleet, folder).get(node) != "online":
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
