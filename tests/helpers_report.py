"""Run folders for the tests of reports, written by the classes that write real ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
