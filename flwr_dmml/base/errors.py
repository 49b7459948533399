"""The base of all errors that say what is wrong and what to do, so that no traceback is needed."""

from typing import ClassVar


class UserError(Exception):
    """Something that the user can put right; the command line shows the message alone."""

    exit_status: ClassVar[int] = 1
    """What the command line ends with."""


class MethodError(UserError, ValueError):
    """A method that cannot be what it is declared as: names it, and what is wrong."""


class SettingsError(UserError, ValueError):
    """A run config that cannot work: names each key, its value and what is allowed."""
