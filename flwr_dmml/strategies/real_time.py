"""Rounds without a beat on real devices: the coordinator hands out spans of rounds, and listens."""

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from ..learning.evaluation import EVALUATION
from ..payload.plan import Plan
from ..tracking.events import DeviceRound
from ..tracking.records import RoundRecord, under
from ..transport.messages import BEGAN_S, ENDED_S, FETCHED_BYTES, LETTER_AGE
from .direct import SpanExchange
from .energy.own_rounds import OwnBudget
from .logbook import Logbook
from .own_plans import OwnPlans
from .planner import RoundPlanner
from .reasons import ReplyError, join_reasons, opened
from .replies import Account
from .roster import TOO_LATE, NoDevicesError, Roster
from .sending import pause_s


@dataclass(frozen=True)
class _Planned:
    """A round of a device: its plan, what it is billed, and bits that it puts on the air."""

    plan: Plan
    budget: OwnBudget
    bits: float


@dataclass(frozen=True)
class _Span:
    """Rounds that a device has been given in one message."""

    rounds: list[_Planned]
    message_id: str
    sent_s: float


@dataclass(frozen=True, order=True)
class _Ended:
    """A round that is over, or a span that has failed; in the order in which they ended."""

    end_s: float
    device: int
    number: int
    start_s: float = field(compare=False)
    rounds: Sequence[_Planned] = field(compare=False)
    account: Account | None = field(compare=False)  # None of a span that has failed
    failed: str = field(compare=False, default="")


class RealTime:
    """Devices that never wait, in the seconds of the clock on the wall.

    Each device gets the plans of ``exchange.rounds-per-message`` rounds of its own in one message,
    runs them at its own pace (:func:`~flwr_dmml.clients.own_pace.run_at_own_pace`), and gets the
    next ones as soon as it has reported, whatever the others do. That is the simplest division of
    labour that lets nobody wait: batteries, allocation and the number of rounds stay with the
    coordinator, as with rounds of all, and letters never pass it. What a span may take is taken
    from the battery's account when it is planned, so that no device spends more than it has.

    Records are those of :class:`~.event_time.EventTime`, in real seconds: each covers as many
    rounds of devices as there are devices, in the order in which they ended. A record is complete
    when all devices have reported beyond it. A device evaluates its mixed model in every so many of
    its own rounds; a record that is to have accuracies has the last one of each device.

    A device that fails, or does not report in time, is given its next span when the next record is
    complete; the rounds of the failed span are billed and not counted. The last spans are cut to
    what each device is likely to do in the time that is left, and no span is cut short.

    There are no checkpoints: devices are never all between two rounds.

    Parameters
    ----------
    planner : RoundPlanner
        Its ``energy`` is :class:`~.energy.own_rounds.OwnRounds`; it has begun.
    roster, logbook, exchange
        Of the run.
    num_rounds : int
        Rounds of a device on average.
    max_staleness : int
        In how many of its own rounds more a device mixes a letter again, until a newer one comes.
    """

    def __init__(
        self,
        planner: RoundPlanner,
        roster: Roster,
        logbook: Logbook,
        exchange: SpanExchange,
        *,
        num_rounds: int,
        max_staleness: int,
    ) -> None:
        self._planner, self._roster, self._logbook = planner, roster, logbook
        self._exchange = exchange
        self._num_rounds, self._max_staleness = num_rounds, max_staleness
        self._plans = OwnPlans(planner, roster, logbook, num_rounds=num_rounds, adds_up=False)
        self._flying: dict[int, _Span] = {}
        self._ended: list[_Ended] = []  # a heap: those that are in no record yet
        self._failed: dict[int, str] = {}  # devices that are not asked until the next record
        self._booked = 0  # rounds that are in a record
        self._reserved_j = np.zeros(planner.num_nodes)  # of rounds that are in no record yet
        self._evaluated: dict[int, dict[str, float]] = {}
        self._mean_s: dict[int, float] = {}  # of a round, as measured
        self._last_s = 0.0  # when the last round in a record ended
        self.events: list[DeviceRound] = []
        """Rounds that devices have ended since this was last emptied."""

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""
        return [
            self._plans.summary(),
            f"Each device gets up to {self._exchange.rounds_per_message} rounds at a time",
            "Real devices without a beat leave no checkpoints: a run that is stopped starts again",
        ]

    @property
    def over(self) -> bool:
        """Whether no device is in a round any more."""
        return not (self._flying or self._ended or self._left > 0)

    def end(self) -> None:
        """Let no device be given another round."""
        self._plans.end()

    def run(self, grid: Grid, initial: ArrayRecord, timeout: float) -> Iterator[RoundRecord]:
        """Run to the end; yield each record when it is complete, in order.

        Parameters
        ----------
        grid : Grid
            Flower's.
        initial : ArrayRecord
            Blocks that devices start from.
        timeout : float
            Seconds to wait for the report on a span.

        Raises
        ------
        NoDevicesError
            All have failed.
        """
        self._given = grid, initial, timeout
        self._began = self._heard = time.monotonic()
        self._logbook.open(1)
        self._there(self._plans.alive)
        written = self._began
        while self._goes_on():
            time.sleep(pause_s(time.monotonic() - self._heard))
            for p, reply in self._pull().items():
                self._take(p, reply)
            again = False
            for record in self._records():
                record.seconds, written = time.monotonic() - written, time.monotonic()
                yield record
                again = True
            if again:
                there = self._there(self._failed)
                self._failed = {p: why for p, why in self._failed.items() if p not in there}
        if (reached := self._logbook.records[-1].round) != self._num_rounds:
            self._logbook.end_at(reached)
        record = self._close()
        self._end(record)
        record.seconds = time.monotonic() - written
        yield record

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def _left(self) -> int:
        """Rounds that no device has been given."""
        given = sum(len(span.rounds) for span in self._flying.values())
        return self._plans.total - self._plans.done - given

    def _goes_on(self) -> bool:
        """Start whoever has nothing to do; return whether a device is in a round then.

        Raises
        ------
        NoDevicesError
            There are rounds to do, and all have failed.
        """
        self._start(self._plans.alive)
        if not self._flying and self._left > 0 and self._failed:
            raise NoDevicesError(f"every device failed: {join_reasons(self._failed)}")
        return bool(self._flying)

    # ---- spans ------------------------------------------------------------------------------

    def _there(self, partitions: Iterable[int]) -> list[int]:
        """Return which of these can be asked; the others are noted as failed."""
        wanted = set(partitions)
        if not wanted:
            return []
        invited, absent = self._roster.invite(self._given[0])
        missing = {p: why for p, why in absent.items() if p in wanted and p not in self._flying}
        self._logbook.failures(missing)
        self._failed |= missing
        return [p for p in invited if p in wanted]

    def _start(self, partitions: Iterable[int]) -> None:
        """Give each of these that has nothing to do its next rounds, while there are any."""
        grid, initial, _ = self._given
        for p in list(partitions):
            rounds = [] if p in self._flying or p in self._failed else self._next(p)
            if not rounds:
                continue
            plans = [each.plan for each in rounds]
            message = self._exchange.span(p, plans, self._max_staleness, "train", initial)
            if message_id := self._roster.push(grid, message):
                self._flying[p] = _Span(rounds, message_id, self._now_s)
            else:
                self._fail(p, rounds, self._now_s, "its message was not accepted")

    def _next(self, p: int) -> list[_Planned]:
        """Plan a device's next rounds, and book them; none where its battery pays for none."""
        plans, found = self._plans, list[_Planned]()
        most = min(self._exchange.rounds_per_message, self._left, plans.to_come(p))
        while len(found) < most:
            budget = plans.budget(p, self._exchange.speeds, ahead=len(found))
            if budget.flat:
                if not found:
                    plans.stop(p, budget.flat)
                break
            bits = float(plans.bits[p]) if budget.receivers else 0.0
            mixed = plans.begun[p]
            asks = mixed > 0 and mixed % self._planner.evaluate_every == 0
            plan = replace(plans.mixes(p), evaluate=asks)
            found.append(_Planned(plans.begin(p, plan, budget), budget, bits))
            plans.energy.book(p, budget)
            self._reserved_j[p] += budget.compute_j + budget.radio_j
        return found

    def _pull(self) -> dict[int, Message | None]:
        """Return the replies that have come, by device; None of one that is too late.

        To ask can last, as it waits for all of a reply that was announced: late is what had its
        time before that.
        """
        grid, _, timeout = self._given
        of, asked_s = {span.message_id: p for p, span in self._flying.items()}, self._now_s
        found: dict[int, Message | None] = {
            of[reply.metadata.reply_to_message_id]: reply for reply in grid.pull_messages(of)
        }
        if found:
            self._heard = time.monotonic()
        for p, span in self._flying.items():
            if p not in found and asked_s - span.sent_s > timeout:
                self._roster.late(p, span.message_id)
                found[p] = None
        return found

    def _take(self, p: int, reply: Message | None) -> None:
        """Take what a device reports on its span."""
        span, now_s = self._flying.pop(p), self._now_s
        plans = [each.plan for each in span.rounds]
        try:
            if reply is None:
                raise ReplyError(TOO_LATE)
            told = opened(reply, partial(self._exchange.read, p, plans))
        except ReplyError as error:
            self._fail(p, span.rounds, span.sent_s, str(error))
            return
        self._logbook.lost.discard(p)
        self._logbook.notes(p, told.notes)
        self._plans.sizes[p] = self._exchange.sizes[p]
        self._plans.done += len(plans)
        came_s = now_s - told.rounds[-1].metrics[ENDED_S]  # when its message came to it
        for each, account in zip(span.rounds, told.rounds, strict=True):
            start_s, end_s = (
                min(max(span.sent_s, came_s + account.metrics[name]), now_s)
                for name in (BEGAN_S, ENDED_S)
            )
            number = each.plan.server_round
            ended = _Ended(max(start_s, end_s), p, number, start_s, [each], account)
            heapq.heappush(self._ended, ended)
        self._mean_s[p] = now_s / plans[-1].server_round
        if self._mean_s.keys() >= set(self._plans.alive):  # until then it is the model that tells
            self._plans.mean_s |= self._mean_s

    def _fail(self, p: int, rounds: Sequence[_Planned], sent_s: float, why: str) -> None:
        self._logbook.failures({p: why})
        self._failed[p] = why
        number = rounds[0].plan.server_round
        heapq.heappush(self._ended, _Ended(self._now_s, p, number, sent_s, rounds, None, why))

    # ---- records ----------------------------------------------------------------------------

    def _records(self) -> Iterator[RoundRecord]:
        """Yield the records that are complete now, but for the last one of the run."""
        known_s = min((span.sent_s for span in self._flying.values()), default=inf)
        while self._ended and self._ended[0].end_s <= known_s:
            self._note(heapq.heappop(self._ended))
            number = self._logbook.records[-1].round
            if self._booked >= number * self._plans.size and not self.over:
                yield self._close()
                self._logbook.open(number + 1)

    def _note(self, ended: _Ended) -> None:
        """Note a round in the record that is open."""
        p, record, account = ended.device, self._logbook.records[-1], ended.account
        self._last_s = ended.end_s
        compute_j = sum(each.budget.compute_j for each in ended.rounds)
        radio_j = sum(each.budget.radio_j for each in ended.rounds)
        self._reserved_j[p] -= compute_j + radio_j
        letters: list[tuple[int, int]] = []
        if account is None:
            for each in ended.rounds:
                self._logbook.own_round(p, replace(each.budget, updates={}, seconds=0.0), 0.0)
        else:
            (each,) = ended.rounds
            took = replace(each.budget, seconds=ended.end_s - ended.start_s)
            self._logbook.own_round(p, took, each.bits)
            metrics = account.metrics
            tested = {k: v for k, v in metrics.items() if k.startswith(EVALUATION)}
            others = {k: v for k, v in metrics.items() if k not in tested}
            self._evaluated[p] = tested or self._evaluated.get(p, {})
            self._logbook.mixed(record.round, p, replace(account, metrics=others))
            self._exchange.trains(record.round, p, metrics)
            self._logbook.node(record.round, p).sent(int(metrics[FETCHED_BYTES]), 0)
            letters = [(int(n), int(age)) for n, age in under(LETTER_AGE, metrics).items()]
            self._booked += 1
        self.events.append(
            DeviceRound(
                device=p,
                number=ended.number,
                start_s=ended.start_s,
                sends_s=ended.end_s,
                end_s=ended.end_s,
                compute_j=compute_j,
                radio_j=radio_j,
                letters=sorted(letters),
                failed=ended.failed,
            )
        )

    def _close(self) -> RoundRecord:
        """Close the record that is open."""
        left_j = self._planner.battery_j
        battery_j = None if left_j is None else left_j + self._reserved_j
        record = self._logbook.close(self._last_s, battery_j)
        if record.round % self._planner.evaluate_every == 0:
            for p in self._plans.alive:
                if tested := self._evaluated.get(p):
                    self._logbook.node(record.round, p).tested(tested)
        return record

    def _end(self, record: RoundRecord) -> None:
        """Let all mix the last letters and be evaluated: the one beat of the run."""
        grid, _, timeout = self._given
        plans = {
            p: replace(self._plans.mixes(p), evaluate=True, budget_j=0.0)
            for p in self._there(self._plans.alive)
        }
        good, failed = self._exchange.close(grid, plans, self._max_staleness, timeout)
        self._logbook.failures(failed)
        for p, reply in good.items():
            self._logbook.notes(p, reply.notes)
            account = reply.rounds[0]
            self._logbook.mixed(record.round, p, account)
            fetched = account.metrics.get(FETCHED_BYTES, 0.0)
            self._logbook.node(record.round, p).sent(int(fetched), 0)
