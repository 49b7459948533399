"""A ServerApp as Flower's process runs it: in the main thread, on a grid that is Flower's own."""

import os
import signal
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from flwr_dmml.engine import FlowerApp, InProcessGrid, server_identity
from flwr_dmml.engine.identity import SERVER_NODE_ID


class FlowersGrid(Grid):
    """Devices behind a grid of Flower's; SIGTERM comes with the messages of a round.

    A device in ``away`` connects when messages of so many rounds have been sent; one in ``lost`` is
    killed with that of such a round, and nobody looks while it is away. ``dropped`` are partitions
    and kinds of messages whose first is never answered.
    """

    def __init__(
        self,
        devices: InProcessGrid,
        stop_in: int,
        away: Mapping[int, int] | None = None,
        lost: Mapping[int, Collection[int]] | None = None,
        dropped: Collection[tuple[int, str]] = (),
    ) -> None:
        self._devices, self._stop_in, self._trained = devices, stop_in, 0
        self._away, self._lost = away or {}, lost or {}
        self._dropped = set(dropped)
        self._gone = set[str]()  # messages that are never answered
        self.kinds: list[tuple[int, str]] = []
        """Partition and kind of every message."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        if listed[0].metadata.message_type == "train":
            self._trained += 1
            if self._trained == self._stop_in:
                os.kill(os.getpid(), signal.SIGTERM)
        nodes = list(self._devices.get_node_ids())
        ids = list(self._devices.push_messages(listed))
        for message, sent in zip(listed, ids, strict=True):
            p, kind = nodes.index(message.metadata.dst_node_id), message.metadata.message_type
            self.kinds.append((p, kind))
            killed = kind == "train" and self._trained in self._lost.get(p, ())
            if killed or (p, kind) in self._dropped:
                self._dropped.discard((p, kind))
                self._gone.add(sent)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._devices.pull_messages(set(message_ids) - self._gone)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting, found = set(self.push_messages(messages)), list[Message]()
        while waiting:
            there = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in there}
            found += there
        return found

    def get_node_ids(self) -> Iterable[int]:
        each = enumerate(self._devices.get_node_ids())
        return [node_id for p, node_id in each if self._away.get(p, 0) <= self._trained]

    def set_run(self, run: Run) -> None:
        self._devices.set_run(run)

    @property
    def run(self) -> Run:
        return self._devices.run

    def create_message(self, *given: Any, **named: Any) -> Message:
        return self._devices.create_message(*given, **named)


def serve(
    app: FlowerApp,
    folder: Path,
    config: Mapping[str, Any],
    stop_in: int = 0,
    away: Mapping[int, int] | None = None,
    lost: Mapping[int, Collection[int]] | None = None,
    dropped: Collection[tuple[int, str]] = (),
) -> FlowersGrid:
    """Run an app, with run folders in ``folder``; SIGTERM comes in message ``stop_in``."""
    given = {**app.run_config, **config, "run-dir": str(folder)}
    context = Context(1, SERVER_NODE_ID, {}, RecordDict(), given)
    devices = InProcessGrid(app.client_app, given["num-nodes"], given)
    grid = FlowersGrid(devices, stop_in, away, lost, dropped)
    with server_identity(1):
        app.server_app(grid, context)
    return grid
