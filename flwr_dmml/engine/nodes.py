"""A simulated SuperNode: its state, and how it answers a message."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ..transport.arrays import copy_records
from .identity import SERVER_NODE_ID

FIRST_NODE_ID = 1000


@dataclass
class SimulatedNode:
    """What a SuperNode keeps from message to message."""

    node_id: int
    config: UserConfig
    state: RecordDict = field(default_factory=RecordDict)

    @property
    def partition_id(self) -> int:
        """The partition that the node was given."""
        return int(self.config["partition-id"])

    def answer(
        self, client_app: ClientApp, message: Message, run_id: int, run_config: Mapping[str, Any]
    ) -> Message:
        """Run the ClientApp on a message and return its reply.

        As with a real SuperNode, what it does to the message stays with it, and when it raises, the
        state stays what it was before and the reply carries the error.
        """
        context = Context(
            run_id=run_id,
            node_id=self.node_id,
            node_config=dict(self.config),
            state=copy_records(self.state),
            run_config=dict(run_config),
        )
        try:
            reply = client_app(_own_copy(message), context)
            self.state = context.state
        except BaseException as error:  # even SystemExit ends this message only: the reply says so
            reason = f"{type(error)}:<'{error}'>"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code=code, reason=reason), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = self.node_id
        reply.metadata.__dict__["_dst_node_id"] = SERVER_NODE_ID
        return reply


def simulated_nodes(num_nodes: int) -> dict[int, SimulatedNode]:
    """Return nodes by id; node i has partition id i."""
    nodes: dict[int, SimulatedNode] = {}
    for i in range(num_nodes):
        node_id, config = FIRST_NODE_ID + i, {"partition-id": i, "num-partitions": num_nodes}
        nodes[node_id] = SimulatedNode(node_id, dict[str, UserConfigValue](config))
    return nodes


def _own_copy(message: Message) -> Message:
    own = copy.copy(message)
    own.__dict__["_metadata"] = copy.copy(message.metadata)
    if message.has_content():
        own.__dict__["_content"] = copy_records(message.content)
    return own
