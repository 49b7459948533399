"""A fleet of devices under Flower's SuperLink: certificates, keys, start scripts, and checks."""

from .asking import Asked, ask_devices
from .config import Device, Fleet, FleetError, SuperLink, read_fleet
from .folder import Prepared, prepare, revoke, rotate
from .status import DeviceState, Report, examine
from .superlink import register_devices, unregister_devices

__all__ = [
    "Asked",
    "Device",
    "DeviceState",
    "Fleet",
    "FleetError",
    "Prepared",
    "Report",
    "SuperLink",
    "ask_devices",
    "examine",
    "prepare",
    "read_fleet",
    "register_devices",
    "revoke",
    "rotate",
    "unregister_devices",
]
