import importlib
import json
import logging
import os
import subprocess
import sys
import time
from math import inf
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest

from flwr_dmml.base import waits
from flwr_dmml.base.waits import FLOWERS_OWN, Part, Polling, quicken

CHECK = """
import json
from typing import get_args
from flwr_dmml.base.waits import Part, quicken
print(json.dumps({part: [quicken(part), quicken(part)] for part in get_args(Part)}))
"""


def in_a_process(**variables: str) -> dict[str, list[bool]]:
    """Return whether the waits of each part of Flower are replaced, in a process of its own."""
    own = {k: v for k, v in os.environ.items() if k != FLOWERS_OWN} | variables
    done = subprocess.run([sys.executable, "-c", CHECK], env=own, capture_output=True, text=True)
    assert done.returncode == 0 and "Flower's own waits" not in done.stderr, done.stderr
    found: dict[str, list[bool]] = json.loads(done.stdout)
    assert found.keys() == set(get_args(Part))
    return found


def test_the_installed_flower_has_all_that_is_replaced():
    assert all(replaced == [True, True] for replaced in in_a_process().values())


def test_it_can_be_turned_off():
    assert not any(map(any, in_a_process(**{FLOWERS_OWN: "1"}).values()))


def test_sleeps_are_short_after_a_message_and_grow_back(monkeypatch: pytest.MonkeyPatch):
    """0.2 s at first, 0.4 s after 20 s, Flower's 3 s after 150 s; never longer than asked."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: now, sleep=slept.append)
    monkeypatch.setattr(waits, "time", clock)
    polling, now = Polling(), 1000.0
    polling.sleep(3)
    polling.message()
    for later, asked in ((0, 3), (10, 3), (20, 3), (50, 3), (50, 0.5), (150, 3), (900, 3)):
        now = 1000.0 + later
        polling.sleep(asked)
    assert slept == [3, 0.2, 0.2, 0.4, 1.0, 0.5, 3, 3]


def broken(monkeypatch: pytest.MonkeyPatch, part: Part, module: str, name: str, new: object) -> str:
    """Return what the log says of a part of Flower in which a name is another thing."""
    monkeypatch.delenv(FLOWERS_OWN, raising=False)
    monkeypatch.setattr(waits, "_quick", set())
    there = importlib.import_module(module)
    if isinstance(vars(there).get("time"), Polling):  # another test has made it quick
        monkeypatch.setattr(there, "time", time)
    if new is None:
        monkeypatch.delattr(there, name)
    else:
        monkeypatch.setattr(there, name, new)
    before = dict(vars(there))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        assert not quicken(part)
    finally:
        logger.removeHandler(handler)
    assert dict(vars(there)) == before  # all or nothing
    (line,) = said
    return line


def other(ids: list[str], pull: object, *, initial_backoff: float, backoff_cap: float) -> None:
    """Pulls objects, but has no limit on tries."""


@pytest.mark.parametrize(
    ("part", "module", "name", "new", "said"),
    [
        ("SuperNode", "flwr.supernode.start_client_internal", "pull_objects", None, "pull_objects"),
        ("SuperNode", "flwr.supernode.start_client_internal", "time", ModuleType("t"), "time"),
        (
            "SuperNode", "flwr.supernode.start_client_internal", "_push_messages",
            lambda: None, "_push_messages does not use sleep",
        ),
        (
            "SuperExec", "flwr.supercore.superexec.run_superexec", "_handle_launch_result",
            None, "no function _handle_launch_result",
        ),
        (
            "coordinator", "flwr.superlink.grid.http_grid", "pull_objects",
            other, "takes no max_tries_per_object",
        ),
        (
            "ClientApp", "flwr.supernode.runtime.run_clientapp",
            "pull_and_inflate_object_from_tree", 3, "no function pull_and_inflate",
        ),
    ],
)  # fmt: skip
def test_another_flower_keeps_its_own_waits(
    monkeypatch: pytest.MonkeyPatch, part: Part, module: str, name: str, new: object, said: str
):
    line = broken(monkeypatch, part, module, name, new)
    assert line.startswith(f"Flower's own waits, in its {part}: ") and said in line


def test_a_reply_that_was_announced_and_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """Its sender has died in between: Flower makes an error of it, not a wait of hours."""
    grid = importlib.import_module("flwr.superlink.grid.http_grid")
    inflatable = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    monkeypatch.delenv(FLOWERS_OWN, raising=False)
    monkeypatch.setattr(grid, "pull_objects", grid.pull_objects)  # so that it is put back
    monkeypatch.setattr(waits, "_quick", set())

    def never(object_id: str) -> bytes:
        raise inflatable.ObjectUnavailableError(object_id)

    assert quicken("coordinator", longest_s=0.2)
    with pytest.raises(grid.ObjectPullError, match="timeout or retry limit reached"):
        grid.pull_objects(["x"], never)


def test_nothing_is_short_before_the_first_message():
    assert Polling()._last == -inf
