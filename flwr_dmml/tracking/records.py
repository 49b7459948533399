"""What is measured: one record a round, and how it is summed up over nodes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from statistics import fmean
from typing import Any, Protocol


@dataclass
class NodeResult:
    """One node in one round: accuracies in [0, 1], None where it was not evaluated."""

    partition: int
    modalities: str  # e.g. "audio+image"
    train_loss: float | None = None
    accuracy: float | None = None  # test set, all its modalities
    accuracy_by_modality: dict[str, float] = field(default_factory=dict)  # each one alone
    validation_accuracy: float | None = None
    disagreement: float | None = None  # sum_j w_kj ||x_k - x_j||^2
    bytes_sent: int = 0
    speed: dict[str, float] = field(default_factory=dict)  # training speed of each modality

    def trained(self, metrics: Mapping[str, float]) -> None:
        """Take up what the node measured while training."""
        self.train_loss = metrics.get("train.loss")
        self.speed = _under("speed.", metrics)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Take up what the node measured after mixing, see :class:`~flwr_dmml.plan.Outcome`."""
        self.disagreement = metrics.get("mix.disagreement")
        self.accuracy = metrics.get("test.accuracy")
        self.validation_accuracy = metrics.get("validation.accuracy")
        self.accuracy_by_modality = _under("test.accuracy.", metrics)


def _under(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics whose names begin with ``prefix``, by what follows it."""
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


@dataclass
class RoundRecord:
    """One round over all nodes. Its numbers depend on the seed only, never on the engine."""

    round: int
    by_partition: dict[int, NodeResult] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)  # partition -> reason
    seconds: float = 0.0  # wall clock; not part of :meth:`to_json`

    def node(self, partition: int, modalities: Iterable[str]) -> NodeResult:
        """Return the entry of a node, new if it has none yet."""
        return self.by_partition.setdefault(partition, NodeResult(partition, "+".join(modalities)))

    @property
    def nodes(self) -> list[NodeResult]:
        """The nodes that took part, by partition."""
        return [self.by_partition[p] for p in sorted(self.by_partition)]

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over nodes, each with the modalities it owns."""
        values = [n.accuracy for n in self.nodes if n.accuracy is not None]
        return fmean(values) if values else None

    @property
    def min_accuracy(self) -> float | None:
        """Test accuracy of the worst node."""
        return min((n.accuracy for n in self.nodes if n.accuracy is not None), default=None)

    @property
    def max_accuracy(self) -> float | None:
        """Test accuracy of the best node."""
        return max((n.accuracy for n in self.nodes if n.accuracy is not None), default=None)

    @property
    def accuracy_by_set(self) -> dict[str, float]:
        """Mean test accuracy of the nodes that own exactly this set of modalities."""
        groups: dict[str, list[float]] = defaultdict(list)
        for node in self.nodes:
            if node.accuracy is not None:
                groups[node.modalities].append(node.accuracy)
        return {name: fmean(values) for name, values in sorted(groups.items())}

    @property
    def accuracy_by_modality(self) -> dict[str, float]:
        """Mean test accuracy of a modality's owners when they use that modality alone."""
        groups: dict[str, list[float]] = defaultdict(list)
        for node in self.nodes:
            for name, value in node.accuracy_by_modality.items():
                groups[name].append(value)
        return {name: fmean(values) for name, values in sorted(groups.items())}

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over nodes and local iterations."""
        values = [n.train_loss for n in self.nodes if n.train_loss is not None]
        return fmean(values) if values else None

    @property
    def consensus_distance(self) -> float | None:
        """``sqrt(mean_k sum_j w_kj ||x_k - x_j||^2)`` of the models published in this round.

        Over everything that is mixed, a gossiped generator included; 0 at consensus, None when
        nobody mixed. Measured by the nodes between neighbours, since nobody sees all models (this
        project's measure).
        """
        values = [n.disagreement for n in self.nodes if n.disagreement is not None]
        return sqrt(fmean(values)) if values else None

    @property
    def bytes_sent(self) -> float:
        """Bytes a node sent to its neighbours in this round, mean over nodes."""
        return fmean([n.bytes_sent for n in self.nodes]) if self.nodes else 0.0

    def to_text(self) -> str:
        """Return one line for the log; only for an evaluated round."""
        apart = self.consensus_distance
        distance = "" if apart is None else f"consensus distance {apart:.3g} | "
        by_modality = "  ".join(f"{m} {a:.3f}" for m, a in self.accuracy_by_modality.items())
        by_set = "  ".join(f"{m} {a:.3f}" for m, a in self.accuracy_by_set.items())
        return (
            f"accuracy mean {self.accuracy or 0:.3f}  min {self.min_accuracy or 0:.3f}  "
            f"max {self.max_accuracy or 0:.3f} | devices with {by_set} | "
            f"from {by_modality} alone | {distance}"
            f"{self.bytes_sent / 1e3:.1f} kB sent per device"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is written to ``metrics.jsonl``: summary first, then the nodes."""
        return {
            "round": self.round,
            "train_loss": self.train_loss,
            "accuracy": self.accuracy,
            "min_accuracy": self.min_accuracy,
            "max_accuracy": self.max_accuracy,
            "accuracy_by_set": self.accuracy_by_set,
            "accuracy_by_modality": self.accuracy_by_modality,
            "consensus_distance": self.consensus_distance,
            "bytes_sent_per_node": self.bytes_sent,
            "failed": {str(k): v for k, v in sorted(self.failed.items())},
            "nodes": [asdict(node) for node in self.nodes],
        }


class Tracker(Protocol):
    """Something that wants to know how a run goes: a run folder, a live table, ...."""

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Take note that a method starts on these nodes (``audio+image`` and so on)."""

    def round_ended(self, record: RoundRecord) -> None:
        """Take note of a finished round."""
