"""The devices that a process hosts: a round is done for all at once, on their rows."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..base.options import Group
from ..gossip.aggregation.mean import Mean
from ..gossip.aggregation.rule import AggregationRule
from ..payload.blocks import LARGEST, is_carried
from ..payload.plan import Inbox, Outcome, Payload, Plan
from ..payload.routing import cut, wanted
from .batch import pooled
from .learner import Kept, Learner
from .mixing import Taken
from .nonfinite import check_finite
from .rows import Layout, MakeMatrix, Rows, layout_of, layouts
from .together import Likeness, Turn, finish_together, likeness, train_together

STACK = 64
"""Devices that train together at most: on a CPU more are no faster, and take memory."""


class Crew:
    """The devices of a process, from round to round.

    Parameters
    ----------
    learners : mapping of int to Learner
        By partition id, with the state of the round before.
    every : sequence of Layout, optional
        Those of all processes' devices; by default of these alone.
    make : callable, optional
        Makes or opens the matrices.
    before : (int, bool), optional
        The matrices hold the devices' rows already, after so many rounds, in the last of which
        nothing was published, or something was; otherwise the learners' numbers are copied there.
    """

    def __init__(
        self,
        learners: Mapping[int, Learner],
        every: Sequence[Layout] | None = None,
        make: MakeMatrix | None = None,
        before: tuple[int, bool] | None = None,
    ) -> None:
        self.learners = dict(sorted(learners.items()))
        self.published: dict[int, Payload] = {}
        """What devices published in the last round, by partition id: empty where nobody asks."""
        self.reports: dict[int, list[float]] = {}
        """What they reported besides, see :meth:`.Learner.report`."""
        self.carried: dict[int, Payload] = {}
        """What they published for others, as couriers."""
        self._carried_sound = True
        self._merging = False  # what was published last is of the final merge
        if every is None:
            every = layouts({p: layout_of(x) for p, x in self.learners.items()}, self.learners)
        self.rows = Rows(every, self.learners, make or self._matrices, *(before or (0, False)))
        for own in self.rows.own:
            for p in own:
                flat = self.learners[p].flat
                stay = flat.move_to if before is None else flat.stand_at
                stay(*self.rows.now(p))
                flat.attach()  # what it had before is let go
            self._pool([self.learners[p] for p in own])
        self.rows.measure()

    def _matrices(self, number: int, layout: Layout) -> tuple[Tensor, Tensor]:
        device = self.learners[layout.partitions[0]].device
        shape = len(layout.partitions), layout.width
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def _pool(self, learners: Sequence[Learner]) -> None:
        """Bring the training samples of devices with one layout together."""
        if learners and not any(learner.train_data.present for learner in learners):
            pools = pooled([learner.train_data for learner in learners])
            for learner, pool in zip(learners, pools, strict=True):
                learner.pool = pool

    def run(
        self, plans: Mapping[int, Plan], told: Callable[[int], None] = lambda done: None
    ) -> dict[int, Outcome | Exception]:
        """Run a round of the devices that have a plan.

        Parameters
        ----------
        plans : mapping of int to Plan
            By partition id; the neighbours of each have published in the round before.
        told : callable
            Called with the number of devices that have just been done.

        Returns
        -------
        dict of int to Outcome or Exception
            By partition id. A device that fails keeps the state of the round before, and publishes
            nothing.
        """
        plain = self._plain(plans)
        before = {p: self.learners[p].kept() for p in plans}
        passing: dict[int, Payload] = {}
        if plain:
            passing = self._for_others(plans)
            for p, plan in plans.items():
                self.learners[p].note_own(plan)
            self._mix(plans)
        for p, learner in self.learners.items():
            go = learner.flat.stand_at if plain else learner.flat.move_to
            go(*self.rows.next(p))
        results: dict[int, Outcome | Exception] = {}
        going: dict[int, Turn] = {}
        for p, plan in plans.items():
            try:
                going[p] = Turn(self.learners[p], plan, self._begin(p, plan, plain))
                self.learners[p].remember(plan)
            except Exception as error:  # its result says so; the others go on
                results[p] = error
        taken = self._train(going, before, results, told)
        for p, steps in taken.items():
            self.learners[p].normalise(steps)
        self.rows.turn()
        for p, turn in going.items():
            if p not in results:
                try:
                    results[p] = self._end(p, turn, taken.get(p), plain)
                except Exception as error:
                    results[p] = error
        for p, result in results.items():
            if isinstance(result, Exception):
                self.rows.take_back(p)
                self.learners[p].take_back(before[p])
        closing = bool(plans) and not any(plan.iterations for plan in plans.values())
        if not closing:  # a closing message publishes nothing
            good = {p: r for p, r in results.items() if not isinstance(r, Exception)}
            self.published = {p: r.payload for p, r in good.items()}
            self.reports = {p: self.learners[p].report() for p in good}
            self._merging = any(plan.merges for plan in plans.values())
            self._carry(passing if plain else self.published)
            self.rows.publish()
        return dict(sorted(results.items()))

    def _mix(self, plans: Mapping[int, Plan]) -> None:
        """Mix all rows, as the aggregation rule weighs them."""
        rule: AggregationRule = Mean(Group())
        for p, plan in plans.items():  # all have the same rule, and the same round
            rule = self.learners[p].aggregation.at(self.learners[p].progress(plan))
            break
        mixers = {p: learner.mixer for p, learner in self.learners.items()}
        shares = self.rows.mix(plans, self.carried, rule, {p: m.mixed for p, m in mixers.items()})
        for p in plans:
            mixers[p].shares = shares.get(p, {})
            if mixers[p].remembers:
                matrix, row = self.rows.next(p)
                for block, vector in self.rows.blocks(p, matrix[row]).items():
                    mixers[p].note_mixed(block, vector)

    def _train(
        self,
        going: dict[int, Turn],
        before: Mapping[int, Kept],
        results: dict[int, Outcome | Exception],
        told: Callable[[int], None],
    ) -> dict[int, Taken]:
        """Train all that have something to train; note the errors of those that fail."""
        taken: dict[int, Taken] = {}

        def one_by_one(devices: Sequence[int], error: Exception) -> None:
            """Find out who is to blame for an error."""
            for p in devices:
                found = self._retry(going, p, before[p]) if len(devices) > 1 else error
                taken.pop(p, None)
                if isinstance(found, Exception):
                    results[p] = found
                else:
                    taken[p] = found

        training = {p: turn for p, turn in going.items() if _trains(turn)}
        told(len(going) - len(training))
        alike = {p: likeness(turn.learner, turn.plan) or p for p, turn in training.items()}
        for devices in _grouped(training, lambda p: _method(alike[p])):
            trained: list[int] = []
            for some in _cut(devices):
                stacks = _grouped(some, alike.__getitem__)
                try:
                    found = train_together([[going[p] for p in stack] for stack in stacks])
                    taken |= dict(zip(chain(*stacks), found, strict=True))
                    trained += some
                except Exception as error:
                    one_by_one(some, error)
                told(len(some))
            for some in _cut(trained):
                try:
                    finish_together([going[p] for p in some])
                except Exception as error:
                    one_by_one(some, error)
        return taken

    def _retry(self, going: dict[int, Turn], p: int, before: Kept) -> Taken | Exception:
        """Begin a device's round again and train it by itself: whoever is to blame fails again."""
        learner, plan = self.learners[p], going[p].plan
        learner.take_back(before)
        self.rows.begin_again(p)
        try:
            with learner.in_round(plan):
                going[p] = Turn(learner, plan, learner.begin(plan, self._inbox(p, plan)))
                learner.remember(plan)
                learner.before_training(plan, going[p].inbox)
            (taken,) = train_together([[going[p]]])
            finish_together([going[p]])
        except Exception as error:
            return error
        return taken

    def _plain(self, plans: Mapping[int, Plan]) -> bool:
        """Return whether rows can be mixed as they are."""
        sound = self.sound and self.foreign_sound
        return sound and all(self.learners[p].plain for p in plans)

    @property
    def sound(self) -> bool:
        """Whether all that the own devices have published is in range."""
        return self.rows.sound and self._carried_sound

    foreign_sound: bool = True
    """Whether what other processes' devices have published is known to be in range."""

    def stands(self) -> bool:
        """Return whether all devices are where their rows are: one that begins afresh is not."""
        return all(x.flat.matrix is self.rows.now(p)[0] for p, x in self.learners.items())

    def load(self, payloads: Mapping[int, Payload]) -> None:
        """Go on from what devices published at an earlier time, whose state they have."""
        self.published = {}
        self._carry(payloads)
        for p, payload in payloads.items():
            learner = self.learners[p]
            own = self._payload(p) if learner.listens else {}
            self.published[p] = own if learner.plain else payload
        self.reports = {p: self.learners[p].report() for p in payloads}

    def hear(self, p: int, report: list[float], entries: Payload, carried: Payload) -> None:
        """Take up what another process's device has published, besides its row."""
        self.reports[p], self.carried[p] = report, carried
        self.published[p] = entries and self.rows.blocks(p, self.rows.published(p)) | entries

    def besides(self, p: int) -> Payload:
        """Return what an own device has published besides its row; all where that is not mixed."""
        told = self.published.get(p, {})
        if not self.learners[p].plain:
            return told
        return {k: x for k, x in told.items() if k not in self.learners[p].block_names}

    # ---- before training --------------------------------------------------------------------

    def _begin(self, p: int, plan: Plan, plain: bool) -> Inbox:
        learner = self.learners[p]
        if plain and not plan.merged:
            learner.hear([self.reports[n] for n in plan.neighbours], plan)
        if plain and not learner.listens and not plan.evaluate:  # nothing asked of it, or drawn
            learner.enter(plan)
            learner.rejected, learner.measured = [], dict(learner.mixer.dropped())
            return {}
        inbox = self._inbox(p, plan) if learner.listens or not plain else {}
        with learner.in_round(plan):
            if plain:
                learner.begin_mixed(
                    plan, inbox, self.rows.apart(p, plan, self.carried) if plan.evaluate else None
                )
            else:
                inbox = learner.begin(plan, inbox)
            if learner.trains(plan):
                learner.before_training(plan, inbox)
        return inbox

    def _for_others(self, plans: Mapping[int, Plan]) -> dict[int, Payload]:
        """Return what couriers publish in this round: copies of rows that a next one overwrites."""
        found: dict[int, Payload] = {}
        for p, plan in plans.items():
            senders = {there.via for there in plan.carries}
            senders |= {n for mean in plan.averages for n in mean.origins}
            if senders and plan.iterations:
                inbox = {n: self.payload(n) for n in senders}
                own, _ = self.learners[p].for_others(plan, inbox)  # all is in range
                found[p] = {name: x.clone() for name, x in own.items()}
        return found

    def _carry(self, payloads: Mapping[int, Payload]) -> None:
        """Take note of what couriers among the own devices have published for others."""
        self.carried = {
            p: {k: x for k, x in payload.items() if is_carried(k)}
            for p, payload in payloads.items()
        }
        numbers = [x for own in self.carried.values() for x in own.values()]
        self._carried_sound = all(
            bool(torch.linalg.vector_norm(x) <= LARGEST) for x in numbers if x.is_floating_point()
        )

    def _inbox(self, p: int, plan: Plan) -> Inbox:
        """Return what a device gets of its neighbours."""
        inbox: Inbox = {}
        for position, n in enumerate(plan.neighbours, start=1):
            payload = self.payload(n)
            inbox[n] = cut(payload, wanted(plan, position, p, payload))
        return inbox

    # ---- after training ---------------------------------------------------------------------

    def _end(self, p: int, turn: Turn, taken: Taken | None, plain: bool) -> Outcome:
        learner, plan = turn.learner, turn.plan
        learner.flat.stand_at(*self.rows.now(p))
        if not plan.iterations:
            return Outcome({}, learner.measured, learner.rejected)
        if not plain:
            return learner.finish(plan, turn.inbox, taken)
        if not self.rows.in_range(p):
            check_finite(plan.server_round, learner.flat.copy())
        heard = [self.reports[n] for n in plan.neighbours]
        near = {} if plan.merged else learner.near(heard)
        payload = self._payload(p) if learner.listens else {}
        return Outcome(payload, learner.measured | near, learner.rejected)

    def payload(self, p: int) -> Payload:
        """Return what a device, of any process, published in the last round."""
        told = self.published[p]
        if not told:
            told = self.rows.blocks(p, self.rows.published(p))
            if p in self.learners:
                told = self._of(p, told)
            told |= self._reported(p)  # not what its learner would report now
        return told | self.carried.get(p, {})

    def _reported(self, p: int) -> Payload:
        """Return what a device, of any process, published of its report in the last round."""
        if self._merging:
            return {}
        learner = next(iter(self.learners.values()))
        return learner.reported(self.reports[p])

    def _payload(self, p: int) -> Payload:
        """Return what a device publishes of what it has now."""
        matrix, row = self.rows.now(p)
        return self._of(p, self.rows.blocks(p, matrix[row]))

    def _of(self, p: int, blocks: Payload) -> Payload:
        learner = self.learners[p]
        return {name: blocks[name] for name in learner.block_names} | learner.extras()


def _trains(turn: Turn) -> bool:
    return bool(turn.plan.iterations and turn.learner.trains(turn.plan))


def _method(like: Likeness | int) -> Hashable:
    """Return what devices have in common that do together what comes after training."""
    return like.method if isinstance(like, Likeness) else like


def _grouped(devices: Iterable[int], by: Callable[[int], Hashable]) -> list[list[int]]:
    """Return devices in groups with an equal key, in their order."""
    found: dict[Hashable, list[int]] = {}
    for p in devices:
        found.setdefault(by(p), []).append(p)
    return [*found.values()]


def _cut(devices: Sequence[int]) -> list[Sequence[int]]:
    """Return stacks of devices."""
    return [devices[start : start + STACK] for start in range(0, len(devices), STACK)]
