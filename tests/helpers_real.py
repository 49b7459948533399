"""Devices that are real but for their processes: threads of this one, with letters over Zenoh."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from flwr_dmml.engine.nodes import SimulatedNode
from flwr_dmml.fleet.local import free_port


class ThreadedGrid(Grid):
    """A grid that is not of this package: each device works on its messages in a thread.

    ``offline`` are the partition ids of devices that are not connected now.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any]):
        self._app, self._run_config = client_app, run_config
        self._run = Run.create_empty(7)
        self._nodes = {
            100 + k: SimulatedNode(
                100 + k,
                {
                    "partition-id": k,
                    "num-partitions": num_nodes,
                    "direct-address": f"127.0.0.1:{free_port()}",
                },
            )
            for k in range(num_nodes)
        }
        self._replies: dict[str, Message] = {}
        self._count = 0
        self.offline: set[int] = set()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *given: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [n for n in self._nodes if n - 100 not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            threading.Thread(target=self._work, args=(message,), daemon=True).start()
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        return [self._replies.pop(key) for key in list(self._replies) if key in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        raise NotImplementedError

    def _work(self, message: Message) -> None:
        node = self._nodes[message.metadata.dst_node_id]
        context = node.context(7, self._run_config)
        answer: Message | BaseException
        try:
            answer = self._app(message, context)
        except Exception as error:  # as Flower has it: it becomes an error reply
            answer = error
        self._replies[message.metadata.message_id] = node.reply(message, context, answer)
