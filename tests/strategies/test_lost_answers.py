"""A device that is killed with a message, and is back when somebody looks."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART
from helpers_flower import serve
from helpers_resume import SMALL

from flwr_dmml.engine import load_app
from flwr_dmml.strategies import sending
from flwr_dmml.strategies.roster import TOO_LATE

CONFIG: dict[str, Any] = {
    **SMALL, "method": "dpsgd", "num-server-rounds": 6, "topology": "complete",
    "round-timeout": 5.0, "run-name": "r",
}  # fmt: skip
BUSY = "it is still busy with an earlier message"


def failed(run: Path, partition: str) -> list[str | None]:
    lines = (run / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("failed", {}).get(partition) for line in lines]


def test_it_is_asked_whether_it_is_there_and_takes_part_again(tmp_path: Path):
    """Lost in round 2, asked when its state is, and free when it has answered: in round 3."""
    grid = serve(load_app(QUICKSTART), tmp_path, CONFIG, lost={1: [2]})
    assert failed(tmp_path / "r", "1") == [None, TOO_LATE, None, None, None, None]
    assert [k for k in grid.kinds if k[1] == "query.idle"] == [(1, "query.idle")]


def test_it_may_be_killed_again(tmp_path: Path):
    grid = serve(load_app(QUICKSTART), tmp_path, CONFIG, lost={1: [2, 4]})
    assert failed(tmp_path / "r", "1") == [None, TOO_LATE, None, TOO_LATE, None, None]
    assert grid.kinds.count((1, "query.idle")) == 2


def test_in_flowers_simulation_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There another actor would answer for the device, which may still be at work."""
    monkeypatch.setattr(sending, "program_name", lambda: sending.FLOWERS_SIMULATION)
    grid = serve(load_app(QUICKSTART), tmp_path, CONFIG, lost={1: [2]})
    assert failed(tmp_path / "r", "1") == [None, TOO_LATE, *[BUSY] * 4]
    assert (1, "query.idle") not in grid.kinds
