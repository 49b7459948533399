"""SIGTERM under Flower: on a grid that is none of this package's, as in a ServerApp's process."""

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART
from helpers_flower import serve
from helpers_resume import SMALL, metrics, run

from flwr_dmml.engine import load_app
from flwr_dmml.strategies import RunStoppedError

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
