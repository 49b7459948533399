"""A device's metrics for Prometheus, while its SuperNode runs."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.facts import FILE, Facts, read_facts
from ..base.machine import battery_charge
from ..base.openmetrics import COUNTED_ON_DEVICES, ON_DEVICES, PREFIX

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

LABELS = "method", "device", "modalities"
BY = {
    "device_staleness_rounds": "neighbour",
    "device_neighbour_received_bytes": "neighbour",
    "device_neighbour_sent_bytes": "neighbour",
    "device_seconds": "phase",
}
"""One more label."""
Values = dict[str, float | None]
"""Values by that label; under "" where there is none."""


class OnDevice:
    """A collector of ``prometheus_client``: what the device's facts say when it is asked.

    Parameters
    ----------
    folder : Path
        Of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def collect(self) -> Iterator["GaugeMetricFamily | CounterMetricFamily"]:
        """Yield all families; those without a value yet are empty."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        facts = read_facts(self._file)
        own = [facts.method, str(facts.partition), facts.modalities]
        told = values_of(facts, time.time()) if facts.method else {}
        for kind, names in (
            (GaugeMetricFamily, ON_DEVICES),
            (CounterMetricFamily, COUNTED_ON_DEVICES),
        ):
            for name, text in names.items():
                more = [BY[name]] if name in BY else []
                family = kind(f"{PREFIX}_{name}", text, labels=[*LABELS, *more])
                for label, value in told.get(name, {}).items():
                    if value is not None:
                        family.add_metric([*own, label] if more else own, value)
                yield family


def values_of(facts: Facts, now_s: float) -> dict[str, Values]:
    """Return the values of each metric by its name without the prefix, and by its label."""

    def by_neighbour(table: dict[int, int]) -> Values:
        return {str(neighbour): float(value) for neighbour, value in table.items()}

    stale = {neighbour: max(facts.round - last, 0) for neighbour, last in facts.heard.items()}
    return {
        "device_accuracy": {"": facts.accuracy},
        "device_loss": {"": facts.loss},
        "device_round": {"": facts.round},
        "device_rounds": {"": facts.rounds},
        "device_message_age_seconds": {"": max(now_s - facts.time_s, 0.0)},
        "device_battery_charge": {"": battery_charge()},
        "device_staleness_rounds": by_neighbour(stale),
        "device_failed_messages": {"": facts.failures},
        "device_rejected": {"": facts.rejected},
        "device_measured_joules": {"": facts.joules},
        "device_seconds": dict(facts.seconds),
        "device_neighbour_received_bytes": by_neighbour(facts.received),
        "device_neighbour_sent_bytes": by_neighbour(facts.sent),
    }
