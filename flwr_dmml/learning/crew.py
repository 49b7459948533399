"""The devices that a process hosts: their parameters are rows, and a round is done for all at once.

What a device publishes stays where it is, its row of one of two matrices: while a round writes the
new rows into the other one, the neighbours read it. Nothing is packed, sent or copied.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..payload.blocks import LARGEST
from ..payload.flat import Flat
from ..payload.plan import Inbox, Outcome, Payload, Plan
from ..payload.routing import cut, wanted
from .batch import pooled, view_of
from .learner import Learner
from .mixing import Taken, disagreement
from .nonfinite import check_finite
from .together import Turn, likeness, train_together

STACK = 64
"""Devices of a stack at most: on a CPU more are no faster, and take memory."""


@dataclass
class Kind:
    """Devices with one layout: rows of one matrix, and of the one that the next round writes."""

    partitions: list[int]
    flat: Flat  # of the first
    now: Tensor  # [device, width]
    next: Tensor
    sent: Tensor = field(init=False)  # the one that holds what was last published
    row: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sent = self.now
        self.row = {partition: k for k, partition in enumerate(self.partitions)}


@dataclass(frozen=True)
class _Mixing:
    """Who mixes a run of a kind's columns with whom."""

    columns: slice
    tables: list[tuple[Kind, slice]]  # that hold the blocks there, one below the other
    rows: Tensor  # [device, 1 + neighbours] int64, of these tables; the own first
    weights: Tensor  # [device, 1 + neighbours]


class Crew:
    """The devices of a process, from round to round.

    Parameters
    ----------
    learners : mapping of int to Learner
        By partition id, with the state of the round before.
    """

    def __init__(self, learners: Mapping[int, Learner]) -> None:
        self.learners = dict(learners)
        self.published: dict[int, Payload] = {}
        """What each device published in the last round, by partition id."""
        self._reports: dict[int, list[float]] = {}
        self._kinds: list[Kind] = []
        self._kind_of: dict[int, Kind] = {}
        self._known: dict[int, list[tuple[int, Plan]]] = {}  # by the id of a kind
        self._mixings: dict[int, list[_Mixing]] = {}
        self._norms: dict[int, Tensor] = {}
        by_layout: dict[Hashable, list[int]] = {}
        for partition, learner in sorted(self.learners.items()):
            flat = learner.flat
            key = (
                tuple((name, s.start, s.stop) for name, s in flat.slices.items()),
                flat.vector.device,
            )
            by_layout.setdefault(key, []).append(partition)
        for partitions in by_layout.values():
            first = self.learners[partitions[0]].flat
            shape = len(partitions), first.matrix.shape[1]
            now, other = (torch.zeros(shape, device=first.matrix.device) for _ in range(2))
            kind = Kind(partitions, first, now, other)
            for row, partition in enumerate(partitions):
                self.learners[partition].flat.move_to(now, row)
                self._kind_of[partition] = kind
            self._kinds.append(kind)
            self._pool([self.learners[p] for p in partitions])
        self.measure()

    def _pool(self, learners: list[Learner]) -> None:
        """Bring the training samples of devices with one layout together."""
        if any(learner.train_data.present for learner in learners):
            return
        counts = [len(learner.train_data) for learner in learners]
        for learner, pool, count in zip(
            learners, pooled([x.train_data for x in learners]), counts, strict=True
        ):
            learner.pool, learner.train_data = pool, view_of(pool, count)

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
        plain = all(self.learners[p].plain for p in plans) and self._sound()
        if plain:
            self._mix_rows(plans)
        results: dict[int, Outcome | Exception] = {}
        going: dict[int, Turn] = {}
        before = {p: self.learners[p].kept() for p in plans}
        for kind in self._kinds:
            for row, partition in enumerate(kind.partitions):
                flat = self.learners[partition].flat
                if plain:
                    flat.stand_at(kind.next, row)
                else:
                    flat.move_to(kind.next, row)
        for p, plan in plans.items():
            learner = self.learners[p]
            try:
                going[p] = Turn(learner, plan, self._begin(p, plan, plain))
            except Exception as error:  # its result says so; the others go on
                results[p] = error
        stacks: dict[Hashable, list[int]] = {}
        for p, turn in going.items():
            if turn.plan.iterations and turn.learner.trains(turn.plan):
                stacks.setdefault(likeness(turn.learner, turn.plan) or p, []).append(p)
        taken: dict[int, Taken] = {}
        told(len(plans) - sum(map(len, stacks.values())))
        for stack in stacks.values():
            for start in range(0, len(stack), STACK):
                some = stack[start : start + STACK]
                try:
                    found = train_together([going[p] for p in some])
                    taken |= dict(zip(some, found, strict=True))
                except Exception as error:
                    results |= dict.fromkeys(some, error)
                told(len(some))
        for kind in self._kinds:
            kind.now, kind.next = kind.next, kind.now
        self.measure()
        for p, turn in going.items():
            if p not in results:
                try:
                    results[p] = self._end(p, turn, taken.get(p), plain)
                except Exception as error:
                    results[p] = error
        for p, result in results.items():
            if isinstance(result, Exception):
                kind, row = self._kind_of[p], self._kind_of[p].row[p]
                kind.now[row] = kind.next[row]
                self._norms[id(kind)][row] = torch.linalg.vector_norm(kind.now[row])
                self.learners[p].take_back(before[p])
        good = {p: r for p, r in results.items() if not isinstance(r, Exception)}
        if any(plan.iterations for plan in plans.values()):  # the closing message publishes nothing
            self.published = {p: r.payload for p, r in good.items()}
            for kind in self._kinds:
                kind.sent = kind.now
        self._reports = {p: self._report(p) for p in good}
        return dict(sorted(results.items()))

    def load(self, payloads: Mapping[int, Payload]) -> None:
        """Go on from what devices published at an earlier time, whose state they have."""
        self.published = {}
        for p, payload in payloads.items():
            learner = self.learners[p]
            own = self._payload(p, self._kind_of[p].now) if learner.listens else {}
            self.published[p] = own if learner.plain else payload
        self._reports = {p: self._report(p) for p in payloads}

    # ---- before training --------------------------------------------------------------------

    def _begin(self, p: int, plan: Plan, plain: bool) -> Inbox:
        learner = self.learners[p]
        if not plain:
            with learner.in_round(plan):
                inbox = learner.begin(plan, self._inbox(p, plan))
                if learner.trains(plan):
                    learner.before_training(plan, inbox)
            return inbox
        if not learner.listens and not plan.evaluate:  # nothing is asked of it, or drawn
            learner.server_round, learner.measured, learner.rejected = plan.server_round, {}, []
            return {}
        inbox = self._inbox(p, plan) if learner.listens else {}
        with learner.in_round(plan):
            apart = self._disagreement(p, plan) if plan.evaluate else None
            learner.begin_mixed(plan, inbox, apart)
            if learner.trains(plan):
                learner.before_training(plan, inbox)
        return inbox

    def _inbox(self, p: int, plan: Plan) -> Inbox:
        """Return what a device gets of its neighbours."""
        return {
            n: cut(self.published[n], wanted(plan, at, p, self.published[n]))
            for at, n in enumerate(plan.neighbours, start=1)
        }

    # ---- rows -------------------------------------------------------------------------------

    @torch.no_grad()
    def _mix_rows(self, plans: Mapping[int, Plan]) -> None:
        """Write the weighted means of rows into the next matrices; others stay as they are."""
        for kind in self._kinds:
            for mixing in self._mixing_of(kind, plans):
                parts = [k.now[:, columns] for k, columns in mixing.tables]
                table = parts[0] if len(parts) == 1 else torch.cat(parts)
                kind.next[:, mixing.columns] = F.embedding_bag(
                    mixing.rows, table, mode="sum", per_sample_weights=mixing.weights
                )

    def _mixing_of(self, kind: Kind, plans: Mapping[int, Plan]) -> list[_Mixing]:
        """Return how a kind's columns are mixed: as in the round before, where nothing changes."""
        asked = [(p, plans.get(p, _NONE)) for p in kind.partitions]
        key = id(kind)
        known = self._known.get(key)
        if known is not None and all(
            old.weights is new.weights and old.neighbours == new.neighbours
            for (_, old), (_, new) in zip(known, asked, strict=True)
        ):
            return self._mixings[key]
        self._known[key] = asked
        self._mixings[key] = list(self._new_mixings(kind, dict(asked)))
        return self._mixings[key]

    def _new_mixings(self, kind: Kind, plans: Mapping[int, Plan]) -> Iterator[_Mixing]:
        width = kind.now.shape[1]
        if not any(plan.weights for plan in plans.values()):
            yield _as_it_is(kind, slice(0, width))
            return
        for block, columns in kind.flat.slices.items():
            rows = [_row_of(plan, block) for plan in plans.values()]
            if not any(others for _, others in rows):
                yield _as_it_is(kind, columns)
                continue
            tables: list[tuple[Kind, slice]] = []
            first: dict[int, int] = {}
            at = 0
            for other in self._kinds:
                if block in other.flat.slices:
                    tables.append((other, other.flat.slices[block]))
                    first[id(other)] = at
                    at += len(other.partitions)

            def place(p: int, first: Mapping[int, int] = first) -> int:
                found = self._kind_of[p]
                return first[id(found)] + found.row[p]

            count = 1 + max(len(others) for _, others in rows)
            index = torch.empty(len(rows), count, dtype=torch.int64)
            weights = torch.zeros(len(rows), count)
            for k, (p, (own, others)) in enumerate(zip(plans, rows, strict=True)):
                index[k] = place(p)
                weights[k, 0] = own
                for n, (neighbour, weight) in enumerate(others, start=1):
                    index[k, n], weights[k, n] = place(neighbour), weight
            device = kind.now.device
            yield _Mixing(columns, tables, index.to(device), weights.to(device))
        if kind.flat.length < width:
            yield _as_it_is(kind, slice(kind.flat.length, width))

    def _disagreement(self, p: int, plan: Plan) -> float | None:
        """Return ``sum_j w_kj ||x_k - x_j||^2`` over all that a device mixes."""
        if not plan.neighbours:
            return None
        kind, total = self._kind_of[p], 0.0
        own = kind.now[kind.row[p]]
        for block, columns in kind.flat.slices.items():
            _, others = _row_of(plan, block)
            if others:
                near = [self._row_of_block(n, block) for n, _ in others]
                weights = own.new_tensor([[weight for _, weight in others]])
                total += disagreement(own[None, columns], torch.stack(near)[None], weights)
        return total

    def _row_of_block(self, p: int, block: str) -> Tensor:
        kind = self._kind_of[p]
        return kind.now[kind.row[p], kind.flat.slices[block]]

    def _sound(self) -> bool:
        """Return whether all that is published can be mixed without a further look."""
        return all(bool((self._norms[id(kind)] <= LARGEST).all()) for kind in self._kinds)

    # ---- after training ---------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> None:
        """Look at every new row once: its norm is at least its largest value, and shows a NaN."""
        for kind in self._kinds:
            self._norms[id(kind)] = torch.linalg.vector_norm(kind.now, dim=1).cpu()

    def _end(self, p: int, turn: Turn, taken: Taken | None, plain: bool) -> Outcome:
        learner, plan, kind = turn.learner, turn.plan, self._kind_of[p]
        if not plan.iterations:
            return Outcome({}, learner.measured, learner.rejected)
        if not plain:
            return learner.finish(plan, turn.inbox, taken)
        row = kind.row[p]
        if not self._norms[id(kind)][row] <= LARGEST:
            check_finite(plan.server_round, learner.flat.copy())
        near = [self._reports[n] for n in plan.neighbours]
        payload: Payload = {}
        if learner.listens:
            payload = self._payload(p, kind.now)
        metrics = learner.measured | learner.speedometer.near_of(learner.modalities, near)
        return Outcome(payload, metrics, learner.rejected)

    def _report(self, p: int) -> list[float]:
        learner = self.learners[p]
        report: list[float] = learner.speedometer.report(learner.modalities).tolist()
        return report

    def payload(self, p: int) -> Payload:
        """Return what a device published in the last round."""
        return self.published[p] or self._payload(p, self._kind_of[p].sent)

    def _payload(self, p: int, matrix: Tensor) -> Payload:
        kind, learner = self._kind_of[p], self.learners[p]
        row, slices = matrix[kind.row[p]], kind.flat.slices
        return {name: row[slices[name]] for name in learner.block_names} | learner.told()


_NONE = Plan(0, 0)


def _row_of(plan: Plan, block: str) -> tuple[float, list[tuple[int, float]]]:
    """Return a device's own weight of a block, and its neighbours with theirs."""
    own, *others = plan.weights.get(block, (1.0,))
    pairs = zip(plan.neighbours, others, strict=True) if others else ()
    return own, [(n, weight) for n, weight in pairs if weight]


def _as_it_is(kind: Kind, columns: slice) -> _Mixing:
    count = len(kind.partitions)
    rows = torch.arange(count, device=kind.now.device)[:, None]
    return _Mixing(columns, [(kind, columns)], rows, torch.ones(count, 1, device=kind.now.device))
