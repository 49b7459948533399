"""Roster of a run: the handshake that maps Flower's node ids to partitions, and the members."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from ..base.errors import UserError
from ..energy.costs import Work
from ..energy.equipment import NOT_TOLD, Equipment
from ..payload.blocks import STATISTICS, is_carried, unaddressed, vector_problem
from ..payload.plan import Payload
from ..transport.messages import ABOUT, FLOPS_IN, PLAN, PUBLIC_KEY, STATE
from .admission import odd_ones
from .reasons import join_reasons, partition_of, reason_of

_POLL_S = 0.1
_REMIND_S = 10.0


class NoDevicesError(UserError, RuntimeError):
    """Too few devices answered for the run to start, or none is left to go on."""


@dataclass(frozen=True)
class Member:
    """A device that answered the handshake."""

    node_id: int
    partition_id: int
    modalities: tuple[str, ...]
    blocks: dict[str, int]  # name -> length
    payload_bytes: int  # that it publishes in round 1 for a neighbour, as it says
    block_bytes: dict[str, int]  # of these, by block
    digests: dict[str, str]  # name -> digest of the numbers it starts from
    num_train: int
    work: Work
    class_counts: tuple[int, ...] = ()  # training samples of each class; not told: empty
    class_names: tuple[str, ...] = ()  # not known, or not told: empty
    num_classes: int = 0  # not told: 0
    data: str = ""  # where they are, and their classes and shapes, for people
    address: str = ""  # where its neighbours reach it
    equipment: Equipment = NOT_TOLD
    announced: bytes = b""  # its public key, signed; not told: empty

    def problem_with(self, names: Collection[str]) -> str | None:
        """Say what is wrong with the names in a payload of this device, or return None."""
        own = [name for name in names if not (name.startswith(STATISTICS) or is_carried(name))]
        blocks = {unaddressed(name) for name in own}
        if lacking := set(self.blocks) - blocks:
            return f"its payload lacks {', '.join(sorted(lacking))}"
        unknown = blocks - set(self.blocks)
        return (
            f"its payload holds unknown blocks: {', '.join(sorted(unknown))}" if unknown else None
        )


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
    grid: Grid, node_ids: Iterable[int], num_nodes: int, method: str, timeout: float
) -> dict[int, Member]:
    """Ask every node who it is; return the members by partition id.

    A node that fails, does not answer, claims a partition that is taken, or holds data of another
    form than most (:func:`~flwr_dmml.strategies.admission.odd_ones`) is left out and named in the
    log.

    Raises
    ------
    NoDevicesError
        Nobody is left; the message says why.
    """
    hello = ConfigRecord({"method": method})
    messages = [Message(RecordDict({PLAN: hello}), n, "query.hello") for n in node_ids]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    asked = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    members: dict[int, Member] = {}
    answers = {asked.pop(r.metadata.reply_to_message_id): r for r in replies}
    problems = dict.fromkeys(asked.values(), "no answer")
    partitions: dict[int, int] = {}  # of those with a problem, where it is known
    for node_id, reply in sorted(answers.items()):
        if reply.has_error():
            problems[node_id] = reason_of(reply.error)
            if (partition := partition_of(reply.error)) is not None:
                partitions[node_id] = partition
            continue
        try:
            member = _read_member(node_id, reply.content.config_records[ABOUT])
        except (KeyError, TypeError, ValueError):
            problems[node_id] = "its answer is not that of a ClientApp of flwr-dmml"
            continue
        if not 0 <= member.partition_id < num_nodes:
            problems[node_id] = (
                f"partition {member.partition_id} is not below num-nodes = {num_nodes}"
            )
            continue
        taken = members.setdefault(member.partition_id, member)
        if taken is not member:
            problems[node_id] = f"partition {member.partition_id} is node {taken.node_id}'s"
    members = dict(sorted(members.items()))
    for partition, problem in odd_ones(members).items():
        node_id = members.pop(partition).node_id
        problems[node_id], partitions[node_id] = problem, partition
    together = join_reasons(problems, partitions)
    if not members:
        raise NoDevicesError(f"no device can take part: {together}")
    if problems:
        log(WARNING, "Left out of the run: %s", together)
    return members


class Roster:
    """The members of a run, and the letters between them and the strategy.

    A node gets no second message before it has answered the first: it could work on two at once,
    from one old state. A late answer only makes it available again.

    Parameters
    ----------
    members : mapping of int to Member
        By partition id, from :func:`handshake`.
    """

    def __init__(self, members: Mapping[int, Member]) -> None:
        self.members = dict(members)
        self.partition_of = {member.node_id: p for p, member in self.members.items()}
        self._asked: dict[str, int] = {}  # message id -> partition, of the last messages
        self._waiting: dict[int, str] = {}  # partition -> message it still has to answer

    @property
    def block_lengths(self) -> dict[str, int]:
        """Length of every block that a device has."""
        return {b: n for m in self.members.values() for b, n in m.blocks.items()}

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
        if self._waiting:
            late = grid.pull_messages(self._waiting.values())
            answered = {reply.metadata.reply_to_message_id for reply in late}
            self._waiting = {p: m for p, m in self._waiting.items() if m not in answered}
        online, absent = set(grid.get_node_ids()), {}
        for partition, member in self.members.items():
            if member.node_id not in online:
                absent[partition] = "it is not connected"
            elif partition in self._waiting:
                absent[partition] = "it is still busy with an earlier message"
        invited = [p for p in self.members if p not in absent]
        if not invited:
            raise NoDevicesError(f"no device is left: {join_reasons(absent)}")
        return invited, absent

    def send(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Send and wait; remember who has not answered within ``timeout`` seconds."""
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        self._asked = {
            m.metadata.message_id: self.partition_of[m.metadata.dst_node_id] for m in messages
        }
        return replies

    def ask(
        self,
        grid: Grid,
        kind: str,
        method: str,
        timeout: float,
        states: Mapping[int, ArrayRecord] | None = None,
    ) -> tuple[dict[int, RecordDict], dict[int, str]]:
        """Ask all members who are there something outside of a round; return as :meth:`sort` does.

        ``states`` go with the messages, by partition.
        """
        invited, absent = self.invite(grid)
        messages: list[Message] = []
        for partition in invited:
            content = RecordDict({PLAN: ConfigRecord({"method": method})})
            if states is not None:
                content[STATE] = states.get(partition, ArrayRecord())
            messages.append(Message(content, self.members[partition].node_id, kind))
        good, failed = self.sort(self.send(grid, messages, timeout))
        return good, absent | failed

    def sort(self, replies: Iterable[Message]) -> tuple[dict[int, RecordDict], dict[int, str]]:
        """Return good replies by partition, and what became of the others.

        Raises
        ------
        NoDevicesError
            Somebody was asked, and not one reply is good.
        """
        good: dict[int, RecordDict] = {}
        failed: dict[int, str] = {}
        open_letters = dict(self._asked)
        for reply in replies:
            # An error made by the SuperLink carries its own node id: the message id tells whose.
            partition = open_letters.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                failed[partition] = reason_of(reply.error)
            else:
                good[partition] = reply.content
        for message_id, partition in open_letters.items():
            self._waiting[partition] = message_id
            failed[partition] = "no reply in time (round-timeout)"
        if failed and not good:
            raise NoDevicesError(f"every device failed: {join_reasons(failed)}")
        return dict(sorted(good.items())), dict(sorted(failed.items()))


def _read_member(node_id: int, about: ConfigRecord) -> Member:
    names, lengths = about["block-names"], about["block-lengths"]
    modalities = tuple(about["modalities"])  # type: ignore[arg-type]
    return Member(
        node_id=node_id,
        partition_id=int(about["partition-id"]),  # type: ignore[arg-type]
        modalities=modalities,  # type: ignore[arg-type]
        blocks=dict(zip(names, lengths, strict=True)),  # type: ignore[arg-type,misc]
        payload_bytes=max(0, int(about["payload-bytes"])),  # type: ignore[arg-type]
        block_bytes=_sizes(names, about["block-bytes"]),
        digests=dict(zip(names, about["block-digests"], strict=True)),  # type: ignore[arg-type,misc]
        num_train=int(about["num-train"]),  # type: ignore[arg-type]
        class_counts=tuple(about.get("class-counts", ())),  # type: ignore[arg-type]
        class_names=tuple(map(str, about.get("class-names", ()))),  # type: ignore[arg-type]
        num_classes=int(about.get("num-classes", 0)),  # type: ignore[arg-type]
        data=str(about.get("data", "")),
        address=str(about.get("direct-address", "")),
        equipment=Equipment.read(about),
        announced=bytes(about.get(PUBLIC_KEY, b"")),  # type: ignore[arg-type]
        work=Work(
            joint=float(about["flops-joint"]),  # type: ignore[arg-type]
            solo=dict(zip(modalities, map(float, about["flops-solo"]), strict=True)),  # type: ignore[arg-type]
            per_round=float(about["flops-per-round"]),  # type: ignore[arg-type]
            in_phase={
                key.removeprefix(FLOPS_IN): float(flops)  # type: ignore[arg-type]
                for key, flops in about.items()
                if key.startswith(FLOPS_IN)
            },
        ),
    )


def _sizes(names: Any, sizes: Any) -> dict[str, int]:
    """Return the bytes of each block, as a device says; a block has at least one.

    Raises
    ------
    ValueError
        It says something else.
    """
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError("the bytes of a block are whole numbers above 0")
    return dict(zip(names, sizes, strict=True))
