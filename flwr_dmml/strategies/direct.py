"""Exchange for the direct transport: only plans and numbers pass through the coordinator."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..payload.plan import Plan
from ..transport.messages import (
    BEGAN_S,
    BLOCKS,
    ENDED_S,
    FETCHED_BYTES,
    LETTER_BYTES,
    MAX_STALENESS,
    OWN_PACE,
    PEERS,
    PLAN,
    join,
    write_plan,
)
from .exchange import Exchange, added_up
from .logbook import Logbook
from .reasons import ReplyError
from .replies import Reply
from .roster import Roster

TOLD = {BEGAN_S, ENDED_S, FETCHED_BYTES}
"""What a device that does not wait tells of every round."""


class DirectExchange(Exchange):
    """Messages with the plans of several rounds and the neighbours' addresses, but no payloads.

    What devices measure comes back round by round. A device that fails in one of the rounds fails
    in the whole message: its neighbours go on without it. Sending is billed by the payload's size
    in a relay, so that plans do not depend on the transport; counted as sent is what is sent.

    Parameters
    ----------
    method, roster, logbook
        See :class:`~.exchange.Exchange`.
    rounds_per_message : int
        Rounds that the devices run before they report, at least 1.
    """

    def __init__(
        self, method: str, roster: Roster, logbook: Logbook, rounds_per_message: int
    ) -> None:
        super().__init__(method, roster, logbook)
        self.rounds_per_message = rounds_per_message
        self._letters: dict[int, tuple[int, int]] = {}  # bytes of the last ones, of labels in them
        self._payloads: dict[int, int] = {}  # bytes of their payloads in a relay

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each device's last payload, by partition."""
        return self._payloads

    def messages(
        self, rounds: Sequence[Mapping[int, Plan]], kind: str, initial: ArrayRecord | None = None
    ) -> list[Message]:
        """Write the messages of several rounds, to all who take part in the first one."""
        self._rounds = list(rounds)
        messages: list[Message] = []
        for partition, first in rounds[0].items():
            own = [plans[partition] for plans in rounds if partition in plans]
            peers = sorted({n for plan in own for n in plan.neighbours})
            told = join(write_plan(plan, self._method) for plan in own)
            content = RecordDict({PLAN: ConfigRecord(told)})
            content[BLOCKS] = ConfigRecord(dict(self._shared))
            content[PEERS] = ConfigRecord({str(n): self._roster.members[n].address for n in peers})
            messages.append(self._message(partition, first.server_round, content, kind, initial))
        return messages

    def _check(self, partition: int, reply: Reply, plans: Sequence[Plan]) -> None:
        for plan, account in zip(plans, reply.rounds, strict=True):
            if LETTER_BYTES not in account.metrics:
                raise ReplyError(f"it lacks round {plan.server_round}")
            self._told(partition, plan, account, int(account.metrics[LETTER_BYTES]))

    def trained(self, server_round: int, replies: Iterable[Message]) -> None:
        """Take note of what the devices have measured and sent in each round."""
        good = self._good(replies)
        self._begun |= set(good)
        for partition, reply in good.items():
            self._logbook.notes(partition, reply.notes)
        for position, plans in enumerate(self._rounds):
            t = server_round + position
            self._book(t - 1, plans)
            self._letters, self._payloads = {}, {}
            there = [p for p in good if p in plans]
            for partition in there:
                account = good[partition].rounds[position]
                self._logbook.mixed(t - 1, partition, account)
                self._trained(t, partition, account.metrics)
                sent = int(account.metrics[LETTER_BYTES])
                size, labels = self._told(partition, plans[partition], account, sent)
                self._letters[partition], self._payloads[partition] = (sent, labels), size
            self._settle(t - 1, plans, there)

    def closed(self, server_round: int, replies: Iterable[Message]) -> None:
        """Note what the devices have measured after the last round."""
        self._book(server_round, self._rounds[0])
        super().closed(server_round, replies)

    def _book(self, server_round: int, plans: Mapping[int, Plan]) -> None:
        """Note whose letters of a round went to whom, by the plans of the next one."""
        for plan in plans.values():
            for sender in plan.as_sent.neighbours:
                if sender in self._letters:
                    self._logbook.node(server_round, sender).sent(*self._letters[sender])

    def state(self) -> dict[str, Any]:
        """Return what the next message needs besides what the devices keep, as JSON."""
        letters = {str(p): [*n, self._payloads[p]] for p, n in self._letters.items()}
        return super().state() | {"letters": letters}

    def load_state(self, state: Mapping[str, Any], payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from what :meth:`state` gave; the devices have kept their last letters."""
        super().load_state(state, payloads)
        self._letters = {int(p): (int(a), int(b)) for p, (a, b, _) in state["letters"].items()}
        self._payloads = {int(p): int(size) for p, (_, _, size) in state["letters"].items()}


class SpanExchange(DirectExchange):
    """As :class:`DirectExchange`, with single devices that do not wait for one another."""

    def span(
        self,
        partition: int,
        plans: Sequence[Plan],
        max_staleness: int,
        kind: str,
        initial: ArrayRecord | None = None,
    ) -> Message:
        """Write the message of a device with its next rounds.

        Parameters
        ----------
        partition : int
            The device's.
        plans : sequence of Plan
            Its own, of consecutive rounds.
        max_staleness : int
            In how many of its rounds more it mixes a letter again.
        kind : str
            Of the message.
        initial : ArrayRecord, optional
            Goes to a device that has not answered yet, to start from.
        """
        (message,) = self.messages([{partition: plan} for plan in plans], kind, initial)
        message.content[OWN_PACE] = ConfigRecord({MAX_STALENESS: max_staleness})
        return message

    def read(self, partition: int, plans: Sequence[Plan], content: RecordDict) -> Reply:
        """Read a device's reply to a message with these plans; raises ReplyError."""
        self._rounds = [{partition: plan} for plan in plans]
        reply = self._read(partition, content)
        self._begun.add(partition)
        last, account = plans[-1], reply.rounds[-1]
        if last.iterations:
            sent = int(account.metrics[LETTER_BYTES])
            self._payloads[partition], _ = self._told(partition, last, account, sent)
        return reply

    def _check(self, partition: int, reply: Reply, plans: Sequence[Plan]) -> None:
        super()._check(partition, reply, plans)
        for plan, account in zip(plans, reply.rounds, strict=True):
            if missing := TOLD - account.metrics.keys():
                raise ReplyError(f"it lacks {min(missing)} of round {plan.server_round}")

    def trains(self, record: int, partition: int, metrics: Mapping[str, float]) -> None:
        """Note what a device has measured while it trained, in the record of this number."""
        self._trained(record, partition, metrics)

    def close(
        self, grid: Grid, plans: Mapping[int, Plan], max_staleness: int, timeout: float
    ) -> tuple[dict[int, Reply], dict[int, str]]:
        """Have devices mix and evaluate at the end; return good replies, and why others are not."""
        messages = [self.span(p, [plan], max_staleness, "evaluate") for p, plan in plans.items()]
        replies = self._roster.send(grid, messages, timeout)
        good, failed = self._roster.sort(replies, lambda p, told: self.read(p, [plans[p]], told))
        self.confusion = added_up([good[p].confusion for p in self._logbook.honest(good)])
        return good, failed
