"""Exchange in a simulation whose engine runs all devices' rounds itself, without messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Error
from flwr.common.constant import ErrorCode

from ..engine.nodes import Hosted
from ..learning.speedometer import NEAR
from ..methods.soft_labels import LABELS
from ..payload.blocks import is_carried
from ..payload.plan import Plan
from ..payload.routing import cut, wanted
from ..tracking.records import under
from ..transport.arrays import serialised_bytes
from .exchange import Exchange, added_up
from .logbook import Logbook
from .reasons import join_reasons, reason_of
from .roster import NoDevicesError, Roster

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
        return self._devices.payloads()

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

        replies = self._devices.run(
            self._method, plans, dict.fromkeys(new, initial or ArrayRecord()), told
        )
        failed = {
            p: reason_of(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reply.error))
            for p, reply in replies.items()
            if reply.error
        }
        if failed and len(failed) == len(plans):
            raise NoDevicesError(f"every device failed: {join_reasons(failed)}")
        good = {p: reply for p, reply in replies.items() if not reply.error}
        self._begun |= set(good)
        for p, reply in good.items():
            self._logbook.mixed(mixed, p, reply.metrics, reply.rejected)
            if not closing:
                self._logbook.node(server_round, p).trained(reply.metrics)
                self.speeds[p] = under(NEAR, reply.metrics) or self.speeds.get(p, {})
        self._logbook.failures(failed)
        if closing:
            honest = self._logbook.honest(good)
            self.confusion = added_up([good[p].confusion for p in honest])
        else:
            self._entries = {p: reply.entries for p, reply in good.items()}
            self._sizes = _own_sizes(self._entries)

    def _book(self, mixed: int, plans: Mapping[int, Plan]) -> None:
        """Note what of a round's payloads goes to whom, by the plans of the next one."""
        totals: dict[int, tuple[int, int]] = {}
        for p, plan in plans.items():
            if not plan.neighbours:
                continue
            sent = [self._entries[n] for n in plan.neighbours]
            known = self._booked.get(p)
            if (
                known is None
                or known[0].weights is not plan.weights
                or (known[0].far, known[0].carries) != (plan.far, plan.carries)
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
