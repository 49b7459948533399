"""Shorter waits than Flower's own while a run is on.

Flower's SuperNode looks for messages every 3 s, its SuperExec for tasks every second, and whoever
asks for an object that is not there yet waits 1, 2, 4 ... 10 s. None of that can be set. Here they
are replaced by name, which is private to Flower: where a name is missing or is used otherwise,
Flower's own waits stay, and one line in the log says so.
"""

import os
import time
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from logging import INFO
from math import inf
from types import ModuleType
from typing import Any, Literal

from .log import log
from .private import LOOP, PULL, PUSH, SUPERNODE, UnexpectedError, function_of

FLOWERS_OWN = "FLWR_DMML_FLOWER_WAITS"
"""Environment variable: if it is not empty, nothing is replaced."""
QUICK_S = 0.2
SHARE = 50
"""A wait is at least :data:`QUICK_S`, and one in so many of the seconds since the last message: at
most 0.4 s for 20 s, and Flower's 3 s after two and a half minutes."""
BACKOFF = {"initial_backoff": 0.05, "backoff_cap": 1.0, "max_tries_per_object": None}
"""For an object that is not there yet: seconds between tries."""
Part = Literal["coordinator", "SuperNode", "SuperExec", "ClientApp"]
_quick: set[Part] = set()


class Polling:
    """Stands in for the module ``time``: its ``sleep`` is short after a message, and grows back."""

    def __init__(self) -> None:
        self._last = -inf

    def message(self) -> None:
        """Take note that there is a message."""
        self._last = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for at most ``seconds``."""
        time.sleep(min(seconds, max(QUICK_S, (time.monotonic() - self._last) / SHARE)))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def quicken(part: Part, longest_s: float | None = None) -> bool:
    """Replace the waits of a part of Flower in this process; return whether they are replaced.

    Parameters
    ----------
    part : str
        Which.
    longest_s : float, optional
        The coordinator's: seconds from when a reply is announced until all of it must be there. A
        device that has died in between fails then; Flower's own limit is three minutes.
    """
    if os.environ.get(FLOWERS_OWN):
        return False
    if part in _quick:
        return True
    try:
        for replace in _prepared(part, longest_s):
            replace()
    except (ImportError, UnexpectedError) as error:
        log(INFO, "Flower's own waits, in its %s: %s", part, error)
        return False
    _quick.add(part)
    return True


def _prepared(part: Part, longest_s: float | None) -> list[Callable[[], None]]:
    """Return what replaces the waits of a part, when all of it has been checked.

    Raises
    ------
    ImportError, UnexpectedError
        Flower is not as expected.
    """
    if part == "coordinator":
        most = {} if longest_s is None else {"max_time": longest_s}
        return [_short_backoff("flwr.superlink.grid.http_grid", "pull_objects", **most)]
    if part == "ClientApp":
        name = "pull_and_inflate_object_from_tree"
        return [_short_backoff("flwr.supernode.runtime.run_clientapp", name)]
    if part == "SuperExec":
        module = import_module("flwr.supercore.superexec.run_superexec")
        function_of(module, "run_superexec", uses=("sleep", "_handle_launch_result"))
        return [_quick_sleep(module, "_handle_launch_result", lambda result: True)]
    module = import_module(SUPERNODE)
    function_of(module, LOOP, uses=("sleep", PULL))
    function_of(module, PUSH, uses=("sleep",))
    return [
        _quick_sleep(module, PULL, lambda run_id: run_id is not None),
        _short_backoff(module.__name__, "pull_objects"),
    ]


def _quick_sleep(
    module: ModuleType, name: str, is_message: Callable[[object], bool]
) -> Callable[[], None]:
    """Return what makes a module's sleeps short after a function of its has had a message."""
    if getattr(module, "time", None) is not time:
        raise UnexpectedError(f"{module.__name__} has no module time")
    polling, original = Polling(), function_of(module, name)

    @wraps(original)
    def watched(*given: Any, **named: Any) -> Any:
        found = original(*given, **named)
        if is_message(found):
            polling.message()
        return found

    def replace() -> None:
        module.__dict__.update({"time": polling, name: watched})

    return replace


def _short_backoff(where: str, name: str, **more: float) -> Callable[[], None]:
    """Return what makes a function of a module ask again sooner, and gives it ``more``."""
    module, given = import_module(where), {**BACKOFF, **more}
    pull = function_of(module, name, takes=given)
    return partial(setattr, module, name, partial(pull, **given))
