"""A fleet of devices under Flower's SuperLink: certificates, keys, start scripts, and checks."""

from .config import Device, Fleet, FleetError, SuperLink, read_fleet
from .folder import Prepared, prepare
from .status import DeviceState, Report, examine, said_by_devices
from .superlink import register_devices

__all__ = [
    "Device",
    "DeviceState",
    "Fleet",
    "FleetError",
    "Prepared",
    "Report",
    "SuperLink",
    "examine",
    "prepare",
    "read_fleet",
    "register_devices",
    "said_by_devices",
]
