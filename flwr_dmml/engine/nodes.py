"""A simulated SuperNode: its state, and how it answers a message."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ..transport.arrays import copy_records
from ..transport.messages import SIMULATED
from .identity import SERVER_NODE_ID

FIRST_NODE_ID = 1000


@dataclass
class SimulatedNode:
    """State that a SuperNode keeps from message to message."""

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
        context = self.context(run_id, run_config)
        try:
            answer: Message | BaseException = client_app(_own_copy(message), context)
        except BaseException as error:  # even SystemExit ends this message only: the reply says so
            answer = error
        return self.reply(message, context, answer)

    def context(self, run_id: int, run_config: Mapping[str, Any]) -> Context:
        """Return a context for one message, with a copy of the state."""
        return Context(
            run_id=run_id,
            node_id=self.node_id,
            node_config=dict(self.config),
            state=copy_records(self.state),
            run_config=dict(run_config),
        )

    def reply(self, message: Message, context: Context, answer: Message | BaseException) -> Message:
        """Keep the state of a ClientApp that has answered, and address its reply or error."""
        if isinstance(answer, Message):
            self.state = context.state
        else:
            reason = f"{type(answer)}:<'{answer}'>"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            answer = Message(Error(code=code, reason=reason), reply_to=message)
        answer.metadata.__dict__["_src_node_id"] = self.node_id
        answer.metadata.__dict__["_dst_node_id"] = SERVER_NODE_ID
        return answer


class Hosted(Protocol):
    """All devices of a process, whose rounds run without a message for each."""

    def run(
        self,
        method: str,
        plans: Mapping[int, Any],
        initial: Mapping[int, ArrayRecord],
        told: Callable[[int], None],
    ) -> dict[int, Any]:
        """Run a round of the devices that have a plan, by partition id."""

    def takes(self, method: str) -> bool:
        """Return whether rounds of a method can be run so."""

    def settle(self) -> None:
        """Write into the nodes' states what the devices keep."""

    def payloads(self) -> dict[int, ArrayRecord]:
        """Return what the devices published in the last round, by partition id."""

    def load_payloads(self, method: str, payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from payloads of an earlier time."""


@runtime_checkable
class HostsDevices(Protocol):
    """A ClientApp that can run the rounds of all devices of a process."""

    def hosted(
        self, nodes: Callable[[], Iterable[SimulatedNode]], run_config: Mapping[str, object]
    ) -> Hosted:
        """Return these devices, given their nodes."""


def host(
    client_app: ClientApp,
    nodes: Callable[[], Iterable[SimulatedNode]],
    run_config: Mapping[str, object],
) -> Hosted | None:
    """Return the devices of a process as their ClientApp hosts them; None where it cannot."""
    return client_app.hosted(nodes, run_config) if isinstance(client_app, HostsDevices) else None


def simulated_nodes(num_nodes: int) -> dict[int, SimulatedNode]:
    """Return nodes by id; node i has partition id i."""
    nodes: dict[int, SimulatedNode] = {}
    for i in range(num_nodes):
        config = {"partition-id": i, "num-partitions": num_nodes, SIMULATED: True}
        node_id = FIRST_NODE_ID + i
        nodes[node_id] = SimulatedNode(node_id, dict[str, UserConfigValue](config))
    return nodes


def _own_copy(message: Message) -> Message:
    own = copy.copy(message)
    own.__dict__["_metadata"] = copy.copy(message.metadata)
    if message.has_content():
        own.__dict__["_content"] = copy_records(message.content)
    return own
