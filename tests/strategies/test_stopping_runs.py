"""SIGTERM under Flower: on a grid that is none of this package's, as in a ServerApp's process."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from helpers import QUICKSTART
from helpers_resume import SMALL, metrics, run

from flwr_dmml.engine import InProcessGrid, load_app, server_identity
from flwr_dmml.engine.identity import SERVER_NODE_ID
from flwr_dmml.strategies import RunStoppedError

CONFIG: dict[str, Any] = {**SMALL, "method": "dpsgd", "checkpoint-every": 0}


class FlowersGrid(Grid):
    """Devices behind a grid of Flower's; SIGTERM comes with the messages of a round."""

    def __init__(self, devices: InProcessGrid, stop_in: int) -> None:
        self._devices, self._stop_in, self._trained = devices, stop_in, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        if listed[0].metadata.message_type == "train":
            self._trained += 1
            if self._trained == self._stop_in:
                os.kill(os.getpid(), signal.SIGTERM)
        return self._devices.push_messages(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._devices.pull_messages(message_ids)

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
        return self._devices.get_node_ids()

    def set_run(self, run: Run) -> None:
        self._devices.set_run(run)

    @property
    def run(self) -> Run:
        return self._devices.run

    def create_message(self, *given: Any, **named: Any) -> Message:
        return self._devices.create_message(*given, **named)


def serve(folder: Path, stop_in: int = 0, **own: Any) -> None:
    """Run the ServerApp as Flower's process does, in the main thread."""
    app = load_app(QUICKSTART)
    config = {**app.run_config, **CONFIG, "run-dir": str(folder), **own}
    context = Context(1, SERVER_NODE_ID, {}, RecordDict(), config)
    devices = InProcessGrid(app.client_app, config["num-nodes"], config)
    with server_identity(1):
        app.server_app(FlowersGrid(devices, stop_in), context)


def test_sigterm_stops_after_the_round_with_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="flwr")
    whole = run(tmp_path, "whole", **CONFIG)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStoppedError, match="Stopped after round 2; go on with"):
        serve(tmp_path, stop_in=2, **{"run-name": "r"})
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: the run stops after this round; once more, at once" in caplog.text
    serve(tmp_path, resume="r")
    assert "Resumed after round 2" in caplog.text
    assert metrics(whole) == metrics(tmp_path / "r")
