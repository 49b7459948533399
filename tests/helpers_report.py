"""Run folders for the tests of reports, written by the classes that write real ones; pages read."""

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.tracking import RoundRecord, RunFolder

SENSORS = (("audio",), ("image",), ("audio", "image"))


def full_config(**settings: Any) -> dict[str, Any]:
    """Return every setting, as a run writes it; ``_`` in names stands for ``-``."""
    given = {key.replace("_", "-"): value for key, value in settings.items()}
    return parse_settings(given, find_parts()).resolved()


def make_round(
    number: int, accuracies: Sequence[float] | None, *, devices: int = 3, joules: float = 2.0
) -> RoundRecord:
    """Return a round in which every device took part, evaluated where accuracies are given.

    Macro-F1 and UAR are 0.8 and 0.9 of the accuracy.
    """
    record = RoundRecord(number, total_j=joules * number, total_simulated_s=0.5 * number)
    for partition in range(devices):
        sensors = SENSORS[partition % 3]
        node = record.node(partition, sensors)
        node.train_loss = 2.0 / number
        node.disagreement = 4.0 / number
        node.updates = dict.fromkeys(sensors, 10 + partition + number)
        node.speed = {name: 0.1 * (i + 1) for i, name in enumerate(sensors)}
        node.compute_j, node.radio_j = joules * 0.75 / devices, joules * 0.25 / devices
        node.sent(1_000_000, 0)
        record.battery_j[partition] = 50.0 - number + partition
        if accuracies is not None:
            node.accuracy = accuracies[partition]
            node.macro_f1, node.uar = 0.8 * accuracies[partition], 0.9 * accuracies[partition]
            node.accuracy_by_modality = dict.fromkeys(sensors, accuracies[partition] / 2)
    return record


def write_run(
    parent: Path,
    name: str,
    methods: Mapping[str, Sequence[RoundRecord]],
    *,
    described: bool = True,
    **settings: Any,
) -> Path:
    """Write a run folder; ``described`` adds run.json, devices.json and confusion.json."""
    names = list(methods)
    longest = max(len(rounds) for rounds in methods.values())
    own = {"num_server_rounds": longest, "method": names[-1]} | settings
    if len(names) > 1:
        own = {"compare_with": names[0]} | own
    folder = RunFolder(parent, name, full_config(**own))
    for method, rounds in methods.items():
        folder.run_started(method, longest, [])
        for record in rounds:
            folder.round_ended(record)
        if described:
            count = len(rounds[-1].nodes)
            devices = {
                "topology": "ring",
                "time_varying": False,
                "classes": 3,
                "class_names": ["lie", "sit & wait", "<b>walk"],
                "edges": [[i, (i + 1) % count] for i in range(count)] if count > 1 else [],
                "nodes": [
                    {
                        "partition": n.partition,
                        "modalities": n.modalities.split("+"),
                        "num_train": 36,
                        "class_counts": [30, 5, 1],
                    }
                    for n in rounds[-1].nodes
                ],
            }
            confusion = {"round": rounds[-1].round, "matrix": [[8, 2, 0], [1, 9, 0], [5, 0, 5]]}
            (folder.path / method / "devices.json").write_text(json.dumps(devices))
            (folder.path / method / "confusion.json").write_text(json.dumps(confusion))
    if described:
        info = {
            "schema": 1,
            "created": "2026-11-21T12:00:00",
            "command": f"flwr-dmml simulate app --set method={names[-1]}",
            "seed": 0,
            "versions": {"flwr-dmml": "0.1.0", "torch": "2.11.0"},
            "git": {"revision": "abc1234", "dirty": True},
            "platform": "Linux",
        }
        (folder.path / "run.json").write_text(json.dumps(info))
    return folder.path


def two_methods(parent: Path, name: str = "mine", **settings: Any) -> Path:
    """Write a run of two methods, three devices and four rounds, evaluated in 2 and 4."""
    ends = {
        "dpsgd": ([0.3, 0.4, 0.5], [0.5, 0.6, 0.7]),
        "dmml-kd": ([0.4, 0.5, 0.6], [0.6, 0.7, 1]),
    }
    rounds = {
        method: [make_round(r, {2: half, 4: end}.get(r)) for r in range(1, 5)]
        for method, (half, end) in ends.items()
    }
    return write_run(parent, name, rounds, **settings)


def large_run(parent: Path, devices: int = 100, rounds: int = 200) -> Path:
    """Write a run of two methods whose numbers are all different and have all their digits."""
    draw = np.random.default_rng(0)
    methods: dict[str, list[RoundRecord]] = {}
    for method in ("dpsgd", "dmml-kd"):
        methods[method] = []
        for number in range(1, rounds + 1):
            record = make_round(number, draw.random(devices).tolist(), devices=devices)
            for node in record.nodes:
                node.updates = {m: int(draw.integers(1, 40)) for m in node.updates}
                node.train_loss = float(draw.random())
                node.compute_j = float(draw.random())
            methods[method].append(record)
    return write_run(parent, "large", methods, num_nodes=devices)


def older(run: Path) -> Path:
    """Make a run folder one of a version that did not know macro-F1 and UAR."""
    for path in run.glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for part in (part for line in lines for part in (line, *line["nodes"])):
            del part["macro_f1"], part["uar"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


class Page(HTMLParser):
    """A page as a reader without JavaScript gets it: tables by id, headings, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._rows: list[list[str]] | None = None
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "table":
            self._rows = self.tables.setdefault(given["id"], [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
        elif tag == "script":
            self._script = given.get("id", "code")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None
        elif tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
            return
        self.text += data
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data

    def row(self, table: str, first: str) -> list[str]:
        """Return the cells of the row with this first cell."""
        return next(row[1:] for row in self.tables[table] if row[0] == first)

    @property
    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts["figures"]))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})


def words(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
