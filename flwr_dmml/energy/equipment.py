"""A device's own hardware, as it reports it: profile, battery and energy meter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from .devices import PROFILES, DeviceProfile, ProfileError
from .meters import ModelMeter

MOST_J = 1e6
"""The largest battery, J; as for ``energy.battery-j``."""


@dataclass(frozen=True)
class Equipment:
    """A device's own hardware; what it does not tell is empty or 0.

    Parameters
    ----------
    profile : str
        One of :data:`~flwr_dmml.energy.devices.PROFILES`.
    battery_j : float
        What its battery holds, in [0, 1e6] J.
    meter : str
        Name of its energy meter, "model" without one; empty where nobody asked for measurements.
    about_meter : str
        What the meter measures, or why there is none.

    Raises
    ------
    ProfileError
        The profile is unknown, or the battery outside its range.
    """

    profile: str = ""
    battery_j: float = 0.0
    meter: str = ""
    about_meter: str = ""

    def __post_init__(self) -> None:
        if self.profile and self.profile not in PROFILES:
            raise ProfileError(f"profile = {self.profile!r}: allowed: {', '.join(PROFILES)}")
        if not (isfinite(self.battery_j) and 0 <= self.battery_j <= MOST_J):
            raise ProfileError(f"battery-j = {self.battery_j}: must be from 0 to {MOST_J:g} J")

    @property
    def has_meter(self) -> bool:
        """Whether its joules are measured."""
        return self.meter not in ("", ModelMeter.name)

    def told(self) -> dict[str, str | float]:
        """Return the report as entries of a device's answer to the handshake."""
        told: dict[str, str | float] = {
            "profile": self.profile,
            "battery-j": self.battery_j,
            "meter": self.meter,
            "about-meter": self.about_meter,
        }
        return {key: value for key, value in told.items() if value}


NOT_TOLD = Equipment()
"""The equipment of a device that reports nothing."""


def equip(
    fleet: Sequence[DeviceProfile], equipment: Mapping[int, Equipment]
) -> list[DeviceProfile]:
    """Return a fleet in which every device that names its profile has that one."""
    own = {k: PROFILES[e.profile] for k, e in equipment.items() if e.profile}
    return [own.get(k, drawn) for k, drawn in enumerate(fleet)]
