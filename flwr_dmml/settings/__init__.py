"""The run config: parsed, typed and validated once, before any work starts."""

from .parsing import every_setting, parse_settings
from .parts import OwnParts, Parts, RunConfig, find_parts
from .settings import GROUPS, Settings

__all__ = [
    "GROUPS",
    "OwnParts",
    "Parts",
    "RunConfig",
    "Settings",
    "every_setting",
    "find_parts",
    "parse_settings",
]
