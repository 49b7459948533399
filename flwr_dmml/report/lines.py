"""Records of a run folder that reports read besides the rounds: devices, confusion, run info."""

from typing import Any

from pydantic import BaseModel


class DeviceLine(BaseModel):
    """One device of ``devices.json``."""

    partition: int
    modalities: list[str]
    num_train: int = 0
    class_counts: list[int] = []


class Devices(BaseModel):
    """``devices.json``: the graph, and what data each device has."""

    topology: str = ""
    time_varying: bool = False
    classes: int = 0
    class_names: list[str] = []
    edges: list[tuple[int, int]] = []
    nodes: list[DeviceLine]

    def labels(self, count: int) -> list[str]:
        """Return the names of ``count`` classes; their numbers, where there are no such names."""
        named = len(self.class_names) == len(set(self.class_names)) == count
        return self.class_names if named else [str(c) for c in range(count)]


class Confusion(BaseModel):
    """``confusion.json``: rows are true classes, columns predicted ones, summed over devices."""

    round: int
    matrix: list[list[float]]

    @property
    def recall(self) -> list[float | None]:
        """The share of each class's samples that were found, in [0, 1]; None without samples."""
        totals = [sum(row) for row in self.matrix]
        return [row[c] / totals[c] if totals[c] else None for c, row in enumerate(self.matrix)]


class RunInfo(BaseModel):
    """``run.json``: when, with which versions and from which revision a run was made."""

    created: str = ""
    versions: dict[str, str] = {}
    git: dict[str, Any] | None = None
    platform: str = ""
