"""Devices that were not there when a run was resumed, and come back later."""

import time
from collections.abc import Mapping
from functools import partial
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from ..transport.messages import PLAN, STATE
from .member import Member, unlike
from .reasons import ReplyError, opened
from .roster import IDLE_AGAIN_S, Roster, hello, introduced

REFUSED_AGAIN_S = 300.0
"""Seconds after which a node that was refused is asked once more: it may have been mended."""


class Returning:
    """Takes devices that are away back into a run, without making the others wait.

    A node that connects is asked who it is. If it is one of those that are away, it is given the
    state that the checkpoint holds of it. It takes part from the round that begins after its answer
    to that. A node that is refused is named in the log, and asked again when it connects anew, or
    after :data:`REFUSED_AGAIN_S`. One that does not answer is asked again after
    :data:`~.roster.IDLE_AGAIN_S`: Flower delivers a message once, and it may have been restarted
    since.

    Parameters
    ----------
    roster : Roster
        Whose :attr:`~.roster.Roster.away` shrinks.
    method : str
        What the devices run.
    states : mapping of int to ArrayRecord
        What the devices kept, by partition; one that is missing starts afresh.
    """

    def __init__(self, roster: Roster, method: str, states: Mapping[int, ArrayRecord]) -> None:
        self._roster, self._method, self._states = roster, method, states
        self._asked: dict[str, int] = {}  # message id -> node, of those asked who they are
        self._restoring: dict[str, Member] = {}  # message id -> who is taken back to its state
        self._since: dict[int, float] = {}  # node -> when it was asked last, or refused
        self._refused: set[int] = set()
        self._named: set[tuple[int, str]] = set()  # what the log has of them

    def look(self, grid: Grid) -> None:
        """See who has come, and who has answered."""
        if not self._roster.away:
            return
        online, now = set(grid.get_node_ids()), time.monotonic()
        for node_id in list(self._refused):
            if node_id not in online or now - self._since[node_id] >= REFUSED_AGAIN_S:
                self._refused.discard(node_id)
        self._asked = {m: node for m, node in self._asked.items() if node in online}
        self._restoring = {m: who for m, who in self._restoring.items() if who.node_id in online}
        if waiting := self._asked.keys() | self._restoring.keys():
            for reply in grid.pull_messages(waiting):
                self._answered(grid, reply)
        restoring = {who.node_id: who for who in self._restoring.values()}
        busy = {*self._asked.values(), *restoring}
        late = {node_id for node_id in busy if now - self._since[node_id] >= IDLE_AGAIN_S}
        new = online - self._roster.partition_of.keys() - busy - self._refused
        for node_id in sorted(new | late):
            if node_id in restoring:
                self._restore(grid, restoring[node_id])
            else:
                (message,) = hello([node_id], self._method)
                if sent := self._roster.push(grid, message):
                    self._asked[sent], self._since[node_id] = node_id, now

    def _answered(self, grid: Grid, reply: Message) -> None:
        """Do what comes after an answer: give the state, or let the device take part."""
        message_id = reply.metadata.reply_to_message_id
        restored = self._restoring.get(message_id)
        node_id = restored.node_id if restored else self._asked.get(message_id)
        if node_id is None:  # it has answered another question
            return
        self._asked = {m: node for m, node in self._asked.items() if node != node_id}
        self._restoring = {m: who for m, who in self._restoring.items() if who.node_id != node_id}
        try:
            if restored is None:
                self._met(grid, opened(reply, partial(introduced, node_id)))
            else:
                opened(reply, lambda content: None)
                self._roster.returned(restored)
                log(INFO, "Device %s is back: it takes part again", restored.partition_id)
        except ReplyError as error:
            self._refused.add(node_id)
            self._since[node_id] = time.monotonic()
            if (node_id, str(error)) not in self._named:
                self._named.add((node_id, str(error)))
                log(WARNING, "Left out of the run: node %s: %s", node_id, error)

    def _met(self, grid: Grid, member: Member) -> None:
        """Give a device that was away its state.

        Raises
        ------
        ReplyError
            It is none of those that are away, or another than it was.
        """
        p = member.partition_id
        if p not in self._roster.away or p in {o.partition_id for o in self._restoring.values()}:
            away = ", ".join(map(str, sorted(self._roster.away)))
            raise ReplyError(f"it is device {p}, and those that are away are {away}")
        if changed := unlike(self._roster.members[p], member):
            raise ReplyError(f"device {p} is not what it was: it has other {', '.join(changed)}")
        self._restore(grid, member)

    def _restore(self, grid: Grid, member: Member) -> None:
        content = RecordDict({PLAN: ConfigRecord({"method": self._method})})
        content[STATE] = self._states.get(member.partition_id, ArrayRecord())
        if sent := self._roster.push(grid, Message(content, member.node_id, "query.restore")):
            self._restoring[sent] = member
            self._since[member.node_id] = time.monotonic()
