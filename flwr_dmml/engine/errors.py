"""What goes wrong with an engine, apart from what goes wrong on its nodes."""

from ..base.errors import UserError


class EngineError(UserError, RuntimeError):
    """An engine cannot start: says what is missing."""
