"""Simulation engines: all devices in this process, or sharded over several processes by Ray.

Each name is imported when it is first used: a command reads an app's settings, and starts Ray,
before it loads Flower and torch; a worker loads what a worker needs. Flower's own engines need
nothing from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apps import FlowerApp as FlowerApp
    from .apps import check_known as check_known
    from .apps import load_app as load_app
    from .apps import run_app as run_app
    from .apps import sharded_grid as sharded_grid
    from .errors import AppError as AppError
    from .errors import EngineError as EngineError
    from .grid import SimulationGrid as SimulationGrid
    from .grid import never as never
    from .identity import server_identity as server_identity
    from .inprocess import InProcessGrid as InProcessGrid
    from .project import flatten_config as flatten_config

_HOME = {
    "AppError": "errors",
    "EngineError": "errors",
    "FlowerApp": "apps",
    "InProcessGrid": "inprocess",
    "SimulationGrid": "grid",
    "check_known": "apps",
    "flatten_config": "project",
    "load_app": "apps",
    "never": "grid",
    "run_app": "apps",
    "server_identity": "identity",
    "sharded_grid": "apps",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*_HOME]
