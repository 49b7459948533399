"""Status answers of devices, in words: cells of a table, and the problems found."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..base.text import one_line
from .certificates import BACKDATED
from .config import COPY_IT_AGAIN, Device, Fleet, host_port
from .scripts import device_config

CLOCK_TOLERANCE_S = 5.0
"""Flower's SuperLink refuses devices whose clocks are further ahead."""
LATE_TOLERANCE_S = 300.0
"""Flower's SuperLink refuses devices whose clocks are further behind."""
SAME = ("flwr-dmml", "flwr")
"""Packages that all devices and the machine that starts runs should have in one version."""
REACHED = ("open", "closed")


MOST = 1000
"""Entries of a table, such as the modalities of its data."""
Text = Annotated[str, AfterValidator(one_line)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Said(BaseModel):
    """Base of what comes from a device: strict types; what a newer version adds is left out.

    Text is cut and made plain: it is shown on a terminal.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Form(_Said):
    """What all parts of a data set have in common."""

    classes: Count
    modalities: Annotated[
        dict[Text, Annotated[list[Text], Field(max_length=MOST)]], Field(max_length=MOST)
    ]

    def __str__(self) -> str:
        told = ", ".join(f"{name} ({' '.join(kind)})" for name, kind in self.modalities.items())
        return one_line(f"{self.classes} classes, {told}")


class Data(_Said):
    """A device's data."""

    summary: Text
    problem: Text = ""
    part: Count | None = None
    parts: Count | None = None
    form: Form | None = None


class Last(_Said):
    """A device's last message: its round, of how many, and why it failed, if it did."""

    round: Count
    rounds: Count
    error: Text = ""


class Answer(_Said):
    """A device's status answer; ``time_s`` is its clock, in seconds since 1970, UTC."""

    versions: Annotated[dict[Text, Text], Field(max_length=MOST)]
    platform: Text
    config: Annotated[dict[Text, Text | int], Field(max_length=MOST)]
    data: Data
    last: Last | None = None
    battery: Annotated[float, Field(ge=0, le=1)] | None = None
    disk_bytes: Count
    memory_bytes: Count | None
    peers: Annotated[dict[Text, Text], Field(max_length=MOST)]
    time_s: float


@dataclass(frozen=True)
class Heard:
    """An answer, and between which times of the SuperLink's clock it was given.

    Attributes
    ----------
    answer : Answer
        What the device says.
    sent_s, received_s : float
        Seconds since 1970, UTC.
    """

    answer: Answer
    sent_s: float
    received_s: float

    @property
    def skew_s(self) -> tuple[float, float]:
        """Bounds of how many seconds the device's clock is ahead of the SuperLink's."""
        return self.answer.time_s - self.received_s, self.answer.time_s - self.sent_s


def in_short(heard: Heard | None) -> dict[str, str]:
    """Return what the short table shows of an answer, by column; of none, empty cells."""
    if heard is None:
        return dict.fromkeys(("round", "battery", "version", "neighbours", "last error"), "")
    said, last = heard.answer, heard.answer.last
    return {
        "round": f"{last.round} of {last.rounds}" if last else "",
        "battery": "" if said.battery is None else f"{said.battery:.0%}",
        "version": said.versions.get(SAME[0], "unknown"),
        "neighbours": _reached(said),
        "last error": last.error if last else "",
    }


def _reached(said: Answer) -> str:
    reached = sum(how in REACHED for how in said.peers.values())
    return f"{reached} of {len(said.peers)} reached"


def cells(heard: Heard) -> dict[str, str]:
    """Return what the long table shows of an answer, by column."""
    said = heard.answer
    low, high = heard.skew_s
    clock = _off(heard) if low > 0 or high < 0 else f"within {max(-low, high):.0f} s"
    free = f"{said.disk_bytes / 1e9:.1f} GB disk"
    if said.memory_bytes is not None:
        free += f", {said.memory_bytes / 1e9:.1f} GB memory"
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in said.versions.items()),
        "platform": said.platform,
        "data": said.data.summary or "unusable",
        "free": free,
        "clock": clock,
        "neighbours": _reached(said),
    }


def problems_of(fleet: Fleet, heard: Mapping[str, Heard]) -> list[str]:
    """Return the problems in devices' answers, given by name; this machine's versions count too."""
    devices = {device.name: device for device in fleet.devices}
    found = _versions(heard)
    for name, one in heard.items():
        found += _of_device(fleet, devices[name], one)
        found += [
            f"{name} does not reach {other} "
            f"({host_port(devices[other].address, devices[other].direct_port)}): {how}"
            for other, how in one.answer.peers.items()
            if how not in REACHED and other in devices
        ]
    return found + _forms(heard)


def _versions(heard: Mapping[str, Heard]) -> list[str]:
    found = []
    for package in SAME:
        who: dict[str, list[str]] = {version(package): ["this machine"]}
        for name, one in heard.items():
            who.setdefault(one.answer.versions.get(package, "unknown"), []).append(name)
        if len(who) > 1:
            told = "; ".join(f"{number} on {', '.join(some)}" for number, some in who.items())
            found.append(f"different versions of {package}: {told}")
    return found


def _of_device(fleet: Fleet, device: Device, heard: Heard) -> list[str]:
    found, said = [], heard.answer
    wanted = device_config(fleet, device)
    if stale := [key for key, value in said.config.items() if wanted.get(key) != value]:
        told = ", ".join(f"{key} {said.config[key]!r}, not {wanted.get(key)!r}" for key in stale)
        found.append(f"{device.name} was started with another fleet.toml ({told}): {COPY_IT_AGAIN}")
    if said.data.problem:
        found.append(f"{device.name}: {said.data.problem}")
    if said.data.part not in (None, device.partition_id):
        found.append(
            f"{device.name} holds part {said.data.part}, its partition-id is {device.partition_id}"
        )
    if said.data.parts not in (None, len(fleet.devices)):
        found.append(
            f"{device.name} holds one of {said.data.parts} parts, the fleet has "
            f"{len(fleet.devices)} devices"
        )
    low, high = heard.skew_s
    if low > CLOCK_TOLERANCE_S or -high > CLOCK_TOLERANCE_S:
        text = f"{device.name}: its clock is {_off(heard)}; the SuperLink refuses devices that are "
        text += f"{CLOCK_TOLERANCE_S:.0f} s ahead or {LATE_TOLERANCE_S / 60:.0f} min behind"
        if -high > BACKDATED.total_seconds():
            text += ", and new certificates are not valid for it yet"
        found.append(text)
    return found


def _off(heard: Heard) -> str:
    low, high = heard.skew_s
    return f"at least {low:.0f} s ahead" if low > 0 else f"at least {-high:.0f} s behind"


def _forms(heard: Mapping[str, Heard]) -> list[str]:
    """Return whether devices hold parts of different data sets."""
    groups: list[tuple[Form, list[str]]] = []
    for name, one in heard.items():
        if (form := one.answer.data.form) is None:
            continue
        for other, names in groups:
            if other == form:
                names.append(name)
                break
        else:
            groups.append((form, [name]))
    if len(groups) < 2:
        return []
    told = "; ".join(f"{', '.join(names)}: {form}" for form, names in groups)
    return [f"the parts are of different data sets: {told}"]
