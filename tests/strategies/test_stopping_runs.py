"""SIGTERM under Flower: on a grid that is none of this package's, as in a ServerApp's process."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from helpers import QUICKSTART
from helpers_flower import serve
from helpers_resume import SMALL, metrics, run

from flwr_dmml.engine import load_app
from flwr_dmml.strategies import RunStoppedError, keeper, roster

CONFIG: dict[str, Any] = {**SMALL, "method": "dpsgd", "checkpoint-every": 0}


def test_sigterm_stops_after_the_round_with_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="flwr")
    whole = run(tmp_path, "whole", **CONFIG)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStoppedError, match="Stopped after round 2; go on with"):
        serve(load_app(QUICKSTART), tmp_path, {**CONFIG, "run-name": "r"}, stop_in=2)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: the run stops after this round; a second one stops it at once" in caplog.text
    serve(load_app(QUICKSTART), tmp_path, {**CONFIG, "resume": "r"})
    assert "Resumed after round 2" in caplog.text
    assert metrics(whole) == metrics(tmp_path / "r")


class NotYet:
    """Device 1 fails its first message of either kind, as one does whose disk is full."""

    def __init__(self, app: Callable[[Message, Context], Message]) -> None:
        self._app, self._left = app, {"query.hello", "query.restore"}

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if context.node_config["partition-id"] == 1 and kind in self._left:
            self._left.remove(kind)
            raise RuntimeError(f"no {kind} yet")
        return self._app(message, context)


def test_a_resumed_run_waits_for_the_devices_that_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level("INFO", logger="flwr")
    for module in (keeper, roster):
        monkeypatch.setattr(module, "AGAIN_S", 0.0)
    whole, app = run(tmp_path, "whole", **CONFIG), load_app(QUICKSTART)
    with pytest.raises(RunStoppedError):
        serve(app, tmp_path, {**CONFIG, "run-name": "r"}, stop_in=2)
    serve(replace(app, client_app=NotYet(app.client_app)), tmp_path, {**CONFIG, "resume": "r"})
    assert "Waiting for devices 1 of the run: node " in caplog.text
    assert "no query.hello yet" in caplog.text and "no query.restore yet" in caplog.text
    assert "Left out of the run" not in caplog.text
    assert metrics(whole) == metrics(tmp_path / "r")
