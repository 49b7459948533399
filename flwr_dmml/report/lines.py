"""What the files of a run folder hold, as far as reports use it."""

from typing import Any

from pydantic import BaseModel


class NodeLine(BaseModel):
    """One device in a line of ``metrics.jsonl``, see :class:`flwr_dmml.tracking.NodeResult`."""

    partition: int
    modalities: str
    accuracy: float | None = None
    macro_f1: float | None = None
    uar: float | None = None
    accuracy_by_modality: dict[str, float] = {}
    bytes_sent: float = 0
    updates: dict[str, float] = {}
    compute_j: float = 0.0
    radio_j: float = 0.0
    battery_j: float | None = None


class RoundLine(BaseModel):
    """A line of ``metrics.jsonl``, see :meth:`flwr_dmml.tracking.RoundRecord.to_json`."""

    round: int
    nodes: list[NodeLine]
    train_loss: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    uar: float | None = None
    accuracy_by_set: dict[str, float] = {}
    accuracy_by_modality: dict[str, float] = {}
    accuracy_without: dict[str, float] = {}
    accuracy_missing: float | None = None
    consensus_distance: float | None = None
    label_bytes_sent_per_node: float = 0.0
    labels: dict[str, float] = {}
    total_j: float = 0.0
    total_measured_j: float | None = None
    battery_quantiles_j: list[float] | None = None
    balance: float | None = None
    network_balance: float | None = None
    total_simulated_s: float = 0.0
    failed: dict[str, str] = {}

    @property
    def evaluated(self) -> list[NodeLine]:
        """The devices that were evaluated in this round."""
        return [node for node in self.nodes if node.accuracy is not None]

    @property
    def over_classes(self) -> dict[str, float]:
        """Macro-F1 and UAR, as far as they are known."""
        found = {"macro-F1": self.macro_f1, "UAR": self.uar}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def bytes_sent(self) -> float:
        """Bytes that all devices together sent to their neighbours in this round."""
        return sum(node.bytes_sent for node in self.nodes)


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
