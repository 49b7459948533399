"""A Flower Grid whose nodes all live in this process: no Ray, no network, no database."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from ..tracking import Tracker
from .grid import SimulationGrid
from .nodes import Hosted, SimulatedNode, host

_POLL_S = 0.005


@dataclass
class _Job:
    """One message being worked on."""

    node: SimulatedNode
    message: Message
    started: float
    thread: threading.Thread
    stalled: bool = False


class InProcessGrid(SimulationGrid):
    """Run any ClientApp's nodes one after another in this process.

    As with real SuperNodes, a node works on one message at a time; when its ClientApp raises, its
    state stays what it was before and the reply carries the error; a reply that comes after the
    deadline can still be pulled later. A node that takes longer than ``stall_s`` no longer keeps
    the others waiting: they go on beside it, in threads of their own. That is said in the log,
    because what draws from torch's global generator then depends on timing.

    Parameters
    ----------
    client_app : ClientApp
        What every node runs.
    num_nodes : int
        Nodes; node i has partition id i.
    run_config : mapping
        The run config that every node sees.
    run_id : int (default: 1)
        Id of the run.
    stall_s : float (default: 60)
        After so many seconds a node is taken for stalled.
    trackers : sequence of Tracker
        Handed to the ServerApp, which tells them of every round.
    on_reply : callable, optional
        Called with the number of replies and of messages in the exchange that is going on.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, object],
        *,
        run_id: int = 1,
        stall_s: float = 60.0,
        trackers: Sequence[Tracker] = (),
        on_reply: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(num_nodes, run_id, trackers, on_reply)
        self._client_app = client_app
        self._hosted = host(client_app, self._nodes.values, run_config)
        self._run_config = dict(run_config)
        self._stall_s = stall_s
        self._inbox: dict[int, list[Message]] = {}  # of the nodes that have any
        self._jobs: dict[int, _Job] = {}  # by node id
        self._lock = threading.Lock()

    @property
    def hosted(self) -> Hosted | None:
        """All devices, to run whole rounds; None of a ClientApp that takes messages only."""
        return self._hosted

    # ---- Flower's interface -----------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Put messages in their nodes' inboxes and return their ids.

        Raises
        ------
        ValueError
            A message is for a node that does not exist.
        """
        if self._hosted:
            self._hosted.settle()
        ids: list[str] = []
        for message in messages:
            ids.append(self._accept(message))
            self._inbox.setdefault(message.metadata.dst_node_id, []).append(message)
        self._work()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there by now; each is returned once."""
        self._work()
        wanted = message_ids if isinstance(message_ids, set) else set(message_ids)
        with self._lock:
            there = [key for key in self._replies if key in wanted]  # a few of very many
            return [self._replies.pop(key) for key in there]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and wait for their replies.

        The nodes work in turn, so ``timeout`` counts for each from when it begins: seconds that it
        waits for others are not its own.
        """
        waiting = set(self.push_messages(messages))
        total, replies = len(waiting), list[Message]()
        while waiting and not self._all_late(waiting, timeout):
            arrived = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if arrived and self._on_reply:
                self._on_reply(len(replies), total)
            if waiting and not arrived:
                self._wait()
        return replies

    def _all_late(self, waiting: set[str], timeout: float | None) -> bool:
        """Return whether all these messages have been worked on for longer than ``timeout``."""
        if timeout is None:
            return False
        now = time.monotonic()
        with self._lock:
            late = {
                job.message.metadata.message_id
                for job in self._jobs.values()
                if now - job.started > timeout
            }
            queued = {
                message.metadata.message_id
                for job in self._jobs.values()
                if now - job.started > timeout
                for message in self._inbox.get(job.node.node_id, ())
            }
            return waiting <= late | queued and not waiting & set(self._replies)

    # ---- the nodes --------------------------------------------------------------------------

    def _work(self) -> None:
        """Start the next message when no healthy job is running."""
        now = time.monotonic()
        with self._lock:
            if any(now - job.started < self._stall_s for job in self._jobs.values()):
                return
            for job in self._jobs.values():
                if not job.stalled:
                    job.stalled = True
                    text = "Node %s takes longer than %g s: the others continue"
                    log(WARNING, text, job.node.partition_id, self._stall_s)
            node_id = next((n for n in self._inbox if n not in self._jobs), None)
            if node_id is None:
                return
            node, message = self._nodes[node_id], self._inbox[node_id].pop(0)
            if not self._inbox[node_id]:
                del self._inbox[node_id]
            thread = threading.Thread(target=self._answer, args=(node, message), daemon=True)
            self._jobs[node.node_id] = _Job(node, message, now, thread)
        thread.start()

    def _wait(self) -> None:
        """Wait a little for a running job."""
        with self._lock:
            threads = [job.thread for job in self._jobs.values()]
        if len(threads) == 1:
            threads[0].join(timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)

    def _answer(self, node: SimulatedNode, message: Message) -> None:
        """Run the ClientApp on one message and file the reply."""
        reply = node.answer(self._client_app, message, self._run.run_id, self._run_config)
        with self._lock:
            self._replies[message.metadata.message_id] = reply
            del self._jobs[node.node_id]
