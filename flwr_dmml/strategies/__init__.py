"""The round plan on the coordinator, and the ServerApp."""

from .app import make_server_app
from .energy.energy_constrained import EnergyConstrained
from .keeper import Keeper, ResumeError, RunStoppedError
from .peer import PeerStrategy
from .resuming import resumed_settings
from .roster import NoDevicesError

__all__ = [
    "EnergyConstrained",
    "Keeper",
    "NoDevicesError",
    "PeerStrategy",
    "ResumeError",
    "RunStoppedError",
    "make_server_app",
    "resumed_settings",
]
