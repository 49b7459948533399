"""Metrics for Prometheus: their names, and their server. Loads no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import INFO
from typing import TYPE_CHECKING

from .errors import SettingsError
from .libraries import LibraryError, require
from .log import log

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

PREFIX = "flwr_dmml"
OF_THE_RUN = {
    "round": "Complete rounds",
    "rounds": "Rounds that the method is to have",
    "accuracy": "Mean test accuracy of the devices, last evaluated round",
    "min_accuracy": "Test accuracy of the worst device, last evaluated round",
    "loss": "Mean training loss of the devices, last round",
    "round_seconds": "Wall-clock seconds of the last round",
    "failed_devices": "Devices that failed in the last round",
}
OF_DEVICES = {
    "device_accuracy": "Test accuracy, last evaluated round",
    "device_loss": "Training loss, last round",
    "device_battery_joules": "Left in the battery",
    "device_round_seconds": "Simulated seconds of the last round: computing and sending",
    "device_missed_rounds": "Rounds since the device last took part",
}
COUNTED = {
    "joules": "Joules spent by all devices, computed from their profiles",
    "seconds": "Wall-clock seconds of rounds by phase: planning, devices, reading, checkpoint",
    "device_bytes_sent": "Payload bytes sent to neighbours",
    "device_failures": "Rounds in which the device failed",
    "device_rejected": "Letters and blocks of neighbours that did not come or were refused",
}
ON_DEVICES = {
    "device_accuracy": OF_DEVICES["device_accuracy"],
    "device_loss": OF_DEVICES["device_loss"],
    "device_round": "The device's last round",
    "device_rounds": "Rounds that the method is to have",
    "device_message_age_seconds": "Seconds since the last message ended",
    "device_battery_charge": "Share that is left in the board's own battery",
    "device_staleness_rounds": "Rounds since a neighbour's last payload came",
}
COUNTED_ON_DEVICES = {
    "device_failed_messages": "Messages that failed; one may hold several rounds",
    "device_rejected": COUNTED["device_rejected"],
    "device_measured_joules": "Joules by the device's own meter, while it computed",
    "device_seconds": "Seconds of messages by phase: waiting for letters, and work",
    "device_neighbour_received_bytes": "Payload bytes from a neighbour",
    "device_neighbour_sent_bytes": "Payload bytes to a neighbour, device to device",
}
"""Names without the prefix; of those that only grow, Prometheus sees ``NAME_total``."""


@contextmanager
def served(collector: "Collector", host: str, port: int) -> Iterator[None]:
    """Serve what a collector yields at ``http://host:port/metrics`` while the block runs.

    Raises
    ------
    SettingsError
        ``prometheus_client`` is missing, or the port cannot be had.
    """
    try:
        require("prometheus_client")
    except LibraryError as error:
        raise SettingsError(f"metrics-port = {port}: {error}") from error
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        where = f"metrics-host = {host!r}, metrics-port = {port}"
        raise SettingsError(f"{where}: {error.strerror or error}") from error
    log(INFO, "Metrics for Prometheus: http://%s:%s/metrics", host, port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
