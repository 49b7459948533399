"""Exchange of sealed payloads: the coordinator relays them and cannot read them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from ..payload.plan import Plan
from ..payload.routing import correspondents
from ..transport.messages import BLOCKS
from ..transport.relay import size_bytes
from ..transport.sealed import KEY, KEYS, OWN, SEALED, SESSION, part_of
from .exchange import Exchange
from .logbook import Logbook
from .reasons import ReplyError
from .replies import ALL_HEADERS, STATISTICS_BYTES, Reply, check_arrays, most_in_all
from .roster import Roster


class SealedExchange(Exchange):
    """Hands on ciphertexts, the keys to them, and the public keys that devices have announced.

    What a payload holds is up to the receiver: it cuts it to the blocks that it mixes, and names
    what is wrong. Sending is billed by the payload's size before encryption, as in any exchange, so
    that plans do not depend on encryption; counted as sent is what is sent.

    Parameters
    ----------
    method, roster, logbook
        See :class:`~.exchange.Exchange`.
    """

    def __init__(self, method: str, roster: Roster, logbook: Logbook) -> None:
        super().__init__(method, roster, logbook)
        self._session = token_hex(16)  # Flower's id of the run is another when it is resumed
        self._plain: dict[int, tuple[int, int]] = {}  # bytes of payloads, of labels in them

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each payload before encryption, by partition."""
        return {partition: self._plain[partition][0] for partition in self.payloads}

    def _inbox(self, plan: Plan, partition: int) -> dict[int, ArrayRecord]:
        everyone = (1.0,) * (1 + len(plan.neighbours))
        apart = {part_of([block]): weights for block, weights in plan.weights.items()}
        parts = replace(
            plan,
            weights=apart | dict.fromkeys((SEALED, KEY, OWN), everyone),
            far=tuple(replace(there, blocks=(part_of(there.blocks),)) for there in plan.far),
            carries=tuple(
                replace(there, blocks=(part_of(there.blocks),)) for there in plan.carries
            ),
        )
        return super()._inbox(parts, partition)

    def _add(self, content: RecordDict, plan: Plan) -> None:
        keys = ConfigRecord({SESSION: self._session})
        for other in sorted(correspondents(plan)):
            if announced := self._roster.members[other].announced:
                keys[str(other)] = announced
        content[KEYS] = keys
        content[BLOCKS] = ConfigRecord(dict(self._shared))

    def _bytes(self, sender: int, record: ArrayRecord) -> tuple[int, int]:
        return size_bytes(record), self._plain[sender][1]

    def _check(self, partition: int, reply: Reply, plans: Sequence[Plan]) -> None:
        check_arrays(reply.payload, "payload")
        if SEALED not in reply.payload:
            raise ReplyError("its payload is not encrypted")
        there = size_bytes(reply.payload)
        (plan,) = plans
        shared = {block: self._most_bytes[block] for block in self._shared}
        most = most_in_all(self._roster.members[partition], plan, shared)
        most += STATISTICS_BYTES + ALL_HEADERS
        if there > most:
            raise ReplyError(f"its payload has {there} bytes; allowed: {most}")
        self._plain[partition] = self._told(partition, plan, reply.rounds[0], there)

    def state(self) -> dict[str, Any]:
        """Return what the next round needs besides the payloads, as JSON."""
        plain = {str(p): list(self._plain[p]) for p in self.payloads}
        return super().state() | {"session": self._session, "plain": plain}

    def load_state(self, state: Mapping[str, Any], payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from what :meth:`state` gave, and the payloads of that time."""
        super().load_state(state, payloads)
        self._session = str(state["session"])
        self._plain = {int(p): (int(a), int(b)) for p, (a, b) in state["plain"].items()}
