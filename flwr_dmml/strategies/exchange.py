"""Exchange of messages between the strategy and the devices in one run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from ..learning.speedometer import NEAR
from ..methods.soft_labels import LABELS
from ..payload.plan import Plan
from ..tracking.records import under
from ..transport import Relay, size_bytes
from ..transport.messages import (
    INBOX,
    INITIAL,
    PAYLOAD,
    PLAN,
    read_confusion,
    read_metrics,
    write_plan,
)
from .logbook import Logbook
from .roster import Roster

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
        self._begun: set[int] = set()  # partitions that have answered once
        self.speeds: dict[int, dict[str, float]] = {}
        """Training speed of each modality around each device, by partition."""
        self.confusion: list[int] = []
        """At the end, of all devices together: true (rows) by predicted class, row by row."""

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
        (plans,) = rounds
        for partition, plan in plans.items():
            content = RecordDict({PLAN: write_plan(plan, self._method)})
            for sender, record in self._inbox(plan, partition).items():
                content[f"{INBOX}{sender}"] = record
                if id(record) not in sizes:
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

    def _problem(
        self, partition: int, payload: ArrayRecord, metrics: Mapping[str, float]
    ) -> str | None:
        """Say what is wrong with what a device has published, or return None."""
        return self._roster.members[partition].problem_with(payload)

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
        good, failed = self._roster.sort(replies)
        payloads: dict[int, ArrayRecord] = {}
        self._begun |= set(good)
        for partition, content in good.items():
            self._logbook.mixing(server_round - 1, partition, content)
            metrics = read_metrics(content)
            self._logbook.node(server_round, partition).trained(metrics)
            self.speeds[partition] = under(NEAR, metrics) or self.speeds.get(partition, {})
            payload = content.array_records.get(PAYLOAD, ArrayRecord())
            if problem := self._problem(partition, payload, metrics):
                failed[partition] = problem
            else:
                payloads[partition] = payload
        self._logbook.failures(failed)
        self._relay.take(payloads)

    def closed(self, server_round: int, replies: Iterable[Message]) -> None:
        """Note what the devices have measured after the last round."""
        good, failed = self._roster.sort(replies)
        for partition, content in good.items():
            self._logbook.mixing(server_round, partition, content)
        self._logbook.failures(failed)
        honest = self._logbook.honest(good)
        self.confusion = added_up([read_confusion(good[p]) for p in honest])

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
