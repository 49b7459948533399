"""Runs of the quickstart that are stopped and go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import FEW_STEPS, QUICKSTART

from flwr_dmml.engine import load_app, run_app
from flwr_dmml.strategies import RunStoppedError

SMALL: dict[str, Any] = {
    "num-nodes": 4,
    "num-server-rounds": 4,
    "samples-per-node": 40,
    "local-iterations": 2,
    "batch-size": 16,
    "evaluate-every": 2,
    "checkpoint-every": 1,
    "compare-with": "",
    "topology": "line",
    "idkd.exchange-every": 1,
    "idkd.start": 0.2,
    "kd.exchange-every": 1,
    "kd.start": 0.2,
    **FEW_STEPS,
}


def run(
    folder: Path,
    name: str,
    stop_after: int = 0,
    workers: int = 0,
    stopping: Callable[[], bool] | None = None,
    **config: Any,
) -> Path:
    """Run the quickstart; ``stopping``, or its call number ``stop_after``, says to stop."""
    app = load_app(QUICKSTART)
    given = {**SMALL, **config, "run-dir": str(folder), "run-name": name}
    if config.get("resume"):
        given |= {"run-name": ""}
    asked = [0]

    def counted() -> bool:
        asked[0] += 1
        return asked[0] == stop_after

    run_app(app, given["num-nodes"], given, workers=workers, stopping=stopping or counted)
    return folder / name


def stopped_and_resumed(folder: Path, rounds: int, **config: Any) -> Path:
    with pytest.raises(RunStoppedError, match=f"after round {rounds}"):
        run(folder, "stopped", stop_after=rounds, **config)
    run(folder, "again", resume="stopped", **config)
    return folder / "stopped"


def metrics(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("*/metrics.jsonl")}
