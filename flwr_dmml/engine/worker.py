"""The sharded engine's handle of a worker: its pending messages, and how to restart it."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from logging import WARNING
from statistics import median
from typing import Any

import ray
from flwr.app import Array, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from .errors import EngineError
from .identity import SERVER_NODE_ID
from .nodes import SimulatedNode
from .shard import CHUNKS, Answers
from .wire import Chunk, Description, RemoteArray, read, write

DIED = RayActorError, OutOfMemoryError
"""What Ray raises of a worker that has died; the latter where its memory monitor has killed it."""
MOST_DEATHS = 2
"""So often a worker may die over a batch of messages; then its nodes are taken to have failed.

Likewise over a round, or while it is started again; the latter ends the run.
"""
REMEMBERED = 5
"""Working times that are remembered of a node; their median is what it takes."""


def nothing() -> None:
    """Do nothing."""


@dataclass
class Snapshot:
    """A node's state after a reply, unread, written with those of others that replied then."""

    chunk: Chunk
    states: bytes


@dataclass
class Batch:
    """Messages that a worker was sent at once."""

    unanswered: dict[str, Message]  # by message id, in order
    stream: Any = None  # ObjectRefGenerator of Buffers and Answers in turn
    deaths: int = 0


@dataclass
class Worker:
    """One worker, from outside.

    Parameters
    ----------
    start : callable
        Starts an actor with a number that no other has: ``start(number)``.
    numbers : iterator of int
        Such numbers.
    """

    start: Callable[[int], Any]
    numbers: "count[int]"
    nodes: dict[int, SimulatedNode] = field(default_factory=dict)
    """The hosted nodes, by node id; only their ids and configs are known here."""
    peak_bytes: int = 0
    busy_s: float = 0.0
    """Seconds that all ClientApps here have taken."""
    batches: deque[Batch] = field(default_factory=deque)
    settled: set[int] = field(default_factory=set)
    """Nodes that have replied to a message since the last round without messages."""
    on_restart: Callable[[], None] = nothing
    """Called when the worker has been started again and has its nodes."""

    def __post_init__(self) -> None:
        self.number = next(self.numbers)
        self.actor = self.start(self.number)
        self._unused: deque[int] = deque()  # chunks; filled by the garbage collector
        self._snapshots: dict[int, Snapshot] = {}
        self._times: dict[int, deque[float]] = {}  # by node id, of the last messages

    def seconds(self) -> dict[int, float]:
        """Return what the ClientApp takes on each node: the median of the last messages."""
        return {node_id: median(times) for node_id, times in self._times.items()}

    # ---- hosting ----------------------------------------------------------------------------

    def host(
        self, nodes: Iterable[SimulatedNode], snapshots: Mapping[int, Snapshot] | None = None
    ) -> Any:
        """Host nodes as their snapshots say; one that has none starts afresh.

        Returns what Ray gives for the call: it fails where a snapshot is lost.
        """
        added = {node.node_id: node for node in nodes}
        self.nodes |= added
        self._snapshots |= snapshots or {}
        known = {n: s for n, s in self._snapshots.items() if n in added}
        written = {id(s.states): s for s in known.values()}
        states = [
            (s.states, [n for n, own in known.items() if own.states is s.states])
            for s in written.values()
        ]
        refs = {s.chunk.number: s.chunk.ref for s in known.values()}
        return self.actor.take.remote(list(added.values()), states, refs)

    def restart(self, error: Exception) -> None:
        """Start the worker again after it has died, with its nodes as their snapshots say.

        A snapshot that is lost with its machine leaves a node that starts afresh.

        Raises
        ------
        EngineError
            It dies again and again while it is started.
        """
        for _ in range(MOST_DEATHS + 1):
            why = str(error).strip().splitlines()[0]
            text = "A worker died (%s); it is started again, its %s nodes as after their last reply"
            log(WARNING, text, why, len(self.nodes))
            self.number = next(self.numbers)
            self.actor = self.start(self.number)
            try:
                self._host_again()
                self.on_restart()
                return
            except DIED as again:
                error = again
        raise died_too_often(error)

    def _host_again(self) -> None:
        try:
            ray.get(self.host(list(self.nodes.values())))
        except DIED:
            raise
        except RayError as lost:
            text = "The states of these nodes are lost with the machine that held them: %s"
            log(WARNING, text, str(lost).strip().splitlines()[-1])
            self._snapshots.clear()

    def dismiss(self, node_ids: Iterable[int]) -> tuple[list[SimulatedNode], dict[int, Snapshot]]:
        """Host these nodes no longer; return them with their snapshots."""
        gone = list(node_ids)
        self.actor.leave.remote(gone)
        for node_id in gone:
            self._times.pop(node_id, None)
        snapshots = {n: self._snapshots.pop(n) for n in gone if n in self._snapshots}
        return [self.nodes.pop(n) for n in gone], snapshots

    # ---- messages ---------------------------------------------------------------------------

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages to nodes that are hosted here."""
        self._ask(Batch({message.metadata.message_id: message for message in messages}))

    def receive(self) -> list[Message]:
        """Wait for the next replies and return them; those of a worker that fails say so."""
        batch = self.batches[0]
        try:
            chunk_ref, answers_ref = next(batch.stream), next(batch.stream, None)
            answers: Answers = ray.get(chunk_ref if answers_ref is None else answers_ref)
        except DIED as error:
            return self._revive(error)
        chunk = Chunk(answers.chunk, chunk_ref, self._unused.append)
        snapshot = Snapshot(chunk, answers.states)
        self._snapshots |= dict.fromkeys(answers.seconds, snapshot)
        self.settled |= answers.seconds.keys()
        for node_id, seconds in answers.seconds.items():
            self._times.setdefault(node_id, deque(maxlen=REMEMBERED)).append(seconds)
        self.busy_s += sum(answers.seconds.values())
        self.peak_bytes = max(self.peak_bytes, answers.peak_bytes)
        replies: list[Message] = read(answers.replies, lambda d: RemoteArray(d, chunk))
        for reply in replies:
            del batch.unanswered[reply.metadata.reply_to_message_id]
        if not answers.more:
            self.batches.popleft()
        return replies

    def _ask(self, batch: Batch) -> None:
        refs: dict[int, Any] = {}

        def describe(array: Array) -> Description | None:
            if not isinstance(array, RemoteArray):
                return None
            if array.description.chunk // CHUNKS != self.number:
                refs[array.description.chunk] = array.chunk.ref
            return array.description

        messages = write(list(batch.unanswered.values()), describe)
        unused = [self._unused.popleft() for _ in range(len(self._unused))]
        batch.stream = self.actor.work.options(num_returns="streaming").remote(
            messages, refs, unused
        )
        self.batches.append(batch)

    def _revive(self, error: Exception) -> list[Message]:
        """Start the worker again with its nodes and ask again; return replies of those given up."""
        waiting = list(self.batches)
        self.restart(error)
        self.batches.clear()
        waiting[0].deaths += 1
        given_up = waiting.pop(0) if waiting[0].deaths > MOST_DEATHS else Batch({})
        for batch in waiting:
            self._ask(batch)
        reason = f"its worker died {MOST_DEATHS + 1} times over these messages: {error}"
        return [_failure(message, reason) for message in given_up.unanswered.values()]


def died_too_often(error: Exception) -> EngineError:
    """Return the error of a worker that cannot be kept alive."""
    why = str(error).strip().splitlines()[0]
    return EngineError(
        f"a worker died {MOST_DEATHS + 1} times in a row ({why}): it may lack memory; resume the "
        "run with fewer workers, or in one process (workers = 0)"
    )


def _failure(message: Message, reason: str) -> Message:
    reply = Message(Error(code=ErrorCode.CLIENT_APP_CRASHED, reason=reason), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
    reply.metadata.__dict__["_dst_node_id"] = SERVER_NODE_ID
    return reply
