"""A fleet of devices under Flower's SuperLink: certificates, keys, start scripts, and checks."""

from .asking import Asked, ask_devices
from .config import Device, Fleet, FleetError, SuperLink, read_fleet
from .folder import Prepared, prepare, revoke, rotate
from .models import Pulled, pull_models
from .remote import by_ssh
from .status import DeviceState, Report, examine
from .superlink import register_devices, unregister_devices

__all__ = [
    "Asked",
    "Device",
    "DeviceState",
    "Fleet",
    "FleetError",
    "Prepared",
    "Pulled",
    "Report",
    "SuperLink",
    "ask_devices",
    "by_ssh",
    "examine",
    "prepare",
    "pull_models",
    "read_fleet",
    "register_devices",
    "revoke",
    "rotate",
    "unregister_devices",
]
