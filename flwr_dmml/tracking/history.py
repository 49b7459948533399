"""Records of rounds, read back from a metrics file."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .records import NodeResult, RoundRecord

_OF_NODE = {field.name for field in fields(NodeResult)}


def read_record(line: Mapping[str, Any]) -> RoundRecord:
    """Return the record of what :meth:`RoundRecord.to_json` gave.

    Batteries of devices that took no part in the round are not in there.
    """
    nodes = [NodeResult(**{k: v for k, v in n.items() if k in _OF_NODE}) for n in line["nodes"]]
    batteries = {n["partition"]: n["battery_j"] for n in line["nodes"]}
    return RoundRecord(
        round=int(line["round"]),
        by_partition={node.partition: node for node in nodes},
        failed={int(k): str(v) for k, v in line["failed"].items()},
        battery_j={k: float(v) for k, v in batteries.items() if v is not None},
        total_j=float(line["total_j"]),
        total_simulated_s=float(line["total_simulated_s"]),
        total_bits=float(line["total_bits"]),
        total_measured_j=line.get("total_measured_j"),
    )


def read_metrics_file(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last one that is cut off is left out.

    Raises
    ------
    ValueError
        Another line cannot be read; the message names it.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # the run was killed while it wrote
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found
