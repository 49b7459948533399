"""Sending messages to the devices, and waiting for their replies, on any grid."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from ..engine import SimulationGrid
from ..transport.packing import packed

FIRST_POLL_S, LAST_POLL_S = 0.05, 3.0
SHARE = 20
"""A poll comes after one in so many of the seconds that have been waited."""
FLOWERS_SIMULATION = "flwr-simulation"
"""The program that runs a ServerApp in Flower's own simulation."""


def program_name() -> str:
    """Return the name of the program that this process runs."""
    return Path(sys.argv[0]).name


def simulates(grid: Grid) -> bool:
    """Return whether the devices of a grid are simulated, by this package's engines or Flower's."""
    return isinstance(grid, SimulationGrid) or program_name() == FLOWERS_SIMULATION


def send_and_wait(grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
    """Send messages, and return the replies that come within ``timeout`` seconds.

    An engine of this package hands records on as they are, and waits by itself. Over any other grid
    the messages are packed (:mod:`~flwr_dmml.transport.packing`), and so are the replies. Flower's
    own waiting asks every 3 s; here the first replies are looked for at once, and the polls become
    rarer as the wait becomes longer. The last one begins when the time is over: a poll can last, as
    it waits for all of a reply that was announced, whose sender may have died.
    """
    if isinstance(grid, SimulationGrid):
        return list(grid.send_and_receive(messages, timeout=timeout))
    waiting = push(grid, messages)
    begun, replies = time.monotonic(), list[Message]()
    while waiting:
        over = time.monotonic() - begun >= timeout
        there = list(grid.pull_messages(waiting))
        replies += there
        waiting -= {reply.metadata.reply_to_message_id for reply in there}
        if not waiting or over:
            break
        waited = time.monotonic() - begun
        time.sleep(max(0.0, min(pause_s(waited), timeout - waited)))
    return replies


def push(grid: Grid, messages: Sequence[Message]) -> set[str]:
    """Send messages over a grid that is not of this package; return the ids of those accepted."""
    for message in messages:
        message.content = packed(message.content)
    return {there for there in grid.push_messages(messages) if there}  # None: not accepted


def pause_s(waited_s: float) -> float:
    """Return for how many seconds to wait until it is looked again whether there are replies."""
    return min(max(waited_s / SHARE, FIRST_POLL_S), LAST_POLL_S)
