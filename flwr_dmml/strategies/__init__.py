"""The round plan on the coordinator, and the ServerApp."""

from .app import make_server_app
from .energy.energy_constrained import EnergyConstrained
from .keeper import Keeper, ResumeError, RunStoppedError
from .peer import PeerStrategy
from .relaysgd import RelaySGDStrategy
from .resuming import find_run, saved_config
from .roster import NoDevicesError
from .staged import StagedStrategy

__all__ = [
    "EnergyConstrained",
    "Keeper",
    "NoDevicesError",
    "PeerStrategy",
    "RelaySGDStrategy",
    "ResumeError",
    "RunStoppedError",
    "StagedStrategy",
    "find_run",
    "make_server_app",
    "saved_config",
]
