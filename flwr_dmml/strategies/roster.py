"""Roster of a run: the handshake that maps Flower's node ids to partitions, and the members."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from logging import ERROR, INFO, WARNING
from math import inf
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from ..base.errors import UserError
from ..base.text import one_line
from ..payload.blocks import vector_problem
from ..payload.plan import Payload
from ..transport.messages import ABOUT, PLAN, SPOKEN, STATE, protocol_problem
from .admission import odd_ones
from .member import Member, read_member
from .reasons import ReplyError, is_lost_worker, join_reasons, opened, partition_of
from .sending import push, send_and_wait

T = TypeVar("T")
WORKER_LOST = (
    "A worker process of Flower's simulation has died (killed, or out of memory): node %s failed. "
    "Flower does not restart it and keeps sending it messages, so that most devices fail from now "
    "on. Stop this run and resume it; or use the engine of this package, which restarts its "
    'workers: engine = "sharded", or flwr-dmml simulate'
)
TOO_LATE = "no reply in time (round-timeout)"
_POLL_S = 0.1
_REMIND_S = 10.0
AGAIN_S = 2.0
"""Pause before a device that a resumed run needs is asked again."""
LEAST_S = 10.0
"""Seconds that it has to answer, at least."""
IDLE_AGAIN_S = 60.0
"""Seconds after which a device that is late is asked anew whether it is there."""


class NoDevicesError(UserError, RuntimeError):
    """Too few devices answered for the run to start, or none is left to go on."""


class QuorumError(NoDevicesError):
    """Fewer devices are left than ``min-devices``; the run has stopped and can be resumed."""


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float) -> list[int]:
    """Wait until ``num_nodes`` devices are connected and return their node ids, sorted.

    Raises
    ------
    NoDevicesError
        Fewer are there after ``timeout`` seconds.
    """
    start = reminded = time.monotonic()
    while len(node_ids := sorted(grid.get_node_ids())) < num_nodes:
        now = time.monotonic()
        if now - start > timeout:
            raise NoDevicesError(
                f"num-nodes = {num_nodes}, but only {len(node_ids)} are connected after "
                f"{timeout:g} s (wait-timeout). Start the others, or set num-nodes; a simulation "
                f'by flwr run takes --federation-config "num-supernodes={num_nodes}"'
            )
        if now - reminded > _REMIND_S:
            log(INFO, "Waiting for devices: %s of %s are connected", len(node_ids), num_nodes)
            reminded = now
        time.sleep(_POLL_S)
    return node_ids


def handshake(
    grid: Grid,
    node_ids: Iterable[int],
    num_nodes: int,
    method: str,
    timeout: float,
    needed: Collection[int] = (),
    wait_s: float = 0.0,
) -> dict[int, Member]:
    """Ask every node who it is; return the members by partition id.

    A node that fails, does not answer or cannot be understood, claims a partition that is taken, or
    holds data of another form than most (:func:`~flwr_dmml.strategies.admission.odd_ones`) is left
    out and named in the log.

    Parameters
    ----------
    grid, node_ids, num_nodes, method, timeout
        Whom to ask, about what, and for how many seconds at most.
    needed : collection of int
        Partitions that a run had: while one is missing, the nodes that are no members are asked
        again, for up to ``wait_s`` seconds.

    Raises
    ------
    NoDevicesError
        Nobody is left; the message says why.
    """
    members: dict[int, Member] = {}
    deadline, told = time.monotonic() + wait_s, None
    while True:
        most_s = patience_s(timeout, deadline - time.monotonic()) if needed else timeout
        problems, partitions = _introduce(grid, node_ids, num_nodes, method, most_s, members)
        missing = sorted(set(needed) - members.keys())
        if not missing or time.monotonic() > deadline:
            break
        why = join_reasons(problems, partitions) or "not connected"
        if (missing, why) != told:
            log(INFO, "Waiting for devices %s of the run: %s", ", ".join(map(str, missing)), why)
            told = missing, why
        time.sleep(AGAIN_S)
        there = {member.node_id for member in members.values()}
        node_ids = sorted(set(grid.get_node_ids()) - there)
    for partition, problem in odd_ones(members).items():
        node_id = members.pop(partition).node_id
        problems[node_id], partitions[node_id] = problem, partition
    together = join_reasons(problems, partitions) or "none is connected"
    if not members:
        raise NoDevicesError(f"no device can take part: {together}")
    if problems:
        log(WARNING, "Left out of the run: %s", together)
    return dict(sorted(members.items()))


def _introduce(
    grid: Grid,
    node_ids: Iterable[int],
    num_nodes: int,
    method: str,
    timeout: float,
    members: dict[int, Member],
) -> tuple[dict[int, str], dict[int, int]]:
    """Ask nodes who they are; add the members, return what is wrong with others, by node id.

    And their partitions, where they are known.
    """
    messages = hello(node_ids, method)
    replies = send_and_wait(grid, messages, timeout) if messages else []
    asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    answers = {asked.pop(r.metadata.reply_to_message_id): r for r in replies}
    problems = dict.fromkeys(asked.values(), "no answer")
    partitions: dict[int, int] = {}
    for node_id, reply in sorted(answers.items()):
        try:
            member = opened(reply, partial(introduced, node_id))
        except ReplyError as error:
            problems[node_id] = str(error)
            if reply.has_error() and (partition := partition_of(reply.error)) is not None:
                partitions[node_id] = partition
            continue
        if member.partition_id >= num_nodes:
            problems[node_id] = (
                f"partition {member.partition_id} is not below num-nodes = {num_nodes}"
            )
            continue
        taken = members.setdefault(member.partition_id, member)
        if taken is not member:
            problems[node_id] = f"partition {member.partition_id} is node {taken.node_id}'s"
    return problems, partitions


def patience_s(timeout: float, left_s: float) -> float:
    """Return how long answers are waited for when a run goes on; ``left_s`` are left for all."""
    return min(timeout, max(left_s, LEAST_S))


def hello(node_ids: Iterable[int], method: str) -> list[Message]:
    """Return messages that ask nodes who they are."""
    plan = ConfigRecord({"method": method, **SPOKEN})
    return [Message(RecordDict({PLAN: plan}), node_id, "query.hello") for node_id in node_ids]


def introduced(node_id: int, content: RecordDict) -> Member:
    """Return who a node is, from its answer to :func:`hello`.

    Raises
    ------
    ReplyError
        It cannot be read, or is of another protocol.
    """
    if ABOUT not in content.config_records:
        raise ReplyError("it is not that of a ClientApp of flwr-dmml")
    about = content.config_records[ABOUT]
    who = f"device {one_line(str(about.get('partition-id')), 40)}"
    if problem := protocol_problem(about, who, "the coordinator"):
        raise ReplyError(problem)
    return read_member(node_id, about)


class Roster:
    """The members of a run, and the letters between them and the strategy.

    A node gets no second message before it has answered the first: it could work on two at once,
    from one old state. A late answer only makes it available again. A device that was killed
    never answers, and would be left out for good. So where nodes answer in order, one that is late
    is asked whether it is there, and any answer makes it available.

    Parameters
    ----------
    members : mapping of int to Member
        By partition id, from :func:`handshake`.
    had : mapping of int to Member, optional
        Of a run that is resumed: those that have not come are members too, and away.
    in_order : bool (default: False)
        Whether a node answers messages in the order in which they were sent. SuperNodes do; in
        Flower's simulation two actors can work for one node.
    """

    def __init__(
        self,
        members: Mapping[int, Member],
        had: Mapping[int, Member] | None = None,
        in_order: bool = False,
    ) -> None:
        self.members = dict(sorted({**(had or {}), **members}.items()))
        self.away = self.members.keys() - members.keys()
        """Who has not been met since the run went on."""
        self.partition_of = {member.node_id: p for p, member in members.items()}
        self.modalities = frozenset(
            m for member in self.members.values() for m in member.modalities
        )
        self._asked: dict[str, int] = {}  # message id -> partition, of the last messages
        self._waiting: dict[int, str] = {}  # partition -> message it still has to answer
        self._in_order = in_order
        self._idle: dict[int, tuple[str, float]] = {}  # partition -> what asks if it is, and when
        self._lost_told = False

    @property
    def block_lengths(self) -> dict[str, int]:
        """Length of every block that a device has."""
        return {b: n for m in self.members.values() for b, n in m.blocks.items()}

    @property
    def shared_blocks(self) -> dict[str, int]:
        """Length of every block that at least two devices have: the others are mixed by nobody."""
        owners = Counter(b for m in self.members.values() for b in m.blocks)
        return {b: n for b, n in self.block_lengths.items() if owners[b] > 1}

    def check_initial(self, payload: Payload) -> None:
        """Refuse blocks to start from that no device takes.

        Raises
        ------
        ValueError
            Names the block and what is wrong with it.
        """
        lengths = self.block_lengths
        for name, vector in payload.items():
            if name not in lengths:
                raise ValueError(f"initial_arrays: no device has the block '{name}'")
            if problem := vector_problem(vector, lengths[name]):
                raise ValueError(f"initial_arrays: block '{name}' {problem}")

    def invite(self, grid: Grid) -> tuple[list[int], dict[int, str]]:
        """Return who can be sent a message now, and why the others cannot.

        Raises
        ------
        NoDevicesError
            Nobody can.
        """
        online, absent = set(grid.get_node_ids()), dict[int, str]()
        self._look(grid, online)
        for partition, member in self.members.items():
            if partition in self.away:
                absent[partition] = "it has not come since the run was resumed"
            elif member.node_id not in online:
                absent[partition] = "it is not connected"
            elif partition in self._waiting:
                absent[partition] = "it is still busy with an earlier message"
        invited = [p for p in self.members if p not in absent]
        if not invited:
            raise NoDevicesError(f"no device is left: {join_reasons(absent)}")
        return invited, absent

    def _look(self, grid: Grid, online: Collection[int]) -> None:
        """See which of those that are late have answered; ask the others if they are there."""
        if not self._waiting:
            return
        asked = {message: p for p, (message, _) in self._idle.items()}
        of = {message: p for p, message in self._waiting.items()} | asked
        for reply in grid.pull_messages(of):
            self._free(of[reply.metadata.reply_to_message_id])
        now = time.monotonic()
        for p in self._waiting if self._in_order else ():
            node, (_, when) = self.members[p].node_id, self._idle.get(p, ("", -inf))
            if node not in online or now - when < IDLE_AGAIN_S:
                continue
            if sent := self.push(grid, Message(RecordDict(), node, "query.idle")):
                self._idle[p] = sent, now

    def _free(self, partition: int) -> None:
        """Have a device be no longer waited for."""
        self._waiting.pop(partition, None)
        self._idle.pop(partition, None)

    def leave(self, partitions: Collection[int]) -> None:
        """Have devices be away that were met, and could not be taken back to their states."""
        self.away |= set(partitions)
        self.partition_of = {n: p for n, p in self.partition_of.items() if p not in partitions}

    def returned(self, member: Member) -> None:
        """Have a device that was away take part again."""
        self.members[member.partition_id] = member
        self.partition_of[member.node_id] = member.partition_id
        self.away -= {member.partition_id}
        self._free(member.partition_id)  # it has answered a later message

    def send(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send and wait; remember who has not answered within ``timeout`` seconds."""
        replies = send_and_wait(grid, messages, timeout)
        self._asked = {
            m.metadata.message_id: self.partition_of[m.metadata.dst_node_id] for m in messages
        }
        return replies

    def push(self, grid: Grid, message: Message) -> str:
        """Send a message without waiting; return its id, or nothing if it is not accepted."""
        return next(iter(push(grid, [message])), "")

    def late(self, partition: int, message_id: str) -> None:
        """Take note that a device has not answered in time: it is not asked until it has."""
        self._waiting[partition] = message_id

    def ask(
        self,
        grid: Grid,
        kind: str,
        method: str,
        timeout: float,
        read: Callable[[int, RecordDict], T],
        states: Mapping[int, ArrayRecord] | None = None,
        whom: Collection[int] | None = None,
    ) -> tuple[dict[int, T], dict[int, str]]:
        """Ask all members who are there something outside of a round; return as :meth:`sort` does.

        ``states`` go with the messages, by partition. With ``whom``, only these members are asked.

        Raises
        ------
        NoDevicesError
            Not one reply is good, and all were asked; or nobody is there.
        """
        invited, absent = self.invite(grid)
        if whom is not None:
            invited = [p for p in invited if p in whom]
            absent = {p: why for p, why in absent.items() if p in whom}
        messages: list[Message] = []
        for partition in invited:
            content = RecordDict({PLAN: ConfigRecord({"method": method})})
            if states is not None:
                content[STATE] = states.get(partition, ArrayRecord())
            messages.append(Message(content, self.members[partition].node_id, kind))
        good, failed = self.sort(self.send(grid, messages, timeout), read)
        if whom is None:
            require_some(good, failed)
        return good, absent | failed

    def sort(
        self, replies: Iterable[Message], read: Callable[[int, RecordDict], T]
    ) -> tuple[dict[int, T], dict[int, str]]:
        """Return what good replies say, by partition, and what became of the others.

        Parameters
        ----------
        replies : iterable of Message
            To what was sent last.
        read : callable
            Given a partition and the content of its reply, returns what it says, checked.
        """
        good: dict[int, T] = {}
        failed: dict[int, str] = {}
        lost: list[int] = []
        open_letters = dict(self._asked)
        for reply in replies:
            # An error made by the SuperLink carries its own node id: the message id tells whose.
            partition = open_letters.pop(reply.metadata.reply_to_message_id)
            try:
                good[partition] = opened(reply, partial(read, partition))
            except ReplyError as error:
                failed[partition] = str(error)
                if reply.has_error() and is_lost_worker(reply.error):
                    lost.append(partition)
        if lost and not self._lost_told:
            log(ERROR, WORKER_LOST, ", ".join(map(str, sorted(lost))))
            self._lost_told = True
        for message_id, partition in open_letters.items():
            self.late(partition, message_id)
            failed[partition] = TOO_LATE
        return dict(sorted(good.items())), dict(sorted(failed.items()))


def require_some(good: Collection[int], failed: Mapping[int, str]) -> None:
    """Go on if there is a good reply, or nobody was asked.

    Raises
    ------
    NoDevicesError
        All have failed.
    """
    if failed and not good:
        raise NoDevicesError(f"every device failed: {join_reasons(failed)}")
