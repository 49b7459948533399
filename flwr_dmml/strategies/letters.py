"""Exchange with single devices that are each in a round of their own."""

from collections.abc import Mapping

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp import Grid

from ..payload.plan import Plan
from ..transport.messages import INBOX, PLAN, write_plan
from .exchange import Exchange, added_up
from .replies import Reply


class LetterExchange(Exchange):
    """Asks some devices at a time, and gives each the letters that have come to it."""

    def ask(
        self,
        grid: Grid,
        plans: Mapping[int, Plan],
        letters: Mapping[int, Mapping[int, ArrayRecord]],
        kind: str,
        timeout: float,
        initial: ArrayRecord | None = None,
    ) -> tuple[dict[int, Reply], dict[int, str]]:
        """Have devices do their rounds; return the good replies, and why the others are not.

        Parameters
        ----------
        grid : Grid
            The engine's.
        plans : mapping of int to Plan
            By partition.
        letters : mapping of int to mapping of int to ArrayRecord
            What goes with them, by partition and sender: of all neighbours in the plan.
        kind : str
            Of the messages.
        timeout : float
            Seconds to wait.
        initial : ArrayRecord, optional
            Goes to devices that have not answered yet, to start from.
        """
        self._rounds = [plans]
        messages = []
        for p, plan in plans.items():
            content = RecordDict({PLAN: write_plan(plan, self._method)})
            for sender in plan.neighbours:
                content[f"{INBOX}{sender}"] = letters[p][sender]
            messages.append(self._message(p, plan.server_round, content, kind, initial))
        good, failed = self._roster.sort(self._roster.send(grid, messages, timeout), self._read)
        self._begun |= set(good)
        self.models |= {p: reply.models for p, reply in good.items() if reply.models}
        return good, failed

    def trains(self, record: int, partition: int, reply: Reply) -> None:
        """Note what a device has measured while it trained, in the record of this number."""
        self._trained(record, partition, reply.rounds[0].metrics)

    def ends(self, replies: Mapping[int, Reply]) -> None:
        """Note which classes devices take for which at the end."""
        self.confusion = added_up([replies[p].confusion for p in self._logbook.honest(replies)])
