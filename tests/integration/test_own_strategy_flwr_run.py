"""A strategy of one's own under Flower's own engine (`flwr run`), against the in-process engine."""

import json
from pathlib import Path
from typing import Any

from flwr_helpers import Run
from helpers import ROOT
from helpers_docs import write_files
from test_flwr_run import SETTINGS, flwr_run  # noqa: F401

from flwr_dmml.engine import load_app, run_app

PACKAGED = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "by-battery"
version = "0.1.0"
dependencies = []

"""
"""What Flower wants in a pyproject.toml besides what the page shows."""


def test_a_graph_by_battery(flwr_run: Run, tmp_path: Path) -> None:  # noqa: F811
    """4 nodes, 2 rounds: in round 2 the fullest has more links. Both engines write the same."""
    write_files(ROOT / "docs" / "howto" / "own-strategy.md", tmp_path)
    app = tmp_path / "battery"
    settings: dict[str, Any] = {**SETTINGS, "num-server-rounds": 2, "modality-pattern": "image"}
    project, table = app / "pyproject.toml", "[tool.flwr.app.config]\n"
    shown = project.read_text().replace("num-nodes = 8\nnum-server-rounds = 10\n", "")
    keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    project.write_text(PACKAGED + shown.replace(table, f'{table}run-dir = ""\n{keys}'))

    status, log = flwr_run(4, app=app, **settings, **{"run-dir": str(tmp_path / "ray")})
    assert status == "finished:completed", log
    run_app(load_app(app), 4, {"run-dir": str(tmp_path / "here")})
    found = [tmp_path / f / "same" / "dpsgd" / "metrics.jsonl" for f in ("ray", "here")]
    assert found[0].read_bytes() == found[1].read_bytes()
    first, second = (
        [node["bytes_sent"] for node in json.loads(line)["nodes"]]
        for line in found[0].read_text().splitlines()
    )
    assert len(set(first)) == 1
    assert sorted(sent / first[0] for sent in second) == [1, 1, 1.5, 1.5]
