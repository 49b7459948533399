"""A Flower Grid whose nodes live in long-lived Ray actors, many in each."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from logging import INFO
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import networkx as nx
import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from ..tracking import Tracker
from .cluster import Cluster, connect
from .folders import hold, let_go, new_folder, shared_memory, temporary
from .grid import SimulationGrid
from .nodes import Hosted, HostsDevices
from .placement import links_between, place
from .shard import Shard
from .spread import SpreadDevices
from .worker import REMEMBERED, Worker

UNEVEN = 1.25
"""Nodes move when the busiest worker takes so many times the mean."""
CLOSING_S = 5.0
"""Seconds that workers have to clean up."""
WORTH_S = 0.05
"""... and so many seconds more an exchange: a node that moves has to load its data again."""


class ShardedGrid(SimulationGrid):
    """Run any ClientApp's nodes in ``workers`` processes, each with a shard of the nodes.

    A node stays where it is, with its state, its data and what its ClientApp caches. One call goes
    to each worker and exchange. What arrays hold goes neither through this process nor to a worker
    that has it: see :mod:`~flwr_dmml.engine.wire`. A strategy that looks into an array fetches it.

    Nodes of a worker work one after another; otherwise they behave as SuperNodes do: when a
    ClientApp raises, the node's state stays what it was and the reply carries the error, and a
    reply that comes after the deadline can still be pulled later. A worker that dies is started
    again with its nodes as they were after their last replies, and gets the messages that it has
    not answered; if they kill it again and again, these nodes' replies carry an error.

    The workers start when :meth:`arrange` is called, or with the first message. Use it as a context
    manager: leaving it stops them.

    Parameters
    ----------
    client_app : ClientApp
        What every node runs.
    num_nodes : int
        Nodes; node i has partition id i.
    run_config : mapping
        The run config that every node sees.
    workers : int
        Processes, at least 1; at most one a node is started.
    address : str (default: "")
        An existing Ray cluster, see :func:`~flwr_dmml.engine.cluster.connect`.
    patience_s : float (default: 0)
        See there.
    run_id : int (default: 1)
        Id of the run.
    trackers : sequence of Tracker
        Handed to the ServerApp, which tells them of every round.
    on_reply : callable, optional
        Called with the number of replies and of messages in the exchange that is going on.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, Any],
        *,
        workers: int,
        address: str = "",
        patience_s: float = 0.0,
        run_id: int = 1,
        trackers: Sequence[Tracker] = (),
        on_reply: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(num_nodes, run_id, trackers, on_reply)
        self._size = min(workers, num_nodes)
        self._address, self._patience_s = address, patience_s
        self._app = client_app, dict(run_config)
        self._cluster: Cluster | None = None
        self._held: dict[Path, int] = {}  # folders of the run on this machine
        self._workers: list[Worker] = []
        self._home: dict[int, Worker] = {}  # by node id; empty until the first message
        self._exchanges = 0
        self._devices: SpreadDevices | None = None

    @property
    def hosted(self) -> Hosted | None:
        """All devices, to run whole rounds; None of a ClientApp that takes messages only."""
        if self._devices is None and isinstance(self._app[0], HostsDevices):
            self._devices = SpreadDevices(
                self._app[0], self._nodes.values, self._app[1], lambda: self._workers
            )
        return self._devices

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def arrange(self, graph: nx.Graph, costs: Sequence[float] | None = None) -> None:
        """Start the workers and decide which node each hosts, before the first message.

        Parameters
        ----------
        graph : nx.Graph
            Who exchanges with whom, on partition ids: neighbours are put into the same worker.
        costs : sequence of float, optional
            Work of every node, above 0: it is spread evenly, and again as it is measured. By
            default all nodes are alike.

        Raises
        ------
        EngineError
            Ray cannot be started, or there is no cluster at the address.
        RuntimeError
            The nodes have their places already.
        """
        if self._home:
            raise RuntimeError("the nodes have their places already")
        homes = place(graph, costs or [1.0] * len(graph), self._size)
        self._start()
        self._home = {k: self._workers[homes[n.partition_id]] for k, n in self._nodes.items()}
        for worker in self._workers:
            worker.host(node for k, node in self._nodes.items() if self._home[k] is worker)
        links = graph.number_of_edges()
        text = "%s nodes in %s processes: %s of %s links are between processes"
        log(INFO, text, len(self._nodes), self._size, links_between(graph, homes), links)

    def close(self) -> None:
        """Stop the workers, and Ray if it was started for them."""
        if not self._cluster:
            return
        each = ", ".join(f"{worker.peak_bytes / 1e6:.0f}" for worker in self._workers)
        log(INFO, "Peak memory of the processes, with what they share: %s MB", each)
        if self._devices and self._devices.abroad_bytes:
            log(INFO, "Rows sent between machines: %.1f MB", self._devices.abroad_bytes / 1e6)
        closing = [worker.actor.close.remote() for worker in self._workers]
        try:  # a second Ctrl-C may come while one hangs
            ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S)
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)
            for folder, descriptor in self._held.items():
                let_go(folder, descriptor)
            self._cluster.disconnect()
            self._cluster = None

    @property
    def peak_bytes(self) -> int:
        """Sum of the workers' largest memory so far; what they share is counted for each."""
        return sum(worker.peak_bytes for worker in self._workers)

    @property
    def busy_s(self) -> float:
        """Seconds that nodes' ClientApps have taken so far, summed over the workers."""
        return sum(worker.busy_s for worker in self._workers)

    # ---- Flower's interface -----------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to their nodes' workers and return their ids.

        Raises
        ------
        ValueError
            A message is for a node that does not exist.
        """
        pushed = list(messages)
        ids = [self._accept(message) for message in pushed]
        if not self._home:
            self.arrange(nx.empty_graph(len(self._nodes)))
        self._rebalance()
        for worker in self._workers:
            own = [m for m in pushed if self._home[m.metadata.dst_node_id] is worker]
            if own:
                worker.send(own)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there by now; each is returned once."""
        while self._receive(timeout=0):
            pass
        return [self._replies.pop(key) for key in list(message_ids) if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and wait for their replies, ``timeout`` seconds at most.

        Nodes of a worker answer in turn: give the last one time for all. The replies are in the
        order of the messages, so that sums over them do not depend on timing.
        """
        asked, started = self.push_messages(messages), time.monotonic()
        there, before = 0, 0
        while there < len(asked):
            left = None if timeout is None else max(0.0, started + timeout - time.monotonic())
            if not self._receive(timeout=left) or left == 0:
                break
            there, before = sum(key in self._replies for key in asked), there
            if there > before and self._on_reply:
                self._on_reply(there, len(asked))
        return [self._replies.pop(key) for key in asked if key in self._replies]

    # ---- the workers ------------------------------------------------------------------------

    def _start(self) -> None:
        self._cluster = connect(self._address, self._size, self._patience_s)
        client_app, run_config = self._app
        pickled: bytes = ray.cloudpickle.dumps(client_app)  # type: ignore[no-untyped-call]
        folders = new_folder(temporary()), new_folder(shared_memory())
        for folder in folders:
            self._held[folder] = hold(folder)
        given = pickled, list(sys.path), self._run.run_id, run_config, *map(str, folders)
        actor = ray.remote(Shard).options(
            num_cpus=self._cluster.cpus_per_worker,
            num_gpus=self._cluster.gpus_per_worker,
            scheduling_strategy="SPREAD",
        )
        numbers = count()
        self._workers = [
            Worker(lambda n: actor.remote(n, *given), numbers) for _ in range(self._size)
        ]

    def _receive(self, *, timeout: float | None) -> bool:
        """Wait for a worker's replies; return whether any have come."""
        busy = {worker.batches[0].stream: worker for worker in self._workers if worker.batches}
        if not busy:
            return False
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
        for stream in ready:
            for reply in busy[stream].receive():
                self._replies[reply.metadata.reply_to_message_id] = reply
        return bool(ready)

    def _rebalance(self) -> None:
        """Now and then, move nodes from the busiest worker to the idlest, if that is worth it."""
        if self._devices and self._devices.going_on:
            return
        self._exchanges += 1
        if self._exchanges % REMEMBERED or any(worker.batches for worker in self._workers):
            return
        took = [worker.seconds() for worker in self._workers]
        load = [sum(seconds.values()) for seconds in took]
        most, mean = max(load), fmean(load)
        if most < UNEVEN * mean or most - mean < WORTH_S:
            return
        busy, idle = load.index(most), load.index(min(load))
        busiest, idlest = self._workers[busy], self._workers[idle]
        moved, excess = list[int](), (most - load[idle]) / 2
        for node_id, seconds in sorted(took[busy].items(), key=lambda item: -item[1]):
            if seconds / 2 < excess:  # the two come nearer
                moved.append(node_id)
                excess -= seconds
        if not moved:
            return
        nodes, snapshots = busiest.dismiss(moved)
        idlest.host(nodes, snapshots)
        self._home |= dict.fromkeys(moved, idlest)
        text = "The busiest worker takes %.1f times the mean: %s of its nodes move to the idlest"
        log(INFO, text, most / mean, len(moved))
