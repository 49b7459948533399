"""Records of measurements: one record a round, with the results of its nodes and their summary."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum, isfinite, nan, sqrt
from statistics import fmean
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from ..learning.balance import balance_metric
from ..learning.evaluation import EVALUATION

MOST = 1e100
"""More than any number of a record: sums and products of them are finite."""


def _known(table: Any) -> Any:
    """Leave out what was written as null: a number that does not exist."""
    return {k: v for k, v in table.items() if v is not None} if isinstance(table, dict) else table


def _real(value: float) -> float:
    """Return a number as it is, and NaN for what is not finite, which older files have."""
    if not isfinite(value):
        return nan
    if abs(value) > MOST:
        raise ValueError(f"it is larger than {MOST:g}")
    return value


# The ranges hold for what is read from a file.
Real = Annotated[float, AfterValidator(_real)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Named = Annotated[dict[str, Real], BeforeValidator(_known)]


@dataclass
class NodeResult:
    """One node in one round: accuracies in [0, 1], None where it was not evaluated."""

    partition: Count
    modalities: str  # e.g. "audio+image"
    train_loss: Real | None = None
    accuracy: Share | None = None  # test set, all its modalities
    accuracy_own_shares: Share | None = None  # where classes have the shares of its own samples
    macro_f1: Share | None = None  # there, all its modalities
    uar: Share | None = None  # there, unweighted average recall
    accuracy_by_modality: dict[str, Share] = field(default_factory=dict)  # each one alone
    accuracy_without: dict[str, Share] = field(default_factory=dict)  # from all but that one
    accuracy_missing: Share | None = None  # test samples of which a share lacks a modality
    validation_accuracy: Share | None = None
    ece: Share | None = None  # calibration error of predictions
    ece_uncalibrated: Share | None = None  # the same with temperatures of 1
    temperature: dict[str, Amount] = field(default_factory=dict)  # of each modality, in these
    disagreement: Amount | None = None  # sum_j w_kj ||x_k - x_j||^2
    bytes_sent: Count = 0
    label_bytes_sent: Count = 0  # of these, soft labels
    rejected: Count = 0  # letters and blocks of its neighbours that did not come or were refused
    claims: dict[Count, str] = field(default_factory=dict)  # neighbour -> what it says of that one
    labels: dict[str, Real] = field(default_factory=dict)  # how a public set was labelled
    speed: dict[str, Real] = field(default_factory=dict)  # training speed of each modality
    updates: dict[str, Count] = field(default_factory=dict)  # of each modality's encoder
    compute_j: Amount = 0.0
    radio_j: Amount = 0.0
    simulated_s: Amount = 0.0  # to compute and to send
    measured_j: Amount | None = None  # by its own meter, while it computed
    measured_s: Amount | None = None  # the seconds of that
    own: Named = field(default_factory=dict)  # numbers that its method names itself
    dropped: dict[str, Share] = field(default_factory=dict)  # share of each neighbour's numbers
    lies: bool | None = None  # whether it is a liar of the simulation; None where nobody is
    lying_neighbours: Count | None = None  # that it hears in this round

    def trained(self, metrics: Mapping[str, float]) -> None:
        """Take up what the node measured while training."""
        self.train_loss = metrics.get("train.loss")
        self.speed = under("speed.", metrics)
        self.labels = under("labels.", metrics)
        self.own |= _unnamed(metrics, evaluation=False)

    def sent(self, num_bytes: int, label_bytes: int) -> None:
        """Take note of what went to one neighbour."""
        self.bytes_sent += num_bytes
        self.label_bytes_sent += label_bytes

    @property
    def balance(self) -> float | None:
        """The balance metric, >= 1, 1 is balanced; None where there is nothing to balance."""
        if len(self.speed) < 2 or not all(self.updates.get(m) for m in self.speed):
            return None
        value = balance_metric(self.speed, self.updates)
        return value if isfinite(value) else None

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Take up what the node measured after mixing, see :class:`~.plan.Outcome`."""
        self.disagreement = metrics.get("mix.disagreement")
        self.dropped = under("dropped.", metrics)
        self.tested(metrics)

    def tested(self, metrics: Mapping[str, float]) -> None:
        """Take up what the evaluation of the mixed model has given."""
        self.accuracy = metrics.get("test.accuracy")
        self.accuracy_own_shares = metrics.get("test.accuracy_own_shares")
        self.macro_f1, self.uar = metrics.get("test.macro_f1"), metrics.get("test.uar")
        self.validation_accuracy = metrics.get("validation.accuracy")
        self.accuracy_by_modality = under("test.accuracy.", metrics)
        self.accuracy_without = under("test.without.", metrics)
        self.accuracy_missing = metrics.get("test.missing")
        self.ece = metrics.get("test.ece")
        self.ece_uncalibrated = metrics.get("test.ece_uncalibrated")
        self.temperature = under("test.temperature.", metrics)
        self.own |= _unnamed(metrics, evaluation=True)


KNOWN = {
    "train.loss", "train.iterations", "mix.disagreement", "test.accuracy",
    "test.accuracy_own_shares", "test.macro_f1", "test.uar", "test.missing", "validation.accuracy",
    "payload.bytes", "test.ece", "test.ece_uncalibrated",
}  # fmt: skip
"""Metrics of a device that have a place of their own in a record."""
KNOWN_PREFIXES = (
    "test.accuracy.", "test.without.", "speed.", "near.", "labels.", "energy.", "letter.",
    "round.", "dropped.", "test.temperature.",
)  # fmt: skip
"""So have all that begin with these."""
OPTIONAL = {
    "measured_j", "measured_s", "total_measured_j", "carried", "claims", "lies",
    "lying_neighbours", "dropped", "liars", "ece", "ece_uncalibrated", "temperature",
}  # fmt: skip
"""What is left out of a line where there is nothing to say."""


def _unnamed(metrics: Mapping[str, float], *, evaluation: bool) -> dict[str, float]:
    """Return the metrics that only the method knows, of the evaluation or of all else."""
    return {
        name: value
        for name, value in metrics.items()
        if name not in KNOWN
        and not name.startswith(KNOWN_PREFIXES)
        and name.startswith(EVALUATION) == evaluation
    }


def under(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics whose names begin with ``prefix``, by what follows it."""
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def _there_only(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only some runs have: what a meter, couriers or neighbours add, and liars."""
    return {k: v for k, v in line.items() if k not in OPTIONAL or v not in (None, {})}


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_by_key(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each key over the tables that have it."""
    groups: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for name, value in table.items():
            groups[name].append(value)
    return {name: fmean(values) for name, values in sorted(groups.items())}


@dataclass
class Liars:
    """Liars in one round: what they do to others, and how well they are found.

    Attributes
    ----------
    devices : list of int
        Who lies.
    accuracy_near, accuracy_far : float or None
        Mean test accuracy of honest devices with a liar among their neighbours, and without.
    precision : float or None
        Liars' share of the numbers that honest devices have dropped; None where none were.
    recall : float or None
        Share of liars' numbers that was dropped, mean over honest devices and their lying
        neighbours; None where nothing is dropped by anybody.
    """

    devices: list[int]
    accuracy_near: float | None
    accuracy_far: float | None
    precision: float | None
    recall: float | None


def _found(nodes: Sequence[NodeResult]) -> dict[str, float | None]:
    """Return how well what honest nodes have dropped is what liars have told them."""
    lying = {str(n.partition) for n in nodes if n.lies}
    dropped = [(j in lying, x) for n in nodes if not n.lies for j, x in n.dropped.items()]
    if not dropped:
        return {"precision": None, "recall": None}
    right = fsum(x for lies, x in dropped if lies)
    met = sum(n.lying_neighbours or 0 for n in nodes if not n.lies)
    total = fsum(x for _, x in dropped)
    return {"precision": right / total, "recall": right / met if met else None}


@dataclass
class RoundRecord:
    """One round over all nodes. Its numbers depend on the seed only, never on the engine."""

    round: int
    by_partition: dict[int, NodeResult] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)  # partition -> reason
    seconds: float = 0.0  # wall clock; not part of :meth:`to_json`
    phases: dict[str, float] = field(default_factory=dict)  # the coordinator's seconds, likewise
    battery_j: dict[int, float] = field(default_factory=dict)  # of all devices; {} on mains power
    total_j: float = 0.0  # spent by all devices, this round included
    total_simulated_s: float = 0.0  # on the devices, this round included
    total_bits: float = 0.0  # put on the air by all devices, this round included
    total_measured_j: float | None = None  # by all meters, this round included
    noted: dict[str, float] = field(default_factory=dict)  # numbers of the strategy's own
    carried: set[tuple[int, int, int]] = field(default_factory=set)
    """What was mixed of this round's blocks by couriers: (origin, courier, receiver)."""

    @property
    def evaluated(self) -> list[NodeResult]:
        """The honest nodes that were evaluated, by partition."""
        return [node for node in self.honest if node.accuracy is not None]

    @property
    def over_classes(self) -> dict[str, float]:
        """Macro-F1 and UAR, as far as they are known."""
        found = {"macro-F1": self.macro_f1, "UAR": self.uar}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def own(self) -> dict[str, float]:
        """Numbers under names of a method's own, mean over the nodes; and those of a strategy."""
        return _mean_by_key(node.own for node in self.honest) | self.noted

    def node(self, partition: int, modalities: Iterable[str]) -> NodeResult:
        """Return the entry of a node, new if it has none yet."""
        found = self.by_partition.get(partition)
        if found is None:
            found = NodeResult(partition, "+".join(modalities))
            self.by_partition[partition] = found
        return found

    @property
    def nodes(self) -> list[NodeResult]:
        """The nodes that took part, by partition."""
        return [self.by_partition[p] for p in sorted(self.by_partition)]

    @property
    def honest(self) -> list[NodeResult]:
        """The nodes that are no liars of a simulation: all that is said of learning is of them."""
        return [node for node in self.nodes if not node.lies]

    @property
    def liars(self) -> "Liars | None":
        """Numbers of a simulation with liars; None where there are none."""
        if not any(node.lies for node in self.nodes):
            return None
        near = [n for n in self.honest if n.lying_neighbours]
        far = [n for n in self.honest if n.lying_neighbours == 0]
        return Liars(
            devices=[n.partition for n in self.nodes if n.lies],
            accuracy_near=_mean(n.accuracy for n in near),
            accuracy_far=_mean(n.accuracy for n in far),
            **_found(self.nodes),
        )

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over nodes, each with the modalities it owns."""
        return _mean(n.accuracy for n in self.honest)

    @property
    def accuracy_own_shares(self) -> float | None:
        """Mean accuracy over nodes, each on classes with the shares of its own samples."""
        return _mean(n.accuracy_own_shares for n in self.honest)

    @property
    def min_accuracy(self) -> float | None:
        """Test accuracy of the worst node."""
        return min((n.accuracy for n in self.honest if n.accuracy is not None), default=None)

    @property
    def max_accuracy(self) -> float | None:
        """Test accuracy of the best node."""
        return max((n.accuracy for n in self.honest if n.accuracy is not None), default=None)

    @property
    def macro_f1(self) -> float | None:
        """Macro-F1 on the test set, mean over nodes, each with the modalities it owns."""
        return _mean(n.macro_f1 for n in self.honest)

    @property
    def uar(self) -> float | None:
        """Unweighted average recall on the test set, mean over nodes likewise."""
        return _mean(n.uar for n in self.honest)

    @property
    def accuracy_by_set(self) -> dict[str, float]:
        """Mean test accuracy of the nodes that own exactly this set of modalities."""
        evaluated = (node for node in self.honest if node.accuracy is not None)
        return _mean_by_key({node.modalities: node.accuracy or 0.0} for node in evaluated)

    @property
    def accuracy_by_modality(self) -> dict[str, float]:
        """Mean test accuracy of a modality's owners when they use that modality alone."""
        return _mean_by_key(node.accuracy_by_modality for node in self.honest)

    @property
    def accuracy_without(self) -> dict[str, float]:
        """Mean test accuracy of a modality's owners when they use all their others instead."""
        return _mean_by_key(node.accuracy_without for node in self.honest)

    @property
    def accuracy_missing(self) -> float | None:
        """Mean test accuracy over nodes when a share of the samples lacks a modality."""
        return _mean(n.accuracy_missing for n in self.honest)

    @property
    def ece(self) -> float | None:
        """Mean calibration error over nodes, of predictions combined by ``test-fusion``."""
        return _mean(n.ece for n in self.honest)

    @property
    def ece_uncalibrated(self) -> float | None:
        """The same with temperatures of 1."""
        return _mean(n.ece_uncalibrated for n in self.honest)

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over nodes and local iterations."""
        return _mean(n.train_loss for n in self.honest)

    @property
    def consensus_distance(self) -> float | None:
        """``sqrt(mean_k sum_j w_kj ||x_k - x_j||^2)`` of the models published in this round.

        Over everything that is mixed, a gossiped generator included; 0 at consensus, None when
        nobody mixed. Measured by the nodes between neighbours, since nobody sees all models (this
        project's measure).
        """
        mean = _mean(n.disagreement for n in self.honest)
        return None if mean is None else sqrt(mean)

    @property
    def bytes_sent(self) -> float:
        """Bytes a node sent to its neighbours in this round, mean over nodes."""
        return fmean([n.bytes_sent for n in self.nodes]) if self.nodes else 0.0

    @property
    def all_bytes_sent(self) -> int:
        """Bytes that all nodes together sent to their neighbours in this round."""
        return sum(n.bytes_sent for n in self.nodes)

    @property
    def label_bytes_sent(self) -> float:
        """Part of ``bytes_sent`` that was soft labels of a public set."""
        return fmean([n.label_bytes_sent for n in self.nodes]) if self.nodes else 0.0

    @property
    def labels(self) -> dict[str, float]:
        """Public-set label metrics of this round, mean over nodes; empty if nothing was labelled.

        ``sent`` and ``used`` are shares of the public set, ``auroc``, ``kept`` and ``admitted`` the
        detector's figures against the truth, ``right`` the share of right labels among the used
        in-distribution ones, ``skew`` the total variation between the label distribution of what a
        node trains on and the uniform one (``skew-before``: of its own samples alone).
        """
        return _mean_by_key(node.labels for node in self.honest)

    @property
    def compute_j(self) -> float:
        """Joules that all devices spent on computing in this round."""
        return fsum(n.compute_j for n in self.nodes)

    @property
    def radio_j(self) -> float:
        """Joules that all devices spent on sending in this round."""
        return fsum(n.radio_j for n in self.nodes)

    @property
    def simulated_s(self) -> float:
        """Seconds that the round takes on the devices: the slowest one's computing and sending."""
        return max((n.simulated_s for n in self.nodes), default=0.0)

    @property
    def battery_quantiles_j(self) -> list[float] | None:
        """Lowest, quartiles and highest of all batteries, those of flat devices included."""
        levels = sorted(self.battery_j.values())
        return [float(q) for q in np.quantile(levels, [0, 0.25, 0.5, 0.75, 1])] if levels else None

    @property
    def updates_by_modality(self) -> dict[str, float]:
        """Updates of each modality's encoder in this round, mean over those that own it."""
        return _mean_by_key([node.updates for node in self.nodes])

    @property
    def balance(self) -> float | None:
        """Balance metric, mean over the devices with several modalities."""
        return _mean(n.balance for n in self.honest)

    @property
    def network_balance(self) -> float | None:
        """Balance metric of the network: each modality's progress is the mean over its owners."""
        progress = [
            {m: speed * n.updates.get(m, 0) for m, speed in n.speed.items()} for n in self.honest
        ]
        by_modality = _mean_by_key(progress)
        lowest = min(by_modality.values(), default=0.0)
        if len(by_modality) < 2 or lowest <= 0:
            return None
        value = max(by_modality.values()) / lowest
        return value if isfinite(value) else None

    def to_json(self) -> dict[str, Any]:
        """Return what is written to ``metrics.jsonl``: summary first, then the nodes."""
        line = {
            "round": self.round,
            "train_loss": self.train_loss,
            "accuracy": self.accuracy,
            "accuracy_own_shares": self.accuracy_own_shares,
            "min_accuracy": self.min_accuracy,
            "max_accuracy": self.max_accuracy,
            "macro_f1": self.macro_f1,
            "uar": self.uar,
            "accuracy_by_set": self.accuracy_by_set,
            "accuracy_by_modality": self.accuracy_by_modality,
            "accuracy_without": self.accuracy_without,
            "accuracy_missing": self.accuracy_missing,
            "ece": self.ece,
            "ece_uncalibrated": self.ece_uncalibrated,
            "consensus_distance": self.consensus_distance,
            "bytes_sent_per_node": self.bytes_sent,
            "label_bytes_sent_per_node": self.label_bytes_sent,
            "labels": self.labels,
            "own": self.own,
            "noted": self.noted,
            "compute_j": self.compute_j,
            "radio_j": self.radio_j,
            "total_j": self.total_j,
            "battery_quantiles_j": self.battery_quantiles_j,
            "updates_by_modality": self.updates_by_modality,
            "balance": self.balance,
            "network_balance": self.network_balance,
            "simulated_s": self.simulated_s,
            "total_simulated_s": self.total_simulated_s,
            "total_bits": self.total_bits,
            "total_measured_j": self.total_measured_j,
            "failed": {str(k): v for k, v in sorted(self.failed.items())},
            "battery_j": {str(k): v for k, v in sorted(self.battery_j.items())},
            "carried": sorted(map(list, self.carried)) or None,
            "liars": None if self.liars is None else asdict(self.liars),
            "nodes": [_there_only(asdict(n)) | {"balance": n.balance} for n in self.nodes],
        }
        return _there_only(line)


class Tracker(Protocol):
    """Something that wants to know how a run goes: a run folder, a live table, ...."""

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Take note that a method starts on these nodes (``audio+image`` and so on)."""

    def round_ended(self, record: RoundRecord) -> None:
        """Take note of a finished round."""


@runtime_checkable
class Shortened(Protocol):
    """A tracker that wants to know when a run ends before its last round."""

    def run_shortened(self, num_rounds: int) -> None:
        """Take note that the method that runs ends after so many rounds."""
