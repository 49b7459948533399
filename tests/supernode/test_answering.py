"""Flower's own SuperNode functions on its own state; what is played is the SuperLink."""

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate import NodeStateFactory

from flwr_dmml.base.private import PULL, PUSH, SUPERNODE
from flwr_dmml.engine.identity import server_identity
from flwr_dmml.supernode.answering import DIED, GET, answer_in_order

OLD, NEW = 1, 2
module: Any = importlib.import_module(SUPERNODE)


class SuperNode:
    """A SuperNode without a network: messages are handed to it, replies are collected."""

    def __init__(self) -> None:
        stores = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(stores).state(), stores.store()
        self.state.set_node_id(7)
        for run_id in (OLD, NEW):
            self.state.store_run(Run.create_empty(run_id))
        self.sent: list[Message] = []

    def take(self, run_id: int, ended: bool = False) -> Message | None:
        """Take a message; the run may have ended when it is there. Return it if it counts."""
        with server_identity(run_id):
            message = Message(RecordDict(), 7, "query.hello")
        message.metadata.__dict__["_message_id"] = message.object_id
        tree, objects = get_object_tree(message), get_all_nested_objects(message)

        def confirm(run: int, message_id: str) -> None:
            if ended:
                raise RunNotRunningException

        taken = module._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, tree),
            get_run=None,
            get_fab=None,
            pull_object=lambda run, object_id: objects[object_id].deflate(),
            confirm_message_received=confirm,
            trusted_entities=None,
        )
        self.message = message
        return None if taken is None else message

    def reply(self, message: Message) -> None:
        """Do what a ClientApp does when it is done."""
        module._insert_message(Message(RecordDict(), reply_to=message), self.state, self.store)

    def end(self, message: Message) -> None:
        """Do what Flower does when a ClientApp has ended."""
        for task in self.state.get_tasks(run_ids=[message.metadata.run_id]):
            if task.status.status != Status.FINISHED:
                assert self.state.finish_task(task.task_id, SubStatus.FAILED, "killed")

    def push(self) -> None:
        def send(message: Message, tree: object, seconds: float) -> tuple[set[str], str]:
            self.sent.append(message)
            return set(), ""

        module._push_messages(
            state=self.state, object_store=self.store, send=send, push_object=None
        )

    def pushing(self) -> threading.Thread:
        thread = threading.Thread(target=self.push, daemon=True)
        thread.start()
        return thread

    @property
    def answered(self) -> list[str]:
        return [reply.metadata.reply_to_message_id for reply in self.sent]


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperNode]:
    for name in (PULL, PUSH):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is put back
    assert answer_in_order()
    yield SuperNode()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reply_to_a_message_that_does_not_count_is_not_taken_for_the_next_one(
    supernode: SuperNode,
):
    """The old run's ClientApp answers while the new run's is at work."""
    assert supernode.take(OLD, ended=True) is None
    old = supernode.message
    supernode.reply(old)
    new = supernode.take(NEW)
    assert new is not None
    thread = supernode.pushing()
    until(lambda: len(supernode.sent) == 1)
    supernode.reply(new)
    thread.join(20)
    assert not thread.is_alive()
    assert supernode.answered == [old.metadata.message_id, new.metadata.message_id]


def test_a_clientapp_that_ends_without_an_answer_is_an_error(
    supernode: SuperNode, caplog: pytest.LogCaptureFixture
):
    """One that never read its message: Flower itself makes no reply then."""
    message = supernode.take(NEW)
    assert message is not None
    thread = supernode.pushing()
    supernode.end(message)
    thread.join(20)
    assert not thread.is_alive()
    (reply,) = supernode.sent
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED and reply.error.reason == DIED
    after = supernode.take(NEW)  # and the next one is answered as ever
    assert after is not None
    supernode.reply(after)
    supernode.push()
    assert (
        supernode.answered[1:] == [after.metadata.message_id] and not supernode.sent[1].has_error()
    )


def test_a_reply_counts_though_its_clientapp_has_ended(supernode: SuperNode):
    message = supernode.take(NEW)
    assert message is not None
    supernode.reply(message)
    supernode.end(message)
    supernode.push()
    assert len(supernode.sent) == 1 and not supernode.sent[0].has_error()


BOTH = """
from flwr_dmml.base.waits import quicken
from flwr_dmml.supernode.answering import answer_in_order
ways = [lambda: quicken("SuperNode"), answer_in_order]
print([way() for way in {order}])
"""


@pytest.mark.parametrize("order", ["ways", "ways[::-1]"])
def test_it_goes_with_shorter_waits(order: str):
    """Both replace a function of the same name: each finds the installed Flower below."""
    script = BOTH.format(order=order)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[True, True]", done.stderr


def test_another_flower_keeps_its_own_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def push(state: Any, object_store: Any, send: Any, push_object: Any) -> None:
        """Sends replies in a way that we do not know."""

    monkeypatch.setattr(module, PUSH, push)
    caplog.set_level("INFO", logger="flwr")
    assert not answer_in_order()
    assert module._push_messages is push
    (line,) = caplog.messages
    assert line.startswith("Flower's own order of replies, in its SuperNode: ") and GET in line


@pytest.mark.parametrize("missing", ["get_tasks", ""])
def test_a_flower_whose_state_is_another_keeps_its_own_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
):
    """Its state cannot tell what is being worked on, or has another name."""
    states: Any = importlib.import_module("flwr.supernode.nodestate")
    before = module._push_messages
    monkeypatch.setattr(states, "NodeState", type("NodeState", (), {}))
    if not missing:
        monkeypatch.delattr(states, "NodeState")
    caplog.set_level("INFO", logger="flwr")
    assert not answer_in_order()
    assert module._push_messages is before
    (line,) = caplog.messages
    assert (missing or "NodeState") in line
