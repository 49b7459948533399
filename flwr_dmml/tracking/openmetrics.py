"""A run's metrics for Prometheus, as OpenMetrics text over HTTP, while the run goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..base.openmetrics import COUNTED, OF_DEVICES, OF_THE_RUN, PREFIX, served
from .records import NodeResult, RoundRecord

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class Exposed:
    """What Prometheus reads: the last round, and sums over the rounds since the process began.

    A tracker (:class:`~.records.Tracker`) and a collector of ``prometheus_client``.
    """

    def __init__(self) -> None:
        self.run_started("", 0, ())

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Begin a method: the numbers of the one before are gone."""
        self._method, self._rounds = method, num_rounds
        self._modalities = list(node_modalities)
        self._last: RoundRecord | None = None
        self._evaluated: RoundRecord | None = None
        self._sums: dict[tuple[str, int], float] = {}
        self._seconds: dict[str, float] = {}  # by phase
        self._heard: dict[int, int] = {}  # a device's last round

    def run_shortened(self, num_rounds: int) -> None:
        """Take note that the method ends early."""
        self._rounds = num_rounds

    def round_ended(self, record: RoundRecord) -> None:
        """Show this round from now on."""
        for node in record.nodes:
            self._add("device_bytes_sent", node.partition, node.bytes_sent)
            self._add("device_rejected", node.partition, node.rejected)
            self._heard[node.partition] = record.round
        for phase, seconds in record.phases.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        for partition in record.failed:
            self._add("device_failures", partition, 1)
        if record.accuracy is not None:
            self._evaluated = record
        self._last = record

    def _add(self, name: str, partition: int, value: float) -> None:
        key = name, partition
        self._sums[key] = self._sums.get(key, 0.0) + value

    def collect(self) -> Iterator["GaugeMetricFamily | CounterMetricFamily"]:
        """Yield all families; those without a value yet are empty."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["method", "device", "modalities"]
        for name, value in self._of_the_run().items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", OF_THE_RUN[name], labels=labels[:1])
            if value is not None:
                gauge.add_metric([self._method], value)
            yield gauge
        for name, text in OF_DEVICES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
            for partition, value in self._of_devices(name).items():
                gauge.add_metric(self._labels(partition), value)
            yield gauge
        for name, text in COUNTED.items():
            own = {"joules": [], "seconds": ["phase"]}.get(name, labels[1:])
            counter = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels[:1] + own)
            if name == "joules" and self._last is not None:
                counter.add_metric([self._method], self._last.total_j)
            for phase, seconds in self._seconds.items() if name == "seconds" else ():
                counter.add_metric([self._method, phase], seconds)
            for (summed, partition), value in self._sums.items():
                if summed == name:
                    counter.add_metric(self._labels(partition), value)
            yield counter

    def _of_the_run(self) -> dict[str, float | None]:
        last, evaluated = self._last, self._evaluated
        losses = [n.train_loss for n in last.nodes if n.train_loss is not None] if last else []
        return {
            "round": float(last.round) if last else 0.0,
            "rounds": float(self._rounds),
            "accuracy": evaluated.accuracy if evaluated else None,
            "min_accuracy": evaluated.min_accuracy if evaluated else None,
            "loss": sum(losses) / len(losses) if losses else None,
            "round_seconds": last.seconds if last else None,
            "failed_devices": float(len(last.failed)) if last else None,
        }

    def _of_devices(self, name: str) -> dict[int, float]:
        if self._last is None:
            return {}
        if name == "device_battery_joules":
            return self._last.battery_j
        if name == "device_missed_rounds":
            return {p: float(self._last.round - last) for p, last in self._heard.items()}
        record = self._evaluated if name == "device_accuracy" else self._last
        found = {n.partition: _value(n, name) for n in record.nodes} if record else {}
        return {partition: value for partition, value in found.items() if value is not None}

    def _labels(self, partition: int) -> list[str]:
        modalities = self._modalities[partition] if partition < len(self._modalities) else ""
        return [self._method, str(partition), modalities]


def _value(node: NodeResult, name: str) -> float | None:
    if name == "device_accuracy":
        return node.accuracy
    return node.train_loss if name == "device_loss" else node.simulated_s


@contextmanager
def exposed(host: str, port: int) -> Iterator[list[Exposed]]:
    """Serve a run's metrics at ``http://host:port/metrics`` while the block runs.

    Yields the tracker that they come from, in a list; an empty one where ``port`` is 0.

    Raises
    ------
    SettingsError
        ``prometheus_client`` is missing, or the port cannot be had.
    """
    if not port:
        yield []
        return
    tracker = Exposed()
    with served(tracker, host, port):
        yield [tracker]
