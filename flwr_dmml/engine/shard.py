"""A worker of the sharded engine: some of the nodes, with all they keep, in one process."""

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from flwr.app import Array, Message, RecordDict
from flwr.clientapp import ClientApp

from ..base.heap import keep_freed_memory
from ..clients.hosted import HostedDevices, Left
from ..clients.shares import Order, Publications, Report, Share
from ..data.store import FOLDER
from ..learning.rows import Columns, Layout
from .folders import hold, let_go
from .nodes import SimulatedNode, host
from .wire import Buffers, Export, find_in, read, write

FLUSH_S = 0.5
"""A worker hands over what it has after so many seconds: progress, and less to lose."""

CHUNKS = 2**32
"""More than a worker exports in its life: a worker's chunks are numbered from this times its own
number."""


@dataclass(frozen=True)
class Answers:
    """Replies of a worker's nodes, and what these keep, as written by :func:`~.wire.write`."""

    chunk: int
    replies: bytes  # list[Message]
    states: bytes  # dict[int, RecordDict], by node id
    seconds: dict[int, float]  # by node id, what the ClientApp took
    peak_bytes: int  # of the worker's memory, so far
    more: bool  # whether others of the same batch follow


class Shard:
    """Run in a Ray actor. Nodes work one after another; nothing of theirs leaves unless asked for.

    Parameters
    ----------
    number : int
        No other worker of the run, past or present, has the same.
    client_app : bytes
        The pickled ClientApp.
    path : sequence of str
        Where to look for the app's modules.
    run_id : int
        Id of the run.
    run_config : mapping
        The run config that every node sees.
    store : str
        Folder in which the workers of a machine share the data sets that they load.
    memory : str
        Folder in its memory in which they share the devices' rows.
    """

    def __init__(
        self,
        number: int,
        client_app: bytes,
        path: Sequence[str],
        run_id: int,
        run_config: Mapping[str, Any],
        store: str,
        memory: str,
    ) -> None:
        sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
        os.environ[FOLDER] = store
        self._memory = Path(memory)
        self._held = {folder: hold(folder) for folder in (Path(store), self._memory)}
        torch.set_num_threads(1)
        self._client_app: ClientApp = ray.cloudpickle.loads(client_app)
        gc.freeze()  # what is imported stays: to look through it for garbage takes a round's time
        self._run_id, self._run_config = run_id, dict(run_config)
        self._next_chunk, self._settled = number * CHUNKS, False
        self._nodes: dict[int, SimulatedNode] = {}
        self._chunks: dict[int, list[Array]] = {}
        self._share: Share | None = None

    def close(self) -> None:
        """Remove what the workers of this machine share in files, and in memory."""
        for folder, descriptor in self._held.items():
            let_go(folder, descriptor)

    def take(
        self,
        nodes: Sequence[SimulatedNode],
        states: Sequence[tuple[bytes, Sequence[int]]],
        refs: Mapping[int, Any],
    ) -> None:
        """Host nodes.

        Parameters
        ----------
        nodes : sequence of SimulatedNode
            Without anything in their states.
        states : sequence of (bytes, sequence of int)
            Written states, and which nodes' are wanted of them.
        refs : mapping of int to ObjectRef
            The chunks that they need.
        """
        self._nodes |= {node.node_id: node for node in nodes}
        find = find_in(self._chunks, _fetcher(refs))
        for written, wanted in states:
            kept: dict[int, RecordDict] = read(written, find)
            for node_id in wanted:
                self._nodes[node_id].state = kept[node_id]

    def leave(self, node_ids: Sequence[int]) -> None:
        """Host these nodes no longer."""
        for node_id in node_ids:
            del self._nodes[node_id]

    def work(
        self, messages: bytes, refs: Mapping[int, Any], unused: Sequence[int]
    ) -> Iterator[Buffers | Answers]:
        """Answer messages, in order; yield in turn a chunk and the answers that lie in it.

        Parameters
        ----------
        messages : bytes
            A list of messages, written.
        refs : mapping of int to ObjectRef
            The chunks that they need of other workers.
        unused : sequence of int
            Chunks of this worker that nobody asks for any more.
        """
        if self._share:
            self._share.devices.settle()
        for number in unused:
            self._chunks.pop(number, None)
        batch: list[Message] = read(messages, find_in(self._chunks, _fetcher(refs)))
        replies, seconds, flushed = list[Message](), dict[int, float](), time.monotonic()
        asked = [(self._nodes[message.metadata.dst_node_id], message) for message in batch]
        left, begun = len(asked), time.perf_counter()
        for node, message in asked:
            replies.append(node.answer(self._client_app, message, self._run_id, self._run_config))
            seconds[node.node_id] = time.perf_counter() - begun
            left, begun = left - 1, time.perf_counter()
            if not left or time.monotonic() - flushed > FLUSH_S:
                yield from self._hand_over(replies, seconds, more=left > 0)
                replies, seconds, flushed = [], {}, time.monotonic()
        if not self._settled:
            gc.freeze()  # so do data, models, and what was imported for them
            keep_freed_memory()
            self._settled = True

    # ---- rounds without messages ------------------------------------------------------------

    def on_cpu(self) -> bool:
        """See :meth:`.HostedDevices.on_cpu`."""
        return self._hosted().on_cpu()

    def begin(self, method: str) -> tuple[str, dict[int, tuple[Columns, int]]]:
        """See :meth:`.Share.begin`."""
        if self._share is None:
            self._share = Share(self._hosted(), self._memory)
        return self._share.begin(method)

    def _hosted(self) -> HostedDevices:
        devices = host(self._client_app, self._nodes.values, self._run_config)
        assert isinstance(devices, HostedDevices)
        return devices

    def enter(
        self,
        number: int,
        every: Sequence[Layout],
        abroad: frozenset[int],
        left: Left | None = None,
    ) -> None:
        """See :meth:`.Share.enter`."""
        self._of_round.enter(number, every, abroad, left)

    def run(self, order: Order, *come: Publications) -> tuple[Report, Publications, dict[str, Any]]:
        """See :meth:`.Share.run`."""
        return self._of_round.run(order, *come)

    def load(self, method: str, payloads: Mapping[int, dict[str, Any]]) -> Publications:
        """See :meth:`.Share.load`."""
        return self._of_round.load(method, payloads)

    def payloads(self) -> dict[int, dict[str, Any]]:
        """See :meth:`.Share.payloads`."""
        return self._of_round.payloads()

    @property
    def _of_round(self) -> Share:
        assert self._share is not None
        return self._share

    def _hand_over(
        self, replies: list[Message], seconds: dict[int, float], *, more: bool
    ) -> Iterator[Buffers | Answers]:
        export = Export(self._next_chunk)
        self._next_chunk += 1
        states = {node_id: self._nodes[node_id].state for node_id in seconds}
        written = write(replies, export.describe), write(states, export.describe)
        self._chunks[export.number] = export.arrays
        yield export.buffers()
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Answers(export.number, *written, seconds, kilobytes * 1024, more)


def _fetcher(refs: Mapping[int, Any]) -> Callable[[int], Buffers]:
    """Return what reads chunks of other workers, each once."""
    fetched: dict[int, Buffers] = {}

    def fetch(number: int) -> Buffers:
        if number not in fetched:
            fetched[number] = ray.get(refs[number])
        return fetched[number]

    return fetch
