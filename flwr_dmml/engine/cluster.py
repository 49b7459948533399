"""Connecting to Ray: a cluster of one's own on this machine, an existing one, or the one in use."""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
import torch

from ..base.stopping import handlers_kept
from . import local_ray
from .errors import EngineError

REACH_S = 5.0
"""Seconds that a cluster may take to accept a connection."""


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray, and what a worker may take of it."""

    cpus_per_worker: float
    gpus_per_worker: float
    disconnect: Callable[[], None]


def connect(address: str, workers: int, patience_s: float = 0.0) -> Cluster:
    """Connect this process to Ray.

    Where it is connected already, as within Flower's own simulation, that is used and left as it
    is; its CPUs may all be spoken for, so that workers ask for none.

    Parameters
    ----------
    address : str
        An existing cluster: "auto" (that of ``ray start`` on this machine) or ``host:port``. Empty
        starts one on this machine, on loopback, without a dashboard, which ends with the run, or
        takes the one of :func:`~.local_ray.ahead`.
    workers : int
        Workers to come; they share the GPUs.
    patience_s : float (default: 0)
        Seconds to wait for others in this process to connect first, as Flower's simulation does
        beside the ServerApp.

    Raises
    ------
    EngineError
        There is no cluster at ``address``, or it has fewer CPUs than there are to be workers.
    """
    with handlers_kept():
        return _connected(address, workers, patience_s)


def _connected(address: str, workers: int, patience_s: float) -> Cluster:
    local_ray.settle()
    if not address and local_ray.take(workers):
        return _own(workers)
    if others_ray(patience_s):
        return Cluster(0, _share(_of_cluster("GPU"), workers), lambda: None)
    if not address:
        local_ray.start(workers)
        return _own(workers)
    try:
        _reach(address)
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(f"no Ray cluster at {address}: {error}") from error
    if (cpus := int(_of_cluster("CPU"))) < workers:  # Ray would wait for more, without a word
        ray.shutdown()
        raise EngineError(
            f"the Ray cluster at {address} has {cpus} CPUs for {workers} workers: set workers = "
            f"{cpus}, or fewer"
        )
    return Cluster(1, _share(_of_cluster("GPU"), workers), ray.shutdown)


def others_ray(patience_s: float) -> bool:
    """Wait for others in this process to connect to Ray; return whether they have."""
    deadline = time.monotonic() + patience_s
    while not ray.is_initialized() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(ray.is_initialized())


def _own(workers: int) -> Cluster:
    return Cluster(1, _share(torch.cuda.device_count(), workers), local_ray.stop)


def _reach(address: str) -> None:
    """Try an address ``host:port`` first: Ray itself tries for minutes.

    Raises
    ------
    OSError, ValueError
        Nobody listens there, or it is no such address.
    """
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _of_cluster(resource: str) -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(resource, 0.0)


def _share(gpus: float, workers: int) -> float:
    return min(1.0, gpus / workers)
