"""Errors of what is to be run: an engine that cannot start, a folder that is no app."""

from ..base.errors import UserError


class EngineError(UserError, RuntimeError):
    """An engine cannot start or go on: says what is missing."""


class AppError(UserError, ValueError):
    """A folder that is no Flower app: says what is missing."""
