"""Rounds without a beat, in the devices' own simulated seconds: an event queue orders them."""

import heapq
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import networkx as nx
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from ..gossip.rule import GossipRule
from ..methods.soft_labels import LABELS
from ..payload.plan import Plan
from ..payload.routing import cut
from ..tracking.events import DeviceRound
from ..tracking.records import RoundRecord
from ..transport import size_bytes
from ..transport.arrays import record_of
from ..transport.messages import pack, unpack
from .energy.own_rounds import OwnBudget, OwnRounds
from .energy.round_budget import Updates
from .letters import LetterExchange
from .logbook import Logbook
from .mixing import Neighbourhood
from .planner import RoundPlanner
from .replies import Reply
from .roster import Roster

SAME = 1e-9
"""Relative difference of times that are taken for equal: rounding is not to order events."""


@dataclass(frozen=True)
class _Letter:
    """What has come from a neighbour."""

    sender: int
    payload: ArrayRecord
    came: int  # rounds that the receiver had begun then
    shares: Mapping[str, float]  # that the sender has dealt out with it, by block


@dataclass
class _Turn:
    """A round of a device, from when it begins."""

    device: int
    number: int
    start_s: float
    budget: OwnBudget
    plan: Plan
    letters: list[_Letter]
    asking: list[RoundRecord] = field(default_factory=list)  # for how well it does at its start

    @property
    def end_s(self) -> float:
        return self.start_s + self.budget.seconds


class EventTime:
    """Devices that never wait: each mixes what has come, trains, publishes, and goes on.

    A round of a device lasts as long as its computing and sending take, by its profile and its
    radio; then what it publishes is there for its neighbours. The order of all that is that of
    simulated seconds, and of equal ones that of partition ids, whatever the engine does.

    The run ends when all devices together have done ``num_rounds`` rounds each on average: as much
    work as that of a synchronous run. A record covers one round a device on average. What it says
    of accuracy is that of each device's model as it was last mixed by then.

    Parameters
    ----------
    planner : RoundPlanner
        Its ``energy`` is :class:`~.energy.own_rounds.OwnRounds`; it has begun.
    roster, logbook, exchange
        Of the run.
    rule : GossipRule
        Says which letters are mixed, see :attr:`.GossipRule.letters`.
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
        exchange: LetterExchange,
        rule: GossipRule,
        *,
        num_rounds: int,
        max_staleness: int,
    ) -> None:
        energy = planner.energy
        assert isinstance(energy, OwnRounds)
        self._planner, self._roster, self._logbook = planner, roster, logbook
        self._exchange, self._energy = exchange, energy
        self._adds_up = rule.letters == "every"
        self._max_staleness = max_staleness
        self._alive = sorted(roster.members)
        self._size = len(self._alive)  # of a record
        self._links()
        self._sizes: dict[int, int] = {}  # of payloads, by partition
        self._num_rounds, self._total = num_rounds, num_rounds * self._size
        bits = planner.payload_bits({}, self._graph)
        self._expected = energy.expect(self._graph, bits, self._total)
        self._begun = dict.fromkeys(self._alive, 0)  # rounds
        self._mean_s = {p: float(energy.full_s[p]) for p in self._alive}  # of a round, a full first
        self._updates: dict[int, Updates] = {
            p: dict.fromkeys(roster.members[p].modalities, planner.local_iterations)
            for p in self._alive
        }
        self._boxes: dict[int, list[_Letter]] = {p: [] for p in self._alive}
        self._kept: dict[int, dict[str, float]] = {p: {} for p in self._alive}
        self._flying: dict[int, _Turn] = {}
        self._queue: list[tuple[float, int]] = []
        self._closed: deque[RoundRecord] = deque()
        self._open_questions: dict[int, int] = {}  # by record: devices that have not told
        self._done = 0
        self.events: list[DeviceRound] = []
        """Rounds that devices have ended since this was last emptied."""

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""
        counts = sorted(self._expected.values())
        each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        return [
            f"Nobody waits: {self._total} rounds of devices, about {each} of each",
            "Without a beat there are no checkpoints: a run that is stopped starts again",
        ]

    @property
    def over(self) -> bool:
        """Whether no device is in a round any more."""
        return not self._flying

    def end(self) -> None:
        """Let the run end with the next round of a device."""
        self._total = 0

    def run(self, grid: Grid, initial: ArrayRecord, timeout: float) -> Iterator[RoundRecord]:
        """Run to the end; yield each record when it is complete, in order.

        Parameters
        ----------
        grid : Grid
            The engine's.
        initial : ArrayRecord
            Blocks that devices start from.
        timeout : float
            Seconds to wait for replies.
        """
        self._given = grid, initial, timeout
        self._logbook.open(1)
        began = time.monotonic()
        now_s = 0.0
        for p in list(self._alive):
            self._begin(p, now_s)
        while self._queue:
            now_s = self._queue[0][0]
            ending: list[_Turn] = []
            while self._queue and self._queue[0][0] <= now_s * (1 + SAME):
                ending.append(self._flying.pop(heapq.heappop(self._queue)[1]))
            replies, failed = self._ask(ending)
            for turn in ending:
                self._end(turn, replies.get(turn.device), failed.get(turn.device, ""))
            self._done += len(ending)
            last = self._done >= self._total
            for turn in ending:
                if not last:
                    self._begin(turn.device, now_s)
            number = self._logbook.records[-1].round
            if self._done >= number * self._size or last or not self._queue:
                record = self._logbook.close(now_s, self._energy.left_j)
                record.seconds, began = time.monotonic() - began, time.monotonic()
                self._closed.append(record)
                if last:
                    self._close(record, ending)
                    break
                if record.round % self._planner.evaluate_every == 0:
                    for turn in self._flying.values():
                        turn.asking.append(record)
                    self._open_questions[record.round] = len(self._flying)
                if self._queue:
                    self._logbook.open(record.round + 1)
            yield from self._complete()
        if (reached := self._logbook.records[-1].round) != self._num_rounds:
            self._logbook.end_at(reached)
        yield from self._complete()

    def _complete(self) -> Iterator[RoundRecord]:
        while self._closed and not self._open_questions.get(self._closed[0].round):
            yield self._closed.popleft()

    # ---- one round of a device --------------------------------------------------------------

    def _begin(self, p: int, now_s: float) -> None:
        """Let a device begin a round with what has come, if its battery pays for it."""
        planner, number = self._planner, self._begun[p] + 1
        bits = planner.payload_bits(self._sizes, self._graph)
        budget = self._energy.one(
            p,
            number,
            self._to_come(p),
            self._graph,
            bits,
            self._exchange.speeds,
            planner.trains(""),
        )
        if budget.flat:
            self._stop(p, budget.flat)
            return
        self._updates[p] = budget.updates
        plan, letters = self._mixing(p)
        plan = replace(
            plan,
            iterations=planner.local_iterations,
            by_modality=budget.updates,
            budget_j=budget.budget_j,
            recipients=budget.receivers,
            steps=self._steps(p) if planner.communicates else {},
        )
        turn = _Turn(p, number, now_s, budget, plan, letters)
        self._begun[p], self._flying[p] = number, turn
        self._mean_s[p] = (float(self._energy.full_s[p]) + turn.end_s) / (1 + number)
        heapq.heappush(self._queue, (turn.end_s, p))

    def _to_come(self, p: int) -> int:
        """Return how many rounds a device may still do, at its pace: one more than is likely."""
        pace = {k: 1 / self._mean_s[k] for k in self._alive}
        left = max(0, self._total - self._done)
        return ceil(left * pace[p] / sum(pace.values())) + 1

    def _mixing(self, p: int) -> tuple[Plan, list[_Letter]]:
        """Return the plan of a device's next round as far as mixing, and the letters for it."""
        number, near, box = self._begun[p] + 1, self._around[p], self._boxes[p]
        plan = Plan(
            server_round=number,
            iterations=0,
            num_rounds=max(self._expected[p], number),
            hand_over=self._planner.hand_over,
        )
        if self._adds_up:
            self._boxes[p] = []
            senders = sorted({letter.sender for letter in box})
            weights = {
                b: (self._kept[p].get(b, 1.0), *(_dealt(box, sender, b) for sender in senders))
                for b in self._roster.members[p].blocks
            }
            return replace(plan, neighbours=tuple(senders), weights=weights), box
        old = number - 1 - self._max_staleness
        box = self._boxes[p] = [letter for letter in box if letter.came >= old]
        there = {letter.sender for letter in box}
        plan = replace(plan, neighbours=near.neighbours, weights=near.weights)
        plan = plan.without([n for n in near.neighbours if n not in there])
        return plan, [letter for letter in box if letter.sender in plan.neighbours]

    def _steps(self, p: int) -> dict[str, float]:
        """Return the mean steps of a round, see :attr:`.Plan.steps`.

        Where letters are mixed again, a slow device weighs the more in the mean that all come to
        the fewer rounds it does, so that its data count as much as others'. Where each counts once
        they do not: a round of it is to come to what others do in the same time.
        """
        updates = {k: self._updates[k] for k in self._alive}
        if not self._adds_up:
            return self._planner.mean_steps(updates)
        full_s = self._energy.full_s
        return self._planner.mean_steps(
            updates, {k: float(full_s[p] / full_s[k]) for k in self._alive}
        )

    def _ask(
        self, turns: Sequence[_Turn], *, closing: bool = False
    ) -> tuple[dict[int, Reply], dict[int, str]]:
        """Have devices do their rounds, and note what they tell of what they have mixed."""
        grid, initial, timeout = self._given
        current = self._logbook.records[-1]
        plans = {
            turn.device: replace(turn.plan, evaluate=closing or bool(turn.asking)) for turn in turns
        }
        letters = {turn.device: _by_sender(turn.letters) for turn in turns}
        kind = "evaluate" if closing else "train"
        good, failed = self._exchange.ask(grid, plans, letters, kind, timeout, initial)
        self._logbook.lost -= good.keys()
        self._logbook.failures(failed)
        for turn in turns:
            for record in turn.asking:
                self._open_questions[record.round] -= 1
            if turn.device in good:
                reply = good[turn.device]
                self._logbook.notes(turn.device, reply.notes)
                for record in turn.asking or [current]:
                    about = replace(turn.plan, server_round=record.round + 1)
                    self._logbook.met({turn.device: about})
                    self._logbook.mixed(record.round, turn.device, reply.rounds[0])
                if not closing:
                    self._exchange.trains(current.round, turn.device, reply)
        return good, failed

    def _end(self, turn: _Turn, reply: Reply | None, failed: str) -> None:
        """Book a round that is over, and let what was published arrive."""
        p, budget = turn.device, turn.budget
        self._energy.book(p, budget)
        bits = self._planner.payload_bits(self._sizes, self._graph)[p] if budget.receivers else 0.0
        self._logbook.own_round(p, budget, float(bits))
        missed = list[int]()
        if reply is None:
            if self._adds_up:
                self._boxes[p] = turn.letters + self._boxes[p]
        else:
            missed = self._deliver(turn, reply.payload)
        self.events.append(
            DeviceRound(
                device=p,
                number=turn.number,
                start_s=turn.start_s,
                sends_s=turn.end_s - budget.sending_s,
                end_s=turn.end_s,
                compute_j=budget.compute_j,
                radio_j=budget.radio_j,
                letters=[(n.sender, turn.number - 1 - n.came) for n in turn.letters],
                missed=missed,
                failed=failed,
            )
        )

    def _deliver(self, turn: _Turn, payload: ArrayRecord) -> list[int]:
        """Put a letter in the boxes of those whom it reaches; return the other neighbours."""
        p, reached = turn.device, list[int]()
        self._sizes[p] = size_bytes(payload)
        kept = dict.fromkeys(self._roster.members[p].blocks, 1.0)
        for r in turn.plan.recipients:
            near = self._around.get(r, Neighbourhood())
            if p not in near.neighbours:
                continue  # it has stopped
            at = 1 + near.neighbours.index(p)
            shares = {block: row[at] for block, row in near.weights.items() if row[at] > 0}
            own = record_of(cut(payload, shares.keys()))
            node = self._logbook.node(self._logbook.records[-1].round, p)
            node.sent(size_bytes(own), size_bytes(own, LABELS))
            if self._planner.losses.loses(turn.number, p, r):
                continue
            letter = _Letter(p, own, self._begun[r], shares)
            others = self._boxes[r]
            if not self._adds_up:
                others = [other for other in others if other.sender != p]
            self._boxes[r] = [*others, letter]
            reached.append(r)
            for block, share in shares.items():
                kept[block] -= share
        self._kept[p] = kept
        return [r for r in sorted(self._graph[p]) if r not in reached]

    # ---- who is there -----------------------------------------------------------------------

    def _links(self) -> None:
        self._graph: nx.Graph
        self._graph, self._around = self._planner.among(self._alive)

    def _stop(self, p: int, why: str) -> None:
        """Let a device stop for good, and go on without the rounds that it was to do."""
        self._logbook.leaves(p, why)
        self._alive.remove(p)
        self._total -= max(0, self._expected[p] - self._begun[p])
        self._links()

    def _close(self, record: RoundRecord, ended: Sequence[_Turn]) -> None:
        """Let all mix and be evaluated for the last time: what they were training is cut off."""
        turns = [replace(turn, plan=_without_training(turn.plan)) for turn in self._flying.values()]
        for turn in ended:
            plan, letters = self._mixing(turn.device)
            turns.append(replace(turn, plan=plan, letters=letters, asking=[]))
        for turn in turns:
            turn.asking = [*turn.asking, record]
        self._open_questions[record.round] = len(turns)
        self._flying, self._queue = {}, []
        replies, _ = self._ask(sorted(turns, key=lambda turn: turn.device), closing=True)
        self._exchange.ends(replies)


def _without_training(plan: Plan) -> Plan:
    return replace(plan, iterations=0, by_modality={}, budget_j=0.0, recipients=(), steps={})


def _dealt(letters: Sequence[_Letter], sender: int, block: str) -> float:
    """Return the sum of the shares of a block in a sender's letters."""
    return sum(letter.shares.get(block, 0.0) for letter in letters if letter.sender == sender)


def _by_sender(letters: Sequence[_Letter]) -> dict[int, ArrayRecord]:
    """Return what a device gets of each sender: its letter, or of several the weighted mean."""
    return {sender: _together(letters, sender) for sender in {x.sender for x in letters}}


def _together(letters: Sequence[_Letter], sender: int) -> ArrayRecord:
    own = [letter for letter in letters if letter.sender == sender]
    if len(own) == 1:
        return own[0].payload
    each = [unpack(letter.payload) for letter in own]
    mean = dict(each[-1])
    for block in {block: None for letter in own for block in letter.shares}:
        pairs = [
            (x.shares[block], y[block]) for x, y in zip(own, each, strict=True) if block in x.shares
        ]
        parts = [share * vector for share, vector in pairs]
        mean[block] = torch.stack(parts).sum(dim=0) / _dealt(own, sender, block)
    return pack(mean)
