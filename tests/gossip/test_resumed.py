"""Runs with push-sum, copies, lost messages, drawn graphs and a final merge go on to the bit."""

from pathlib import Path
from typing import Any

import pytest
from helpers_resume import metrics, run, stopped_and_resumed

COMPRESSED = {"exchange.precision": "int8", "exchange.top-k": 0.2}


@pytest.mark.parametrize(
    ("changed", "rounds"),
    [
        ({"gossip": "sgp", "topology": "ring", "topology-directed": True, "loss-rate": 0.2}, 2),
        ({"gossip": "choco", **COMPRESSED, "loss-rate": 0.3}, 2),
        ({"gossip": "motef", **COMPRESSED, "loss-rate": 0.3}, 3),
        ({"topology": "base", "topology-degree": 1, "final-merge": "owners"}, 2),
        ({"topology": "epidemic", "topology-degree": 2, "topology-directed": True}, 3),
        ({"method": "dmml-kd", "final-merge": "owners", "final-merge-rounds": 6}, 6),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_whole_one(
    changed: dict[str, Any], rounds: int, tmp_path: Path
) -> None:
    config = {"method": "dpsgd", **changed}
    whole = run(tmp_path, "whole", **config)
    again = stopped_and_resumed(tmp_path, rounds, **config)
    assert metrics(whole) == metrics(again) != {}
