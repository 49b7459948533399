"""Simulation engines: all devices in this process, or sharded over several processes by Ray.

Ray is imported only when it is used. Flower's own engines need nothing from here.
"""

from .apps import (
    AppError,
    FlowerApp,
    flatten_config,
    load_app,
    parse_override,
    run_app,
    sharded_grid,
)
from .errors import EngineError
from .grid import SimulationGrid, never
from .identity import server_identity
from .inprocess import InProcessGrid

__all__ = [
    "AppError",
    "EngineError",
    "FlowerApp",
    "InProcessGrid",
    "SimulationGrid",
    "flatten_config",
    "load_app",
    "never",
    "parse_override",
    "run_app",
    "server_identity",
    "sharded_grid",
]
