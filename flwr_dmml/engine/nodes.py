"""A simulated SuperNode: its state, and how it answers a message."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any, Protocol, runtime_checkable

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

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


@runtime_checkable
class AnswersTogether(Protocol):
    """A ClientApp that can answer for several nodes at once."""

    def groups(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[list[int]]:
        """Return the positions of messages by who can answer together; all, each once.

        It must not raise: who cannot answer is alone, and says so when asked.
        """

    def answer_together(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> Sequence[Message | Exception]:
        """Answer the messages of one group: a reply or what went wrong, for each."""


def answers(
    client_app: ClientApp,
    asked: Sequence[tuple[SimulatedNode, Message]],
    run_id: int,
    run_config: Mapping[str, Any],
) -> Iterator[list[tuple[SimulatedNode, Message]]]:
    """Run the ClientApp on messages to nodes; yield nodes and replies as they are there.

    Nodes answer one after another, or together where the ClientApp says that they can.
    """
    once = len({node.node_id for node, _ in asked}) == len(asked)
    if not (once and isinstance(client_app, AnswersTogether)):
        for node, message in asked:
            yield [(node, node.answer(client_app, message, run_id, run_config))]
        return
    contexts = [node.context(run_id, run_config) for node, _ in asked]
    for group in client_app.groups([message for _, message in asked], contexts):
        if len(group) == 1:
            node, message = asked[group[0]]
            yield [(node, node.answer(client_app, message, run_id, run_config))]
            continue
        some = [asked[i] for i in group]
        their = [contexts[i] for i in group]
        try:
            results = client_app.answer_together([_own_copy(m) for _, m in some], their)
        except Exception as error:  # whoever is to blame says so when asked alone
            text = "%s nodes cannot answer together, but are asked one by one: %r"
            log(WARNING, text, len(group), error)
            for node, message in some:
                yield [(node, node.answer(client_app, message, run_id, run_config))]
            continue
        yield [
            (node, node.reply(message, context, result))
            for (node, message), context, result in zip(some, their, results, strict=True)
        ]


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
