"""Records of rounds, read back from a metrics file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..base.errors import UserError
from ..base.formats import parse_json
from .records import Amount, Count, Named, NodeResult, Real, RoundRecord


class HistoryError(UserError, ValueError):
    """A file of a run that cannot be read; the message names the line and what is wrong."""


class _Line(BaseModel):
    """Fields of a :class:`.RoundRecord`: the part of a line that is not derived from the rest."""

    round: Count
    nodes: list[NodeResult]
    failed: dict[Count, str] = {}
    battery_j: dict[Count, Real] = {}
    total_j: Amount = 0.0
    total_simulated_s: Amount = 0.0
    total_bits: Amount = 0.0
    total_measured_j: Amount | None = None
    noted: Named = {}
    carried: set[tuple[Count, Count, Count]] = set()

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
    HistoryError
        Another line cannot be read; the message names it.
    OSError
        The file cannot be read.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse_json(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # the run was killed while it wrote
            raise HistoryError(f"{path}, line {number}: {error}") from error
        if not isinstance(found[-1], dict):
            raise HistoryError(f"{path}, line {number}: it holds no names and values")
    return found
