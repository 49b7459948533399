"""The round plan on the coordinator, and the ServerApp."""

from .app import make_server_app
from .energy.energy_constrained import EnergyConstrained
from .keeper import Keeper, ResumeError, RunStoppedError
from .peer import PeerStrategy
from .resuming import find_run, saved_config
from .roster import NoDevicesError

__all__ = [
    "EnergyConstrained",
    "Keeper",
    "NoDevicesError",
    "PeerStrategy",
    "ResumeError",
    "RunStoppedError",
    "find_run",
    "make_server_app",
    "saved_config",
]
