"""The file that describes a fleet: who coordinates, and which devices there are."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..base.errors import UserError
from ..base.formats import parse_toml
from ..base.options import kebab
from ..energy.devices import PROFILES

SUPERLINK = "superlink"
"""Name of the SuperLink for ``--renew``; no device may have it."""
PEER_PORT = 7447
RUNTIME_PORT = 9094
NAME = "{name}"
"""Stands for the device's name in ``device-dir``."""


COPY_IT_AGAIN = "copy its folder again, and run install.sh in it (without a unit: start it anew)"
"""What to do after the files of a device have changed."""


class FleetError(UserError, ValueError):
    """A fleet that cannot work; the message says what is wrong, and what is allowed."""


def host_port(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fleet_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", text) or text == "default":
        raise ValueError("up to 32 letters, digits, - and _, a letter first, and not 'default'")
    return text


def _device_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text) or text == SUPERLINK:
        raise ValueError(
            "up to 63 letters, digits, '.', - and _, a letter or digit first, and not 'superlink'"
        )
    return text


def _address(text: str) -> str:
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    number = as_ip(text)
    if number is not None and not number.is_unspecified and not number.is_multicast:
        return str(number)
    numeric = re.fullmatch(r"[0-9.]+", text)
    if number or numeric or len(text) > 253 or not re.fullmatch(rf"{label}(\.{label})*", text):
        raise ValueError(
            "an IP address that others reach (no wildcard), or a host name; without a port"
        )
    return text.lower()


def as_ip(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address as a number, or nothing if it is a name."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _folder(text: str) -> str:
    if not PurePosixPath(text).is_absolute() or not text.isprintable():
        raise ValueError("the whole path, beginning with /, without line breaks")
    return text


def _user(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text):
        raise ValueError("the name of a system user: small letters, digits, - and _")
    return text


def _profile(text: str) -> str:
    if text not in PROFILES:
        raise ValueError(f"there are {', '.join(PROFILES)}")
    return text


def _torch_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("auto, cpu, cuda, or cuda:1")
    return text


Address = Annotated[str, AfterValidator(_address)]
Folder = Annotated[str, AfterValidator(_folder)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Table(BaseModel):
    """Base of the file's tables: kebab-case keys, strict types, frozen."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", alias_generator=kebab)


class SuperLink(_Table):
    """The SuperLink: it listens on this address only."""

    host: Address
    port: Port = 8000
    dir: Folder | None = None

    @property
    def address(self) -> str:
        """``host:port``."""
        return host_port(self.host, self.port)


class Device(_Table):
    """A device of the fleet."""

    name: Annotated[str, AfterValidator(_device_name)]
    address: Address
    data_path: Folder
    partition_id: int = Field(ge=0)
    direct_port: Port = PEER_PORT
    runtime_port: Port = RUNTIME_PORT
    profile: Annotated[str, AfterValidator(_profile)] | None = None
    battery_j: int | None = Field(None, ge=1, le=1_000_000)
    meter: Literal["auto", "none"] | None = None
    device: Annotated[str, AfterValidator(_torch_device)] | None = None
    torch_threads: int | None = Field(None, ge=1)
    require_sealed: bool = False
    zygote: bool = True
    metrics_port: Port | None = None
    metrics_host: Address = "127.0.0.1"

    @property
    def direct_address(self) -> str:
        """``address:direct-port``."""
        return host_port(self.address, self.direct_port)


class Fleet(_Table):
    """A whole fleet.

    Attributes
    ----------
    name : str
        Also the name of the connection for ``flwr run``.
    superlink : SuperLink
        The coordinator.
    devices : list of Device
        In the file: ``[[device]]``.
    device_dir : str
        Where a device's folder will be on the device; ``{name}`` stands for the device's name.
    venv : str
        Virtual environment with this package, on the devices and on the SuperLink's machine.
    user : str
        The system user that the systemd units run as.
    """

    name: Annotated[str, AfterValidator(_fleet_name)]
    superlink: SuperLink
    devices: list[Device] = Field(alias="device", min_length=1)
    device_dir: Folder = "/etc/flwr-dmml"
    venv: Folder = "/opt/flwr-dmml"
    user: Annotated[str, AfterValidator(_user)] = "flwr-dmml"

    def called(self, names: Sequence[str]) -> list[Device]:
        """Return the devices of these names.

        Raises
        ------
        FleetError
            There is no such device.
        """
        there = {device.name: device for device in self.devices}
        if unknown := [name for name in names if name not in there]:
            raise FleetError(f"{unknown[0]}: there are {', '.join(there)}")
        return [device for device in self.devices if device.name in names]

    def folder_of(self, device: Device) -> str:
        """Return where a device's folder will be on the device."""
        return self.device_dir.replace(NAME, device.name).rstrip("/")


def read_fleet(file: Path, device_dir: str | None = None) -> Fleet:
    """Read and check a fleet's file.

    Parameters
    ----------
    file : Path
        TOML.
    device_dir : str, optional
        Instead of the file's ``device-dir``.

    Raises
    ------
    FleetError
        The message has a line for every mistake: what it is, and what is allowed.
    """
    try:
        content = parse_toml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no TOML or no UTF-8
        raise FleetError(f"{file} cannot be read: {error}") from error
    if device_dir is not None:
        content["device-dir"] = device_dir
    rows = content.get("device")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for number, row in enumerate(rows):
        row.setdefault("partition-id", number)
    problems: list[str] = []
    fleet = None
    try:
        fleet = Fleet.model_validate(content)
    except ValidationError as error:
        problems += [_in_words(dict(item), content) for item in error.errors()]
    problems += _clashes(content, rows)
    if problems or fleet is None:
        raise FleetError(f"{file} cannot work:\n  " + "\n  ".join(problems))
    return fleet


def _in_words(item: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return a mistake that pydantic has found as ``where: key = value: what is allowed``."""
    *tables, key = item["loc"]
    where = ""
    model: type[_Table] = Fleet
    if tables == [SUPERLINK]:
        where, model = "[superlink] ", SuperLink
    elif len(tables) == 2:
        where, model = f"{_called(content['device'][tables[1]], tables[1])}: ", Device
    elif tables:
        return f"device {key + 1}: must be a table, [[device]]"
    what = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}{key}: is missing"
    if item["type"] == "extra_forbidden":
        known = [info.alias or kebab(name) for name, info in model.model_fields.items()]
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        return f"{where}{key}: unknown key; {hint}"
    if (key, model) == ("device", Fleet):
        return "device: there must be one [[device]] at least"
    if (key, model) == (SUPERLINK, Fleet):
        return "superlink: must be a table, [superlink], with host and port"
    return f"{where}{key} = {item['input']!r}: {what}"


def _called(row: Any, number: int) -> str:
    name = row.get("name") if isinstance(row, dict) else None
    return f"device {name}" if isinstance(name, str) else f"device {number + 1}"


def _clashes(content: Mapping[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong between devices, whatever else is wrong with them."""
    used: dict[tuple[str, ...], str] = {}

    def claim(key: tuple[str, ...], who: str, what: str) -> Iterator[str]:
        if key in used:
            yield f"{who}: {what} is that of {used[key]}; each needs its own"
        used.setdefault(key, who)

    link = content.get(SUPERLINK)
    if isinstance(link, dict):
        place = (_same(link.get("host")), str(link.get("port", 8000)))
        used["port", *place] = "the SuperLink"
    shared: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        who, address = _called(row, number), _same(row.get("address"))
        yield from claim(("name", str(row.get("name")).lower()), f"device {number + 1}", "its name")
        part = row["partition-id"]
        yield from claim(("part", str(part)), who, f"partition-id {part}")
        if isinstance(part, int) and part >= len(rows):
            yield f"{who}: partition-id = {part}: there are {len(rows)} devices, from 0 on"
        if "address" in row:
            shared.setdefault(address, []).append(who)
            ports = {"direct-port": PEER_PORT, "runtime-port": RUNTIME_PORT, "metrics-port": None}
            for key, default in ports.items():
                if port := row.get(key, default):
                    what = f"{key} {port} of {address}"
                    yield from claim(("port", address, str(port)), who, what)
    if NAME not in str(content.get("device-dir", "")):
        for address, names in shared.items():
            if len(names) > 1:
                yield (
                    f"{' and '.join(names)} are both on {address}: device-dir must hold {NAME}, "
                    f"such as /etc/flwr-dmml/{NAME}"
                )


def _same(address: object) -> str:
    """Return an address as it is compared."""
    return str(as_ip(str(address)) or address).lower()
