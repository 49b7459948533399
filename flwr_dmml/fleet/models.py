"""Trained models of a fleet: fetched from the devices that keep them, by ssh."""

import re
import shlex
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..base.files import write_whole, writing
from ..deploy.files import ABOUT, ModelError, read_files
from .config import Device, Fleet
from .remote import Remote

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


def pull_models(fleet: Fleet, output: Path, remote: Remote) -> list[Pulled]:
    """Fetch all models that the devices keep, into ``OUTPUT/models/NAME``.

    Nothing but files of models is taken out of what a device sends, and each is checked.

    Raises
    ------
    WriteError
        They cannot be written.
    """
    return [_pull(fleet, device, output / MODELS / device.name, remote) for device in fleet.devices]


def _pull(fleet: Fleet, device: Device, place: Path, remote: Remote) -> Pulled:
    with tempfile.TemporaryFile() as sent:
        models = shlex.quote(f"{fleet.folder_of(device)}/state/{MODELS}")
        if problem := remote(device, f"tar -C {models} -cf - .", into=sent):
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
