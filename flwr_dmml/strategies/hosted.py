"""Exchange in a simulation whose engine runs all devices' rounds itself, without messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, Error
from flwr.common.constant import ErrorCode

from ..clients import hosted
from ..engine.nodes import Hosted
from ..methods.soft_labels import LABELS
from ..payload.blocks import is_carried
from ..payload.plan import Plan
from ..payload.routing import cut, wanted
from ..transport.arrays import serialised_bytes
from .exchange import Exchange, added_up
from .logbook import Logbook
from .reasons import ReplyError, guarded, reason_of
from .replies import (
    Account,
    Reply,
    check_confusion,
    check_metrics,
    read_claims,
)
from .roster import Roster, require_some

NOTHING = ArrayRecord()
Entries = Mapping[str, int]


class HostedExchange(Exchange):
    """Hands whole rounds to the engine, and books what devices would send in a relay.

    Parameters
    ----------
    method, roster, logbook
        See :class:`~.exchange.Exchange`.
    devices : Hosted
        The engine's.
    tell : callable
        Called with the number of devices that are done, and of all.
    """

    def __init__(
        self,
        method: str,
        roster: Roster,
        logbook: Logbook,
        devices: Hosted,
        tell: Callable[[int, int], None],
    ) -> None:
        super().__init__(method, roster, logbook)
        self._devices, self._tell = devices, tell
        self._entries: dict[int, Entries] = {}  # bytes by name in the payload, by partition
        self._sizes: dict[int, int] = {}
        self._booked: dict[int, tuple[Plan, list[Entries], list[tuple[int, int, int]]]] = {}

    @property
    def payloads(self) -> dict[int, ArrayRecord]:
        """Payloads that the devices published in the last round, by partition."""
        found = self._devices.payloads()
        return {p: payload for p, payload in found.items() if p in self._entries}

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each payload, by partition."""
        return self._sizes

    def run(
        self,
        server_round: int,
        plans: Mapping[int, Plan],
        initial: ArrayRecord | None = None,
        *,
        closing: bool = False,
    ) -> None:
        """Run a round, or in the end mix and evaluate only, and note what comes of it."""
        mixed = server_round if closing else server_round - 1
        self._book(mixed, plans)
        new = [p for p in plans if p not in self._begun] if initial else []
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self._tell(done, len(plans))

        short = {p: replace(plan, sent=None) if plan.sent else plan for p, plan in plans.items()}
        replies = self._devices.run(
            self._method, short, dict.fromkeys(new, initial or ArrayRecord()), told
        )
        good: dict[int, Reply] = {}
        failed: dict[int, str] = {}
        for p, reply in replies.items():
            try:
                good[p] = self._checked(p, plans[p], reply)
            except ReplyError as error:
                failed[p] = str(error)
        self._logbook.failures(failed)
        require_some(good, failed)
        self._begun |= set(good)
        for p, reply in good.items():
            self._heard(mixed, p, reply)
            if not closing:
                self._trained(server_round, p, reply.rounds[0].metrics)
        self._settle(mixed, plans, good)
        if closing:
            honest = self._logbook.honest(good)
            self.confusion = added_up([good[p].confusion for p in honest])
        else:
            self._entries = {p: replies[p].entries or {} for p in good}
            self._sizes = _own_sizes(self._entries)

    def _checked(self, partition: int, plan: Plan, reply: hosted.Reply) -> Reply:
        """Return what a device gives back, checked as if it had come in a message.

        Raises
        ------
        ReplyError
            It failed, or gives back what it should not.
        """
        if reply.error:
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            raise ReplyError(reason_of(Error(code, reply.error)))
        return guarded(lambda: self._read_hosted(partition, plan, reply))

    def _read_hosted(self, partition: int, plan: Plan, reply: hosted.Reply) -> Reply:
        members = self._roster.members
        entries = reply.entries or {}
        if plan.iterations and self._entries.get(partition) is not entries:
            self._check_sizes(entries, partition, plan)
        metrics = check_metrics(reply.metrics, self._roster.modalities)
        account = Account(metrics, read_claims(reply.rejected, plan))
        confusion = check_confusion(reply.confusion, members[partition])
        return Reply([account], NOTHING, [], confusion, reply.models)

    def _book(self, mixed: int, plans: Mapping[int, Plan]) -> None:
        """Note what of a round's payloads goes to whom, by the plans of the next one."""
        totals: dict[int, tuple[int, int]] = {}
        for p, plan in plans.items():
            plan = plan.as_sent
            if not plan.neighbours:
                continue
            sent = [self._entries[n] for n in plan.neighbours]
            known = self._booked.get(p)
            if (
                known is None
                or known[0].weights is not plan.weights
                or _as_courier(known[0]) != _as_courier(plan)
                or any(a is not b for a, b in zip(known[1], sent, strict=True))
            ):
                known = self._booked[p] = plan, sent, list(_letters(p, plan, sent))
            for sender, size, labels in known[2]:
                before = totals.get(sender, (0, 0))
                totals[sender] = before[0] + size, before[1] + labels
        for sender, (size, labels) in totals.items():
            self._logbook.node(mixed, sender).sent(size, labels)

    def load_state(self, state: Mapping[str, Any], payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from what :meth:`state` gave, and the payloads of that time."""
        super().load_state(state, {})
        self._devices.load_payloads(self._method, payloads)
        self._entries = {
            p: {name: serialised_bytes(array) for name, array in record.items()}
            for p, record in payloads.items()
        }
        self._sizes = _own_sizes(self._entries)


def _as_courier(plan: Plan) -> tuple[object, ...]:
    """Return what a device gets by couriers, and as one."""
    return plan.far, plan.carries, plan.averages


def _own_sizes(entries: Mapping[int, Entries]) -> dict[int, int]:
    """Return the bytes of payloads without what they carry for others."""
    return {
        p: sum(size for name, size in own.items() if not is_carried(name))
        for p, own in entries.items()
    }


def _letters(recipient: int, plan: Plan, sent: Sequence[Entries]) -> Iterator[tuple[int, int, int]]:
    """Yield who sends how many bytes to a device, and how many of them are soft labels."""
    for position, (sender, entries) in enumerate(zip(plan.neighbours, sent, strict=True), start=1):
        own = cut(entries, wanted(plan, position, recipient, entries))
        labels = sum(size for name, size in own.items() if name.startswith(LABELS))
        yield sender, sum(own.values()), labels
