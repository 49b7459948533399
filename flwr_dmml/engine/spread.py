"""The devices of all workers of the sharded engine, whose rounds run without a message for each."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import INFO
from typing import Any

import ray
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from ray.exceptions import RayError, RayTaskError

from ..base.files import WriteError
from ..clients.hosted import Left, Reply
from ..clients.shares import SAME, Order, Report, RowsLostError
from ..learning.rows import Layout, layouts
from ..payload.plan import Plan
from ..transport.arrays import NumpyArray, record_of
from .errors import EngineError
from .nodes import SimulatedNode, host
from .worker import DIED, MOST_DEATHS, Worker, died_too_often, nothing


class SpreadDevices:
    """All devices of a run, a share of them in each worker.

    Rows of one machine's devices lie in its shared memory. What else devices publish goes from one
    worker to another in one object a round.

    Parameters
    ----------
    client_app : ClientApp
        That hosts devices.
    nodes : callable
        Returns all nodes.
    run_config : mapping
        The run config.
    workers : callable
        Returns the workers, with their nodes in their places.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Callable[[], Iterable[SimulatedNode]],
        run_config: Mapping[str, Any],
        workers: Callable[[], list[Worker]],
    ) -> None:
        self._alike = host(client_app, nodes, run_config)  # says which methods are taken
        self._workers_of, self._workers = workers, list[Worker]()
        self._method, self._divisions, self._rounds = "", 0, 0
        self._every: list[Layout] = []
        self._home: dict[int, int] = {}  # worker by partition id
        self._machines: list[str] = []  # of each worker
        self.abroad_bytes = 0
        """Bytes of rows that have gone from one machine to another so far."""
        self._weights: dict[int, Any] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._published: list[Any] = []  # ObjectRefs, a worker each
        self._kept: list[Any] = []
        self._loaded: list[dict[int, Any]] = []  # of a resumed run, until its first round has ended
        self._sound, self._closed = True, False

    def takes(self, method: str) -> bool:
        """Return whether rounds of a method can be run so; those of another one are over now.

        Devices on GPUs cannot: rows are shared in a machine's own memory.
        """
        if method != self._method:
            self._end()
        if self._alike is None or not self._alike.takes(method):
            return False
        self._workers = self._workers_of()
        return all(self._asked(lambda k: self._workers[k].actor.on_cpu.remote()))

    @property
    def going_on(self) -> bool:
        """Whether rounds of a method are being run so: devices have to stay where they are."""
        return bool(self._method)

    def _end(self) -> None:
        self._method = ""
        for worker in self._workers:
            worker.on_restart = nothing

    def run(
        self,
        method: str,
        plans: Mapping[int, Plan],
        initial: Mapping[int, ArrayRecord],
        told: Callable[[int], None],
    ) -> dict[int, Reply]:
        """Run a round of the devices that have a plan; see :class:`.HostedDevices`."""
        self._begin(method)
        orders = [self._order(k, plans, initial) for k in range(len(self._workers))]
        come = self._published
        pending: dict[Any, int] = {}
        results: list[tuple[Any, Any, Any] | None] = [None] * len(orders)
        deaths = [0] * len(orders)
        for k in range(len(orders)):
            self._send(k, orders, come, pending, results)
        replies: dict[int, Reply] = {}
        sound = True
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            k = pending.pop(ready)
            try:
                report: Report = ray.get(ready)
            except DIED as error:
                deaths[k] += 1
                lost = deaths[k] > MOST_DEATHS
                self._workers[k].restart(error)
                if lost:
                    replies |= _given_up(orders[k].plans, error)
                    orders[k] = replace(orders[k], plans={})
                else:
                    orders[k] = self._order(k, plans, initial)
                self._send(k, orders, come, pending, results)
                continue
            sound = sound and report.sound
            self.abroad_bytes += report.abroad_bytes
            worker = self._workers[k]
            worker.peak_bytes = max(worker.peak_bytes, report.peak_bytes)
            worker.busy_s += report.seconds
            replies |= {p: self._whole(p, reply) for p, reply in report.replies.items()}
            told(len(report.replies))
        self._published = [result[1] for result in results if result]
        self._kept = [result[2] for result in results if result]
        self._rounds, self._sound, self._loaded = self._rounds + 1, sound, []
        self._closed = not any(plan.iterations for plan in plans.values())
        for worker in self._workers:
            worker.settled.clear()
        return dict(sorted(replies.items()))

    def _send(
        self,
        k: int,
        orders: list[Order],
        come: list[Any],
        pending: dict[Any, int],
        results: list[tuple[Any, Any, Any] | None],
    ) -> None:
        others = [ref for n, ref in enumerate(come) if n != k]
        refs = self._workers[k].actor.run.options(num_returns=3).remote(orders[k], *others)
        results[k] = tuple(refs)
        pending[refs[0]] = k

    def _order(
        self, k: int, plans: Mapping[int, Plan], initial: Mapping[int, ArrayRecord]
    ) -> Order:
        """Return a worker's order; it is sent weights once, as long as they stay the same."""
        own: dict[int, Plan] = {}
        for p, plan in plans.items():
            if self._home[p] != k:
                continue
            same = self._weights.get(p) is plan.weights
            own[p] = replace(plan, weights=SAME) if same else plan
            self._weights[p] = plan.weights
        numbers = {p: _numbers(initial[p]) for p in initial if self._home[p] == k}
        return Order(self._method, own, numbers, self._sound)

    def _whole(self, p: int, reply: Reply) -> Reply:
        if reply.entries is None:
            return replace(reply, entries=self._entries[p])
        if reply.entries:
            self._entries[p] = reply.entries
        return reply

    # ---- rows -------------------------------------------------------------------------------

    def _begin(self, method: str) -> None:
        """Give all devices their rows, where they have none for this method."""
        workers = self._workers_of()
        homes = {n.partition_id: k for k, w in enumerate(workers) for n in w.nodes.values()}
        if method == self._method and homes == self._home:
            return
        self._method, self._workers, self._home = method, workers, homes
        for k, worker in enumerate(workers):
            worker.on_restart = partial(self._enter_again, k)
        self._divisions += 1
        self._rounds, self._sound, self._closed = 0, True, False
        self._weights, self._entries = {}, {}
        self._published, self._kept, self._loaded = [], [], []
        self._every = []
        found: dict[int, Any] = {}
        self._machines = []
        for machine, some in self._asked(lambda k: workers[k].actor.begin.remote(method)):
            self._machines.append(machine)
            found |= some
        order = [p for k in range(len(workers)) for p in sorted(found) if homes[p] == k]
        self._every = every = layouts(found, order)  # who dies from here on begins again
        with _explained(every):
            self._asked(lambda k: workers[k].actor.enter.remote(*self._division(k, every)))
        if len(set(self._machines)) > 1:
            text = "Devices are on %s machines; rows that neighbours need travel once a round"
            log(INFO, text, len(set(self._machines)))

    def _asked(self, ask: Callable[[int], Any]) -> list[Any]:
        """Return what all workers answer; one that dies is started again, and asked again."""
        asked = [ask(k) for k in range(len(self._workers))]
        return [self._answer(k, first, ask) for k, first in enumerate(asked)]

    def _answer(self, k: int, asked: Any, ask: Callable[[int], Any]) -> Any:
        for deaths in range(MOST_DEATHS + 1):
            try:
                return ray.get(asked)
            except DIED as error:
                if deaths == MOST_DEATHS:
                    raise died_too_often(error) from error
                self._workers[k].restart(error)
                asked = ask(k)

    def _division(self, k: int, every: list[Layout]) -> tuple[int, list[Layout], frozenset[int]]:
        """Return what a worker has to know of the others."""
        here = self._machines[k]
        abroad = frozenset(p for p, w in self._home.items() if self._machines[w] != here)
        return self._divisions, every, abroad

    def _enter_again(self, k: int) -> None:
        """Give a worker that has been started again its devices' rows, as after the last round.

        Raises
        ------
        EngineError
            They are lost.
        """
        worker = self._workers[k]
        for p in [p for p, home in self._home.items() if home == k]:
            self._weights.pop(p, None)  # it has heard of none
        if not self._every:  # nobody has rows yet
            return
        here, _ = ray.get(worker.actor.begin.remote(self._method))
        if here != self._machines[k]:
            raise _lost("a worker that died was started again on another machine")
        with _explained(self._every):
            ray.get(worker.actor.enter.remote(*self._division(k, self._every), self._left(k)))
        if self._loaded:
            ray.get(worker.actor.load.remote(self._method, self._loaded[k]))

    def _left(self, k: int) -> Left | None:
        """Return what a worker that has died has left; None before the first round."""
        if not self._rounds:
            return None
        try:
            kept = ray.get(self._kept[k])
        except RayError as error:
            raise _lost(str(error).strip().splitlines()[-1]) from error
        nodes, settled = self._workers[k].nodes, self._workers[k].settled
        newer = frozenset(nodes[node_id].partition_id for node_id in settled)
        return Left(self._rounds, kept, self._closed, newer)

    # ---- states and payloads ----------------------------------------------------------------

    def settle(self) -> None:
        """Do nothing: every worker does so before a message."""

    def payloads(self) -> dict[int, ArrayRecord]:
        """Return what the devices published in the last round, by partition id."""
        found: dict[int, ArrayRecord] = {}
        for some in self._asked(lambda k: self._workers[k].actor.payloads.remote()):
            found |= {
                p: record_of({k: NumpyArray(v) for k, v in own.items()}) for p, own in some.items()
            }
        return dict(sorted(found.items()))

    def load_payloads(self, method: str, payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from payloads of an earlier time, when the nodes' states have been restored."""
        self._begin(method)
        own: list[dict[int, Any]] = [{} for _ in self._workers]
        for p, record in payloads.items():
            own[self._home[p]][p] = _numbers(record)
        self._loaded = own
        self._published = self._asked(lambda k: self._workers[k].actor.load.remote(method, own[k]))


@contextmanager
def _explained(every: Iterable[Layout]) -> Iterator[None]:
    """Say what is wrong if these rows have no room in a machine's shared memory, or have gone.

    Raises
    ------
    EngineError
        One or the other.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RowsLostError):
            raise _lost(str(error.cause)) from error
        if not isinstance(error.cause, WriteError):
            raise
        size = sum(2 * 4 * len(alike.partitions) * alike.width for alike in every)
        raise EngineError(
            f"{error.cause}; the devices' rows need {size / 1e6:.1f} MB there (more room in a "
            "container: docker run --shm-size=2g), or run in one process (workers = 0)"
        ) from error


def _lost(why: str) -> EngineError:
    return EngineError(
        f"the devices' rows are lost: {why}; resume the run from its last checkpoint"
    )


def _given_up(plans: Mapping[int, Plan], error: Exception) -> dict[int, Reply]:
    reason = f"its worker died {MOST_DEATHS + 1} times in this round: {error}"
    return {p: Reply(error=reason) for p in plans}


def _numbers(record: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}
