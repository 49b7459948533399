"""Exchange of messages between the strategy and the devices in one run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from ..clients.models import Models
from ..learning.speedometer import NEAR
from ..methods.soft_labels import LABELS
from ..payload.plan import Plan
from ..tracking.records import under
from ..transport import Relay, size_bytes
from ..transport.arrays import serialised_bytes
from ..transport.messages import INBOX, INITIAL, PLAN, write_plan
from .logbook import Logbook
from .replies import (
    Account,
    Reply,
    check_arrays,
    check_payload,
    most_bytes,
    read_reply,
    told_bytes,
)
from .roster import Roster, require_some

MakeExchange = Callable[[str, Roster, Logbook], "Exchange"]
"""(method, roster, logbook) -> the exchange of a run."""


class Exchange:
    """Writes the messages of a round, and keeps what the next one needs of the replies.

    Parameters
    ----------
    method : str
        What the devices run.
    roster : Roster
        Who takes part.
    logbook : Logbook
        Is told what is sent, measured and refused.
    """

    def __init__(self, method: str, roster: Roster, logbook: Logbook) -> None:
        self._method, self._roster, self._logbook = method, roster, logbook
        self._relay = Relay()
        self._most_bytes = most_bytes(roster.members.values())
        self._shared = roster.shared_blocks
        self._rounds: list[Mapping[int, Plan]] = []  # of the messages that are out
        self._begun: set[int] = set()  # partitions that have answered once
        self.speeds: dict[int, dict[str, float]] = {}
        """Training speed of each modality around each device, by partition."""
        self.confusion: list[int] = []
        """At the end, of all devices together: true (rows) by predicted class, row by row."""
        self.models: dict[int, Models] = {}
        """Handed over by devices since they were last taken from here, by partition."""

    rounds_per_message: int = 1
    """Rounds that the devices run before they report."""

    def expected_sizes(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return what these will publish in a round to come: as much as last time, or as told."""
        told = {p: self._roster.members[p].payload_bytes for p in partitions}
        return told | {p: size for p, size in self.sizes.items() if p in told}

    @property
    def payloads(self) -> dict[int, ArrayRecord]:
        """Payloads that the devices published in the last round, by partition."""
        return self._relay.payloads

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each payload, by partition."""
        return self._relay.sizes

    def messages(
        self, rounds: Sequence[Mapping[int, Plan]], kind: str, initial: ArrayRecord | None = None
    ) -> list[Message]:
        """Write the messages that complete the round before and begin the next.

        ``rounds`` has the plans of every round of the messages, here of one; ``initial`` goes to
        devices that have not answered yet, to start from.
        """
        messages: list[Message] = []
        sizes: dict[int, tuple[int, int]] = {}  # by the id of a record: many get the same
        alive: list[ArrayRecord] = []  # so that no other record gets the id of one
        self._rounds = list(rounds)
        (plans,) = rounds
        for partition, plan in plans.items():
            content = RecordDict({PLAN: write_plan(plan, self._method)})
            for sender, record in self._inbox(plan.as_sent, partition).items():
                if sender in plan.neighbours:
                    content[f"{INBOX}{sender}"] = record
                if id(record) not in sizes:
                    alive.append(record)
                    sizes[id(record)] = self._bytes(sender, record)
                self._logbook.node(plan.server_round - 1, sender).sent(*sizes[id(record)])
            self._add(content, plan)
            messages.append(self._message(partition, plan.server_round, content, kind, initial))
        return messages

    def _inbox(self, plan: Plan, partition: int) -> dict[int, ArrayRecord]:
        """Return what goes with a device's plan, by sender."""
        return self._relay.inbox(plan, partition)

    def _add(self, content: RecordDict, plan: Plan) -> None:
        """Add to a message what a device needs besides its plan and its inbox."""

    def _bytes(self, sender: int, record: ArrayRecord) -> tuple[int, int]:
        """Return the bytes of what goes to one neighbour, and of soft labels among them."""
        return size_bytes(record), size_bytes(record, LABELS)

    def _read(self, partition: int, content: RecordDict) -> Reply:
        """Read a reply to the messages that are out; raises ReplyError."""
        member = self._roster.members[partition]
        plans = [plans[partition] for plans in self._rounds if partition in plans]
        reply = read_reply(content, member, plans, self._roster.modalities)
        if plans[-1].iterations:  # a closing message publishes nothing
            self._check(partition, reply, plans)
        return reply

    def _check(self, partition: int, reply: Reply, plans: Sequence[Plan]) -> None:
        """Refuse a reply, by ReplyError, whose payload cannot be handed on."""
        check_arrays(reply.payload, "payload")
        sizes = {name: serialised_bytes(array) for name, array in reply.payload.items()}
        self._check_sizes(sizes, partition, plans[-1])

    def _check_sizes(self, sizes: Mapping[str, int], partition: int, plan: Plan) -> None:
        check_payload(sizes, self._roster.members[partition], plan, self._most_bytes)

    def _told(self, partition: int, plan: Plan, account: Account, sent: int) -> tuple[int, int]:
        """Return the bytes of a payload that only its readers can open, and of labels in it.

        ``sent`` bytes of it are there: it is without the blocks that nobody else has.

        Raises
        ------
        ReplyError
            The device does not tell, or what it tells cannot be.
        """
        blocks = self._roster.members[partition].blocks
        alone = sum(self._most_bytes[block] for block in blocks if block not in self._shared)
        return told_bytes(account.metrics, sent + alone * max(1, len(plan.recipients)))

    def _message(
        self,
        partition: int,
        server_round: int,
        content: RecordDict,
        kind: str,
        initial: ArrayRecord | None,
    ) -> Message:
        if initial and partition not in self._begun:
            content[INITIAL] = initial
        node_id = self._roster.members[partition].node_id
        return Message(content, node_id, kind, group_id=str(server_round))

    def trained(self, server_round: int, replies: Iterable[Message]) -> None:
        """Take the payloads for the next round, and what the devices have measured."""
        good = self._good(replies)
        self._begun |= set(good)
        for partition, reply in good.items():
            self._heard(server_round - 1, partition, reply)
            self._trained(server_round, partition, reply.rounds[0].metrics)
        self._settle(server_round - 1, self._rounds[0], good)
        self._relay.take({partition: reply.payload for partition, reply in good.items()})

    def closed(self, server_round: int, replies: Iterable[Message]) -> None:
        """Note what the devices have measured after the last round."""
        good = self._good(replies)
        for partition, reply in good.items():
            self._heard(server_round, partition, reply)
        self._settle(server_round, self._rounds[0], good)
        self.confusion = added_up([good[p].confusion for p in self._logbook.honest(good)])

    def _good(self, replies: Iterable[Message]) -> dict[int, Reply]:
        """Return the good replies, by partition, when the others are noted.

        Raises
        ------
        NoDevicesError
            There is none.
        """
        good, failed = self._roster.sort(replies, self._read)
        self._logbook.failures(failed)
        require_some(good, failed)
        return good

    def _heard(self, mixed: int, partition: int, reply: Reply) -> None:
        self._logbook.notes(partition, reply.notes)
        self._logbook.mixed(mixed, partition, reply.rounds[0])
        if reply.models:
            self.models[partition] = reply.models

    def _trained(self, server_round: int, partition: int, metrics: Mapping[str, float]) -> None:
        self._logbook.node(server_round, partition).trained(metrics)
        self.speeds[partition] = under(NEAR, metrics) or self.speeds.get(partition, {})

    def _settle(self, mixed: int, plans: Mapping[int, Plan], good: Collection[int]) -> None:
        """Have the logbook weigh what those who have mixed a round say of each other."""
        self._logbook.settle(mixed, {p: plan for p, plan in plans.items() if p in good})

    def state(self) -> dict[str, Any]:
        """Return what the next round needs besides the payloads, as JSON."""
        speeds = {str(k): v for k, v in self.speeds.items()}
        return {"begun": sorted(self._begun), "speeds": speeds}

    def load_state(self, state: Mapping[str, Any], payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from what :meth:`state` gave, and the payloads of that time."""
        self._begun = set(state["begun"])
        self.speeds = {int(k): dict(v) for k, v in state["speeds"].items()}
        self._relay.take(payloads)


def added_up(tables: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of confusion tables, row by row; empty where they are of different sizes."""
    counts = [table for table in tables if table]
    alike = len({len(table) for table in counts}) == 1
    return [sum(cell) for cell in zip(*counts, strict=True)] if alike else []
