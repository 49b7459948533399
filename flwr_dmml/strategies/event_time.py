"""Rounds without a beat, in the devices' own simulated seconds: an event queue orders them."""

import heapq
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

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
from ..transport.messages import join, pack, parted, read_plan, unpack, write_plan
from .energy.own_rounds import OwnBudget
from .letters import LetterExchange
from .logbook import Logbook
from .mixing import Neighbourhood
from .own_plans import OwnPlans
from .planner import RoundPlanner
from .replies import Reply
from .roster import Roster

SAME = 1e-9
"""Relative difference of times that are taken for equal: rounding is not to order events."""


@dataclass(frozen=True)
class _Letter:
    """What has come from a neighbour."""

    sender: int
    number: int  # of the sender's round
    payload: ArrayRecord  # with blocks for others
    came: int  # rounds that the receiver had begun then
    shares: Mapping[str, float]  # that the sender has dealt out with it, by block

    @cached_property
    def own(self) -> ArrayRecord:
        """What of the payload is for the receiver."""
        return record_of(cut(self.payload, self.shares.keys()))


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
        self._planner, self._roster, self._logbook = planner, roster, logbook
        self._exchange = exchange
        self._adds_up = rule.letters == "every"
        self._max_staleness, self._num_rounds = max_staleness, num_rounds
        self._plans = OwnPlans(
            planner, roster, logbook, num_rounds=num_rounds, adds_up=self._adds_up
        )
        self._boxes: dict[int, list[_Letter]] = {p: [] for p in self._plans.alive}
        self._kept: dict[int, dict[str, float]] = {p: {} for p in self._plans.alive}
        self._flying: dict[int, _Turn] = {}
        self._queue: list[tuple[float, int]] = []
        self._closed: deque[RoundRecord] = deque()
        self._open_questions: dict[int, int] = {}  # by record: devices that have not told
        self.events: list[DeviceRound] = []
        """Rounds that devices have ended since this was last emptied."""

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""
        return [self._plans.summary()]

    @property
    def over(self) -> bool:
        """Whether no device is in a round any more."""
        return not self._flying

    def end(self) -> None:
        """Let the run end with the next round of a device."""
        self._plans.end()

    def run(self, grid: Grid, initial: ArrayRecord, timeout: float) -> Iterator[RoundRecord]:
        """Run to the end; yield each record when it is complete, in order.

        It goes on from where :meth:`load_state` has taken it.

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
        plans, began = self._plans, time.monotonic()
        if not self._queue:
            self._logbook.open(1)
            for p in list(plans.alive):
                self._begin(p, 0.0)
        yield from self._complete()
        while self._queue:
            now_s = self._queue[0][0]
            ending: list[_Turn] = []
            while self._queue and self._queue[0][0] <= now_s * (1 + SAME):
                ending.append(self._flying.pop(heapq.heappop(self._queue)[1]))
            replies, failed = self._ask(ending)
            for turn in ending:
                self._end(turn, replies.get(turn.device), failed.get(turn.device, ""))
            plans.done += len(ending)
            last = plans.done >= plans.total
            for turn in ending:
                if not last:
                    self._begin(turn.device, now_s)
            number = self._logbook.records[-1].round
            if plans.done >= number * plans.size or last or not self._queue:
                record = self._logbook.close(now_s, self._planner.battery_j)
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
        budget = self._plans.budget(p, self._exchange.speeds)
        if budget.flat:
            self._plans.stop(p, budget.flat)
            return
        plan, letters = self._mixing(p)
        plan = self._plans.begin(p, plan, budget)
        turn = _Turn(p, plan.server_round, now_s, budget, plan, letters)
        self._flying[p] = turn
        full_s = float(self._plans.energy.full_s[p])
        self._plans.mean_s[p] = (full_s + turn.end_s) / (1 + turn.number)
        heapq.heappush(self._queue, (turn.end_s, p))

    def _mixing(self, p: int) -> tuple[Plan, list[_Letter]]:
        """Return the plan of a device's next round as far as mixing, and the letters for it."""
        plan, box = self._plans.mixes(p), self._boxes[p]
        if self._adds_up:
            self._boxes[p] = []
            senders = sorted({letter.sender for letter in box})
            weights = {
                b: (self._kept[p].get(b, 1.0), *(_dealt(box, sender, b) for sender in senders))
                for b in self._roster.members[p].blocks
            }
            return replace(plan, neighbours=tuple(senders), weights=weights), box
        old = plan.server_round - 1 - self._max_staleness
        box = self._boxes[p] = [letter for letter in box if letter.came >= old]
        there = {letter.sender for letter in box}
        plan = plan.without([n for n in plan.neighbours if n not in there])
        return plan, [letter for letter in box if letter.sender in plan.neighbours]

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
        self._plans.energy.book(p, budget)
        bits = self._plans.bits[p] if budget.receivers else 0.0
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
        self._plans.sizes[p] = size_bytes(payload)
        kept = dict.fromkeys(self._roster.members[p].blocks, 1.0)
        for r in turn.plan.recipients:
            near = self._plans.around.get(r, Neighbourhood())
            if p not in near.neighbours:
                continue  # it has stopped
            at = 1 + near.neighbours.index(p)
            shares = {block: row[at] for block, row in near.weights.items() if row[at] > 0}
            letter = _Letter(p, turn.number, payload, self._plans.begun[r], shares)
            node = self._logbook.node(self._logbook.records[-1].round, p)
            node.sent(size_bytes(letter.own), size_bytes(letter.own, LABELS))
            if self._planner.losses.loses(turn.number, p, r):
                continue
            others = self._boxes[r]
            if not self._adds_up:
                others = [other for other in others if other.sender != p]
            self._boxes[r] = [*others, letter]
            reached.append(r)
            for block, share in shares.items():
                kept[block] -= share
        self._kept[p] = kept
        return [r for r in sorted(self._plans.graph[p]) if r not in reached]

    # ---- the end, and checkpoints ------------------------------------------------------------

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

    @property
    def payloads(self) -> dict[int, ArrayRecord]:
        """What devices have published and somebody may still mix, by partition: the newest first.

        Several of a device are one record, see :func:`~..transport.messages.join`.
        """
        there = self._letters()
        return {p: record_of(join(own[n] for n in sorted(own)[::-1])) for p, own in there.items()}

    def state(self) -> dict[str, Any]:
        """Return what goes on from here besides the payloads, as JSON."""
        turns = [
            {
                "device": turn.device,
                "number": turn.number,
                "start_s": turn.start_s,
                "budget": asdict(turn.budget),
                "plan": dict(write_plan(turn.plan, "")),
                "letters": [_written(letter) for letter in turn.letters],
                "asking": [record.round for record in turn.asking],
            }
            for turn in self._flying.values()
        ]
        return {
            "plans": self._plans.state(),
            "published": {str(p): sorted(own)[::-1] for p, own in self._letters().items()},
            "boxes": {str(p): list(map(_written, box)) for p, box in self._boxes.items()},
            "kept": {str(p): kept for p, kept in self._kept.items()},
            "turns": turns,
            "closed": [record.round for record in self._closed],
            "open_questions": {str(t): n for t, n in self._open_questions.items()},
        }

    def load_state(self, state: Mapping[str, Any], payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from what :meth:`state` gave, with the payloads of that time.

        The logbook has its records again.
        """
        there: dict[tuple[int, int], ArrayRecord] = {}
        for p, numbers in state["published"].items():
            each = parted(payloads[int(p)], len(numbers))
            there |= {(int(p), n): record_of(own) for n, own in zip(numbers, each, strict=True)}

        def read(letters: Sequence[Mapping[str, Any]]) -> list[_Letter]:
            return [_Letter(**own, payload=there[own["sender"], own["number"]]) for own in letters]

        records = self._logbook.records
        self._plans.load_state(state["plans"])
        self._boxes = {int(p): read(box) for p, box in state["boxes"].items()}
        self._kept = {int(p): kept for p, kept in state["kept"].items()}
        turns = [
            _Turn(
                device=own["device"],
                number=own["number"],
                start_s=own["start_s"],
                budget=OwnBudget.read(own["budget"]),
                plan=read_plan(own["plan"]),
                letters=read(own["letters"]),
                asking=[records[number - 1] for number in own["asking"]],
            )
            for own in state["turns"]
        ]
        self._flying = {turn.device: turn for turn in turns}
        self._queue = sorted((turn.end_s, turn.device) for turn in turns)  # which is a heap
        self._closed = deque(records[number - 1] for number in state["closed"])
        self._open_questions = {int(t): n for t, n in state["open_questions"].items()}

    def _letters(self) -> dict[int, dict[int, ArrayRecord]]:
        """Return the payloads of all letters that are on their way, by sender and its round."""
        boxes = [*self._boxes.values(), *(turn.letters for turn in self._flying.values())]
        found: dict[int, dict[int, ArrayRecord]] = {}
        for letter in (letter for box in boxes for letter in box):
            found.setdefault(letter.sender, {})[letter.number] = letter.payload
        return found


def _written(letter: _Letter) -> dict[str, Any]:
    """Return a letter without its payload, as JSON."""
    own = {"sender": letter.sender, "number": letter.number, "came": letter.came}
    return {**own, "shares": dict(letter.shares)}


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
        return own[0].own
    each = [unpack(letter.own) for letter in own]
    mean = dict(each[-1])
    for block in {block: None for letter in own for block in letter.shares}:
        pairs = [
            (x.shares[block], y[block]) for x, y in zip(own, each, strict=True) if block in x.shares
        ]
        parts = [share * vector for share, vector in pairs]
        mean[block] = torch.stack(parts).sum(dim=0) / _dealt(own, sender, block)
    return pack(mean)
