"""What is private to Flower, checked before it is replaced.

Replacements are made with ``functools.wraps``, so that a check sees Flower's own function below.
"""

import inspect
from collections.abc import Collection
from types import ModuleType
from typing import Any

SUPERNODE = "flwr.supernode.start_client_internal"
"""The module of the SuperNode's loop."""
LOOP, PULL, PUSH = "start_client_internal", "_pull_and_store_message", "_push_messages"
"""Its functions: the loop, and what it calls to take a message and to send replies."""


class UnexpectedError(RuntimeError):
    """Something of Flower's that is not as it was; the message says what."""


def function_of(
    where: ModuleType | type, name: str, *, uses: Collection[str] = (), takes: Collection[str] = ()
) -> Any:
    """Return a function of a module or a class.

    Parameters
    ----------
    where, name
        The module or class, and the function's name.
    uses, takes : collection of str
        Names that its code has to use, and parameters that it has to take.

    Raises
    ------
    UnexpectedError
        There is no such function, or one of the names is missing.
    """
    found = getattr(where, name, None)
    if not inspect.isfunction(found):
        raise UnexpectedError(f"{where.__name__} has no function {name}")
    if missing := set(uses) - set(inspect.unwrap(found).__code__.co_names):
        raise UnexpectedError(f"{where.__name__}.{name} does not use {min(missing)}")
    if missing := set(takes) - inspect.signature(found).parameters.keys():
        raise UnexpectedError(f"{where.__name__}.{name} takes no {min(missing)}")
    return found
