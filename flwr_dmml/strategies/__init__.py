"""The round plan on the coordinator, and the ServerApp."""

from .app import make_server_app
from .energy_constrained import EnergyConstrained
from .peer import PeerStrategy
from .relaysgd import RelaySGDStrategy
from .roster import NoDevicesError
from .staged import StagedStrategy

__all__ = [
    "EnergyConstrained",
    "NoDevicesError",
    "PeerStrategy",
    "RelaySGDStrategy",
    "StagedStrategy",
    "make_server_app",
]
