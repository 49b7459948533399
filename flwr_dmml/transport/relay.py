"""The relay transport: the strategy hands each node's payload to its neighbours, unread."""

from collections.abc import Mapping

from flwr.app import ArrayRecord

from ..payload.blocks import is_carried
from ..payload.plan import Plan
from ..payload.routing import cut, wanted
from .arrays import record_of, serialised_bytes


class Relay:
    """Payloads of the last round, by partition id, on their way to the neighbours.

    Only names and sizes are looked at, never values: a payload goes out as it came in, cut to the
    blocks that the receiver mixes, and to statistics.
    """

    def __init__(self) -> None:
        self._payloads: dict[int, ArrayRecord] = {}
        self._cut: dict[tuple[int, frozenset[str]], ArrayRecord] = {}

    def take(self, payloads: Mapping[int, ArrayRecord]) -> None:
        """Replace what is held by the payloads of a new round."""
        self._payloads, self._cut = dict(payloads), {}

    @property
    def payloads(self) -> dict[int, ArrayRecord]:
        """The payloads that are held, by partition id."""
        return dict(self._payloads)

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each payload that is here, by partition id; see :func:`own_bytes`."""
        return {partition: own_bytes(record) for partition, record in self._payloads.items()}

    def inbox(self, plan: Plan, recipient: int) -> dict[int, ArrayRecord]:
        """Return what goes with the recipient's ``plan``: a record for each of its neighbours.

        If the sender has addressed a block, the record holds what is addressed to the recipient.
        Recipients that get the same from a sender get the same record.
        """
        records: dict[int, ArrayRecord] = {}
        for position, neighbour in enumerate(plan.neighbours, start=1):
            payload = self._payloads[neighbour]
            names = wanted(plan, position, recipient, payload.keys())
            key = neighbour, names
            if key not in self._cut:
                self._cut[key] = record_of(cut(payload, names))
            records[neighbour] = self._cut[key]
        return records


def size_bytes(record: ArrayRecord, prefix: str = "") -> int:
    """Return the bytes of the arrays in ``record`` whose names begin so, as serialised."""
    return sum(serialised_bytes(array) for name, array in record.items() if name.startswith(prefix))


def own_bytes(record: ArrayRecord) -> int:
    """Return the bytes of a payload, as serialised, without what it carries for others."""
    own = [array for name, array in record.items() if not is_carried(name)]
    return sum(map(serialised_bytes, own))
