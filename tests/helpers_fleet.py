"""What tests of fleets have in common."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TWO = """name = "lab"
[superlink]
host = "10.0.0.1"
[[device]]
name = "pi-1"
address = "10.0.0.11"
data-path = "/data/part-000"
profile = "raspberry-pi-4"
[[device]]
name = "pi-2"
address = "pi-2.example.org"
data-path = "/data/part-001"
device = "cuda"
torch-threads = 3
"""

METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
"""
STUB = r'''"""Stands in for the commands of a version: those that an update needs."""
import json
import os
import signal
import socket
import sys
import time


def main():
    if "--version" in sys.argv:
        return print("{version}")
    if "doctor" in sys.argv:
        finding = {{"what": "disk", "state": "{doctor}", "seen": "no room"}}
        return print(json.dumps({{"findings": [finding]}}))
    with open("started", "a") as file:
        file.write("{version}\n")
    {start}
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)):
        {then}
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
'''


SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "$1" >> "$(dirname "$0")/asked"
shift
exec sh -c "$*"
"""


def ssh_here(folder: Path) -> Path:
    """Write an ``ssh`` that runs commands here, and notes in ``asked`` who logs in where."""
    return program(folder / "ssh", SSH)


def program(file: Path, text: str) -> Path:
    """Write a program."""
    file.write_text(text)
    file.chmod(0o755)
    return file


def write_wheel(
    folder: Path,
    version: str,
    *,
    files: Mapping[str, str],
    name: str = "flwr-dmml",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel of these modules, with the command ``flwr-dmml`` if it is of that name."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = METADATA.format(name=name, version=version)
    about += "".join(f"Requires-Dist: {one}\n" for one in requires)
    told = {
        f"{stem}.dist-info/METADATA": about,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **files,
    }
    if name == "flwr-dmml":
        point = "[console_scripts]\nflwr-dmml = flwr_dmml.cli:main\n"
        told[f"{stem}.dist-info/entry_points.txt"] = point
    record = f"{stem}.dist-info/RECORD"
    told[record] = "".join(f"{one},,\n" for one in (*told, record))
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for place, text in told.items():
            archive.writestr(place, text)
    return wheel


def stub_wheel(
    folder: Path,
    version: str,
    *,
    doctor: str = "ok",
    dry: str = "",
    start: str = "",
    then: str = "",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel with nothing of this package but what an update calls.

    ``dry``, ``start`` and ``then`` are statements: of the dry round, of the SuperNode before it
    listens, and when it does.
    """
    files = {
        "flwr_dmml/__init__.py": "",
        "flwr_dmml/cli.py": STUB.format(
            version=version, doctor=doctor, start=start or "pass", then=then or "pass"
        ),
        "flwr_dmml/fleet/__init__.py": "",
        "flwr_dmml/fleet/dry_round.py": dry,
    }
    return write_wheel(folder, version, files=files, requires=requires)
