"""Let Flower messages be made in this process.

Since 1.38 Flower's ``Message`` reads the identity of its task from a private class, which only
Flower's own processes fill. An engine that runs a ServerApp itself has to do the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

SERVER_NODE_ID = 1
"""The node id that Flower gives to the SuperLink."""


@contextmanager
def server_identity(run_id: int) -> Iterator[None]:
    """Take the identity of a ServerApp's task while the block runs, then give it back."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:  # a Flower that has no such class needs none
        yield
        return
    names = ("_task_id", "_run_id", "_node_id")
    before = [getattr(TaskIdentity, name) for name in names]
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = run_id, run_id, SERVER_NODE_ID
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(TaskIdentity, name, value)
