"""What is private to Flower, checked before it is replaced.

What replaces a function is made with ``functools.wraps``: the one below it is what is checked.
"""

import inspect
from types import ModuleType
from typing import Any


class UnexpectedError(RuntimeError):
    """Something of Flower's that is not as it was; the message says what."""


def function_of(module: ModuleType, name: str) -> Any:
    """Return a module's function.

    Raises
    ------
    UnexpectedError
        There is no function of this name.
    """
    found = getattr(module, name, None)
    if not inspect.isfunction(found):
        raise UnexpectedError(f"{module.__name__} has no function {name}")
    return found


def check_code(module: ModuleType, name: str, *used: str) -> None:
    """Refuse a function that does not use these names.

    Raises
    ------
    UnexpectedError
        One of them is missing, or the function is.
    """
    code = inspect.unwrap(function_of(module, name)).__code__
    if missing := set(used) - set(code.co_names):
        raise UnexpectedError(f"{module.__name__}.{name} does not use {min(missing)}")


def check_parameters(module: ModuleType, name: str, *taken: str) -> None:
    """Refuse a function that does not take these parameters by name.

    Raises
    ------
    UnexpectedError
        One of them is missing, or the function is.
    """
    there = inspect.signature(function_of(module, name)).parameters
    if missing := set(taken) - there.keys():
        raise UnexpectedError(f"{module.__name__}.{name} takes no {min(missing)}")
