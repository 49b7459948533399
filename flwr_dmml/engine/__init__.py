"""Where devices run: the in-process engine. Flower's own engines need nothing from here."""

from .apps import AppError, FlowerApp, flatten_config, load_app, parse_override, run_app
from .identity import server_identity
from .inprocess import InProcessGrid

__all__ = [
    "AppError",
    "FlowerApp",
    "InProcessGrid",
    "flatten_config",
    "load_app",
    "parse_override",
    "run_app",
    "server_identity",
]
