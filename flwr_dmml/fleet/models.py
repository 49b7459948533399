"""Trained models of a fleet: fetched from the devices that keep them, by ssh."""

import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..base.files import write_whole, writing
from ..deploy.files import ABOUT, ModelError, read_files
from .config import Device, Fleet

MODELS = "models"
"""Folder of the devices' models in that of the fleet."""
MOST_BYTES = 1 << 32
"""Of a file of a model."""
_FILE = r"device-\d{3,}(?:-best)?\.(?:json|safetensors)"
_NAME = re.compile(rf"(?:\./)?(run-\d+/[A-Za-z0-9][\w.-]*/{_FILE})")


@dataclass(frozen=True)
class Pulled:
    """What has come of a device.

    Attributes
    ----------
    device : str
        Its name.
    models : list of Path
        Models that are whole; their JSON files.
    problem : str
        Why there are none, or fewer; empty if all went well.
    """

    device: str
    models: list[Path]
    problem: str = ""


Copy = Callable[[Device, str, IO[bytes]], str]
"""Writes the tar of a folder on a device into a file; returns what went wrong, or nothing."""


def by_ssh(user: str, command: str = "ssh") -> Copy:
    """Return what copies a device's folder by ssh.

    Parameters
    ----------
    user : str
        Who logs in; it must be able to read the folder.
    command : str (default: "ssh")
        The program, with its options.
    """

    def copy(device: Device, folder: str, into: IO[bytes]) -> str:
        asked = [*shlex.split(command), f"{user}@{device.address}"]
        asked.append(f"tar -C {shlex.quote(folder)} -cf - .")
        try:
            done = subprocess.run(asked, stdout=into, stderr=subprocess.PIPE, check=False)
        except OSError as error:
            return f"{asked[0]} cannot be run: {error.strerror}"
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return "" if done.returncode == 0 else (said or [f"{asked[0]} ended with an error"])[-1]

    return copy


def pull_models(fleet: Fleet, output: Path, copy: Copy) -> list[Pulled]:
    """Fetch all models that the devices keep, into ``OUTPUT/models/NAME``.

    Nothing but files of models is taken out of what a device sends, and each is checked.

    Raises
    ------
    WriteError
        They cannot be written.
    """
    return [_pull(fleet, device, output / MODELS / device.name, copy) for device in fleet.devices]


def _pull(fleet: Fleet, device: Device, place: Path, copy: Copy) -> Pulled:
    with tempfile.TemporaryFile() as sent:
        if problem := copy(device, f"{fleet.folder_of(device)}/state/{MODELS}", sent):
            return Pulled(device.name, [], problem)
        sent.seek(0)
        try:
            names = _unpack(sent, place)
        except (tarfile.TarError, EOFError) as error:
            return Pulled(device.name, [], f"what it sends is no tar: {error}")
    found, wrong = list[Path](), list[str]()
    for file in sorted(place / name for name in names if name.endswith(ABOUT)):
        try:
            read_files(file)
            found.append(file)
        except ModelError as error:
            wrong.append(str(error))
    return Pulled(device.name, found, "; ".join(wrong))


def _unpack(sent: IO[bytes], place: Path) -> list[str]:
    names = []
    with tarfile.open(fileobj=sent, mode="r:") as archive:
        for member in archive:
            match = _NAME.fullmatch(member.name)
            if match is None or not member.isfile() or member.size > MOST_BYTES:
                continue
            content, file = archive.extractfile(member), place / match[1]
            assert content is not None
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content.read())
            names.append(match[1])
    return names
