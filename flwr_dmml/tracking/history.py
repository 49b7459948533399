"""Records of rounds, read back from a metrics file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .records import NodeResult, RoundRecord


class _Line(BaseModel):
    """Fields of a :class:`.RoundRecord`: the part of a line that is not derived from the rest."""

    round: int
    nodes: list[NodeResult]
    failed: dict[int, str] = {}
    battery_j: dict[int, float] = {}
    total_j: float = 0.0
    total_simulated_s: float = 0.0
    total_bits: float = 0.0
    total_measured_j: float | None = None
    noted: dict[str, float] = {}
    carried: set[tuple[int, int, int]] = set()

    def record(self) -> RoundRecord:
        """Return the record."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "nodes"}
        return RoundRecord(by_partition={node.partition: node for node in self.nodes}, **values)


def read_record(line: Mapping[str, Any]) -> RoundRecord:
    """Return the record of what :meth:`.RoundRecord.to_json` gave.

    Raises
    ------
    pydantic.ValidationError
        It is something else.
    """
    return _Line.model_validate(line).record()


def read_line(text: str) -> RoundRecord:
    """Return the record of a line of a metrics file; raises as :func:`read_record` does."""
    return _Line.model_validate_json(text).record()


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
