"""A device answers each message before it takes the next.

Flower's SuperNode takes a message and then waits for *a* reply. There are two ways in which that
goes wrong for good:

- The run has ended while its message was on the way. The SuperNode forgets the message, and its
  ClientApp answers nevertheless. From then on each message releases the reply to the one before
  it: the device is always one reply behind, and the coordinator waits in vain.
- A ClientApp is killed before it has read its message. There is no reply at all, and the SuperNode
  waits for one as long as it lives.

Here it waits for the reply to *this* message, and makes one that is an error if the ClientApp has
ended without any.
"""

from functools import wraps
from importlib import import_module
from logging import INFO, WARNING
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, Status

from ..base.log import log
from ..base.private import LOOP, PULL, PUSH, SUPERNODE, UnexpectedError, function_of

GET = "get_messages_legacy"
"""Of the SuperNode's state: what :data:`~..base.private.PUSH` calls to look for replies."""
UNFINISHED = (Status.PENDING, Status.STARTING, Status.RUNNING)
DIED = "The ClientApp has ended without an answer."


class _State:
    """A SuperNode's state, in which there is always a reply once the ClientApp has ended."""

    def __init__(self, state: Any, store: Any, message: Message, insert: Any) -> None:
        self._state, self._store, self._message, self._insert = state, store, message, insert

    def get_messages_legacy(self, **named: Any) -> Any:
        # A ClientApp replies before it ends: looking for the reply first could miss it.
        run = self._message.metadata.run_id
        ended = not self._state.get_tasks(run_ids=[run], statuses=UNFINISHED, limit=1)
        found = self._state.get_messages_legacy(**named)
        if found or not ended:
            return found
        log(WARNING, DIED)
        error = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason=DIED)
        self._insert(Message(error, reply_to=self._message), self._state, self._store)
        return self._state.get_messages_legacy(**named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def answer_in_order() -> bool:
    """Have the SuperNode of this process answer each message before the next; return whether.

    Replaces functions that are private to Flower. If they are not as expected, Flower's own stay,
    and one line in the log says so.
    """
    try:
        module, states = import_module(SUPERNODE), import_module("flwr.supernode.nodestate")
        function_of(module, LOOP, uses=(PULL, PUSH))
        pull = function_of(module, PULL, takes=("state", "receive"))
        push = function_of(module, PUSH, uses=(GET,), takes=("state", "object_store", "send"))
        insert = function_of(module, "_insert_message", takes=("msg", "state", "store"))
        function_of(states.NodeState, "get_tasks", takes=("run_ids", "statuses", "limit"))
    except (ImportError, AttributeError, UnexpectedError) as error:
        log(INFO, "Flower's own order of replies, in its SuperNode: %s", error)
        return False
    received: list[Message] = []  # the last one

    @wraps(pull)
    def pull_noting(*, receive: Any, **named: Any) -> Any:
        def noted() -> Any:
            if (found := receive()) is not None:
                received[:] = [found[0]]
            return found

        return pull(receive=noted, **named)

    @wraps(push)
    def push_until_answered(*, state: Any, object_store: Any, send: Any, **named: Any) -> None:
        (message,) = received
        answered: set[str] = set()

        def noted(reply: Message, *given: Any) -> Any:
            answered.add(reply.metadata.reply_to_message_id)
            return send(reply, *given)

        watched = _State(state, object_store, message, insert)
        while message.metadata.message_id not in answered:
            push(state=watched, object_store=object_store, send=noted, **named)

    module.__dict__.update({PULL: pull_noting, PUSH: push_until_answered})
    return True
