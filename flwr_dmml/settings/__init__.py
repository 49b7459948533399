"""The run config: parsed, typed and validated once, before any work starts."""

from .parsing import every_setting, parse_settings, resolved
from .settings import GROUPS, Settings

__all__ = ["GROUPS", "Settings", "every_setting", "parse_settings", "resolved"]
