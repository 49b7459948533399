"""A device's status answer: versions, data, free memory and disk, clock, and reachable peers.

The app is sent to devices with any version of this package. It therefore imports what it needs of
the package where it is used, and reports what is missing.
"""

import csv
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

PACKAGES = ("flwr-dmml", "flwr", "torch")
KEYS = ("partition-id", "num-partitions", "data-path", "direct-address")
"""Of the node config: what ``fleet.toml`` says, too."""
TIMEOUT_S = 5.0
CONNECTIONS = 16

app = ClientApp()


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Answer in JSON."""
    peers = json.loads(str(message.content.config_records["ask"]["peers"]))
    answer = ConfigRecord({"json": json.dumps(describe(context.node_config, peers))})
    return Message(RecordDict({"status": answer}), reply_to=message)


def describe(config: Mapping[str, Any], peers: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """Return what this device says of itself; the time in seconds since 1970, UTC."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        reached = list(pool.map(lambda peer: reach(*peer), peers.values()))
    return {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "config": {key: config[key] for key in KEYS if key in config},
        "data": describe_data(config),
        "last": describe_last(),
        "battery": describe_battery(),
        "disk_bytes": _free_disk(config),
        "memory_bytes": _free_memory(),
        "peers": dict(zip(peers, reached, strict=True)),
        "time_s": time.time(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"Python": platform.python_version()}


def reach(host: str, port: int) -> str:
    """Return ``open``, ``closed`` (the device is there, nobody listens), or why it is not reached.

    Devices listen only while they train together.
    """
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "closed"
    except TimeoutError:
        return "timed out"
    except socket.gaierror:
        return "no such host name"
    except OSError as error:
        return error.strerror or str(error)
    return "open"


def describe_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line on the data without loading them, or what is wrong with them.

    Of a part also its number, the number of parts, and what all devices must agree on.
    """
    if not config.get("data-path"):
        return _wrong("its node config has no data-path")
    path = Path(os.path.expanduser(str(config["data-path"])))
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return _wrong(f"data-path: '{path}' cannot be read: {error.strerror}")
    if not names:
        return _wrong(f"data-path: '{path}' is an empty folder")
    try:
        return _of_a_part(path, config) or _of_a_folder(path, names)
    except ImportError as error:
        return _wrong(f"flwr-dmml cannot be imported: {error}")
    except (RuntimeError, ValueError, OSError) as error:
        return _wrong(str(error))


def describe_last() -> dict[str, Any] | None:
    """Return the device's last message; None where it does not know."""
    try:
        from flwr_dmml.base.facts import facts_file, read_facts
    except ImportError:
        return None
    file = facts_file()
    facts = None if file is None else read_facts(file)
    if facts is None or not facts.time_s:
        return None
    return {"round": facts.round, "rounds": facts.rounds, "error": facts.error}


def describe_battery() -> float | None:
    """Return the share that is left in the board's battery; None where it has none."""
    try:
        from flwr_dmml.base.machine import battery_charge
    except ImportError:
        return None
    return battery_charge()


def _wrong(problem: str) -> dict[str, Any]:
    return {"summary": "", "problem": problem}


def _of_a_part(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    from safetensors import SafetensorError, safe_open

    from flwr_dmml.data.sets.parts import ABOUT, TENSORS, TEST, part_folder, read_about

    own, partition = path, config.get("partition-id")
    if not (own / ABOUT).exists() and isinstance(partition, int):
        own = part_folder(path, partition)
    if not (own / ABOUT).exists():
        return None
    about = read_about(own)
    for file in (own / TENSORS, own / TEST):
        try:
            with safe_open(file, framework="pt"):  # reads the header, and the file's length
                pass
        except (OSError, SafetensorError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            return _wrong(f"data-path: '{file}' cannot be read: {why or error}")
    counts = f"{about.train + about.validation} training, {about.test} test samples"
    return {
        "summary": f"part {about.part} of {about.parts}, {'+'.join(about.modalities)}, {counts}",
        "part": about.part,
        "parts": about.parts,
        "form": {
            "classes": about.num_classes,
            "modalities": {m: list(map(str, form)) for m, form in about.source_modalities.items()},
        },
    }


def _of_a_folder(path: Path, names: list[str]) -> dict[str, Any]:
    from flwr_dmml.data.options import LoadOptions
    from flwr_dmml.data.reading.manifest import CSV
    from flwr_dmml.data.sets.folder import FOLDER

    if CSV not in names:
        return {"summary": f"{len(names)} files and folders"}
    modalities = FOLDER.modalities_of(LoadOptions(path=str(path))) or ()
    with (path / CSV).open(encoding="utf-8", newline="") as manifest:
        rows = sum(1 for row in csv.reader(manifest) if row) - 1
    return {"summary": f"{'+'.join(modalities)}, {rows} samples"}


def _free_disk(config: Mapping[str, Any]) -> int:
    """Return the bytes that are free where this device writes."""
    own = Path(str(config.get("state-dir", ".")))
    there = next(folder for folder in (own, *own.parents, Path()) if folder.is_dir())
    return shutil.disk_usage(there).free


def _free_memory() -> int | None:
    """Return the bytes of memory that are free; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None
