"""The error of an engine that cannot start (:class:`EngineError`); nodes' errors are not here."""

from ..base.errors import UserError


class EngineError(UserError, RuntimeError):
    """An engine cannot start: says what is missing."""
