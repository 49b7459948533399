"""The devices that a process hosts: their parameters are rows, and a round is done for all at once.

What a device publishes stays where it is, its row of one of two matrices: while a round writes the
new rows into the other one, the neighbours read it. Nothing is packed, sent or copied. Processes of
one machine can have these matrices in shared memory: then the rows of all devices are there, and
each process writes those of its own.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..payload.blocks import LARGEST
from ..payload.plan import Inbox, Outcome, Payload, Plan
from ..payload.routing import cut, wanted
from .batch import pooled
from .learner import Kept, Learner
from .mixing import Taken, disagreement
from .nonfinite import check_finite
from .together import Likeness, Turn, finish_together, likeness, train_together

STACK = 64
"""Devices of a stack at most: on a CPU more are no faster, and take memory."""
CACHED = 2**18
"""Numbers that are mixed at a time, so that a processor's cache holds what is read many times."""
Columns = tuple[tuple[str, int, int], ...]
"""Where each block lies in a row: (name, begin, end)."""


@dataclass(frozen=True)
class Layout:
    """Devices whose rows are laid out alike.

    Attributes
    ----------
    columns : tuple
        Where each block lies.
    width : int
        Numbers in a row.
    partitions : tuple of int
        In the order of the rows; those of a process follow one another.
    """

    columns: Columns
    width: int
    partitions: tuple[int, ...]


def layout_of(learner: Learner) -> tuple[Columns, int]:
    """Return where a device's blocks lie in its row, and how many numbers that has."""
    columns = tuple((name, s.start, s.stop) for name, s in learner.flat.slices.items())
    return columns, learner.flat.matrix.shape[1]


def layouts(found: Mapping[int, tuple[Columns, int]], order: Iterable[int]) -> list[Layout]:
    """Return all layouts, with their devices in an order."""
    alike: dict[tuple[Columns, int], list[int]] = {}
    for p in order:
        alike.setdefault(found[p], []).append(p)
    return [Layout(*key, tuple(partitions)) for key, partitions in alike.items()]


MakeMatrix = Callable[[int, Layout], tuple[Tensor, Tensor]]
"""(number of the layout, layout) to two matrices ``[device, width]``."""


@dataclass
class _Kind:
    """A layout, and the rows of its devices."""

    layout: Layout
    now: Tensor  # [device, width]
    next: Tensor
    own: list[int]  # partitions of this process, rows that follow one another
    sent: Tensor = field(init=False)  # the matrix that holds what was last published

    def __post_init__(self) -> None:
        self.sent = self.now
        self.row = {partition: k for k, partition in enumerate(self.layout.partitions)}
        first = self.row[self.own[0]] if self.own else 0
        self.mine = slice(first, first + len(self.own))
        self.slices = {name: slice(a, b) for name, a, b in self.layout.columns}
        self.known: list[Plan] = []
        self.mixings: list[_Mixing] = []
        self.norms = torch.zeros(0)


@dataclass(frozen=True)
class _Mixing:
    """Who mixes a run of a layout's columns with whom."""

    columns: slice
    tables: list[tuple[_Kind, slice]]  # that hold the blocks there, one below the other
    rows: Tensor  # [own device, 1 + neighbours] int64, of these tables; the own first
    weights: Tensor  # [own device, 1 + neighbours]


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
    rounds : int, optional
        The matrices hold the devices' rows already, after so many rounds; otherwise the learners'
        numbers are copied there.
    """

    def __init__(
        self,
        learners: Mapping[int, Learner],
        every: Sequence[Layout] | None = None,
        make: MakeMatrix | None = None,
        rounds: int | None = None,
    ) -> None:
        self.learners = dict(sorted(learners.items()))
        self.published: dict[int, Payload] = {}
        """What devices published in the last round, by partition id: empty where nobody asks."""
        self.reports: dict[int, list[float]] = {}
        """What they reported besides, see :meth:`.Learner.report`."""
        self._kinds: list[_Kind] = []
        self._kind_of: dict[int, _Kind] = {}
        if every is None:
            every = layouts({p: layout_of(x) for p, x in self.learners.items()}, self.learners)
        make = make or self._matrices
        for number, layout in enumerate(every):
            own = [p for p in layout.partitions if p in self.learners]
            pair = make(number, layout)
            kind = _Kind(layout, *(pair[::-1] if (rounds or 0) % 2 else pair), own)
            self._kind_of |= dict.fromkeys(layout.partitions, kind)
            self._kinds.append(kind)
            for p in own:
                flat = self.learners[p].flat
                stay = flat.move_to if rounds is None else flat.stand_at
                stay(kind.now, kind.row[p])
                flat.attach()  # what it had before is let go
            self._pool([self.learners[p] for p in own])
        self.measure()

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
        if plain:
            self._mix_rows(plans)
        for kind in self._kinds:
            for p in kind.own:
                flat, row = self.learners[p].flat, kind.row[p]
                if plain:
                    flat.stand_at(kind.next, row)
                else:
                    flat.move_to(kind.next, row)
        results: dict[int, Outcome | Exception] = {}
        going: dict[int, Turn] = {}
        for p, plan in plans.items():
            try:
                going[p] = Turn(self.learners[p], plan, self._begin(p, plan, plain))
            except Exception as error:  # its result says so; the others go on
                results[p] = error
        taken = self._train(going, before, results, told)
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
                self._take_back(p)
                self.learners[p].take_back(before[p])
        closing = bool(plans) and not any(plan.iterations for plan in plans.values())
        if not closing:  # a closing message publishes nothing
            good = {p: r for p, r in results.items() if not isinstance(r, Exception)}
            self.published = {p: r.payload for p, r in good.items()}
            self.reports = {p: self.learners[p].report() for p in good}
            for kind in self._kinds:
                kind.sent = kind.now
        return dict(sorted(results.items()))

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

        training = _alike(going, [p for p, turn in going.items() if _trains(turn)])
        told(len(going) - sum(map(len, training.values())))
        kin: dict[Hashable, list[int]] = {}
        for like, devices in training.items():
            for stack in _cut(devices):
                try:
                    found = train_together([going[p] for p in stack])
                    taken |= dict(zip(stack, found, strict=True))
                    kin.setdefault(getattr(like, "method", like), []).extend(stack)
                except Exception as error:
                    one_by_one(stack, error)
                told(len(stack))
        for devices in kin.values():
            for some in _cut(sorted(devices)):
                try:
                    finish_together([going[p] for p in some])
                except Exception as error:
                    one_by_one(some, error)
        return taken

    def _retry(self, going: dict[int, Turn], p: int, before: Kept) -> Taken | Exception:
        """Begin a device's round again and train it by itself: whoever is to blame fails again."""
        learner, plan, kind = self.learners[p], going[p].plan, self._kind_of[p]
        learner.take_back(before)
        kind.next[kind.row[p]] = kind.now[kind.row[p]]
        try:
            with learner.in_round(plan):
                going[p] = Turn(learner, plan, learner.begin(plan, self._inbox(p, plan)))
                learner.before_training(plan, going[p].inbox)
            (taken,) = train_together([going[p]])
            finish_together([going[p]])
        except Exception as error:
            return error
        return taken

    def _plain(self, plans: Mapping[int, Plan]) -> bool:
        """Return whether rows can be mixed as they are."""
        sound = all(bool((kind.norms <= LARGEST).all()) for kind in self._kinds)
        return sound and self.foreign_sound and all(self.learners[p].plain for p in plans)

    foreign_sound: bool = True
    """Whether what other processes' devices have published is known to be in range."""

    def stands(self) -> bool:
        """Return whether all devices are where their rows are: one that begins afresh is not."""
        return all(
            learner.flat.matrix is self._kind_of[p].now for p, learner in self.learners.items()
        )

    def load(self, payloads: Mapping[int, Payload]) -> None:
        """Go on from what devices published at an earlier time, whose state they have."""
        self.published = {}
        for p, payload in payloads.items():
            learner = self.learners[p]
            own = self._payload(p, self._kind_of[p].now) if learner.listens else {}
            self.published[p] = own if learner.plain else payload
        self.reports = {p: self.learners[p].report() for p in payloads}

    def hear(self, p: int, report: list[float], entries: Payload) -> None:
        """Take up what another process's device has published, besides its row."""
        self.reports[p] = report
        self.published[p] = entries and self.rows_of(p) | entries

    # ---- before training --------------------------------------------------------------------

    def _begin(self, p: int, plan: Plan, plain: bool) -> Inbox:
        learner = self.learners[p]
        if plain:
            learner.hear([self.reports[n] for n in plan.neighbours], plan)
        if plain and not learner.listens and not plan.evaluate:  # nothing asked of it, or drawn
            learner.server_round, learner.measured, learner.rejected = plan.server_round, {}, []
            return {}
        inbox = self._inbox(p, plan) if learner.listens or not plain else {}
        with learner.in_round(plan):
            if plain:
                learner.begin_mixed(plan, inbox, self._apart(p, plan) if plan.evaluate else None)
            else:
                inbox = learner.begin(plan, inbox)
            if learner.trains(plan):
                learner.before_training(plan, inbox)
        return inbox

    def _inbox(self, p: int, plan: Plan) -> Inbox:
        """Return what a device gets of its neighbours."""
        inbox: Inbox = {}
        for position, n in enumerate(plan.neighbours, start=1):
            payload = self.payload(n)
            inbox[n] = cut(payload, wanted(plan, position, p, payload))
        return inbox

    @torch.no_grad()
    def _mix_rows(self, plans: Mapping[int, Plan]) -> None:
        """Write the weighted means of rows into the next matrices; others stay as they are."""
        for kind in self._kinds:
            if not kind.own:
                continue
            for mixing in self._mixings(kind, plans):
                parts = [k.now[:, columns] for k, columns in mixing.tables]
                table = parts[0] if len(parts) == 1 else torch.cat(parts)
                mixed = kind.next[kind.mine, mixing.columns]
                cached = table.device.type == "cpu"
                step = max(256, CACHED // len(table)) if cached else table.shape[1]
                for at in range(0, table.shape[1], step):
                    some = slice(at, at + step)
                    mixed[:, some] = F.embedding_bag(
                        mixing.rows, table[:, some], mode="sum", per_sample_weights=mixing.weights
                    )

    def _mixings(self, kind: _Kind, plans: Mapping[int, Plan]) -> list[_Mixing]:
        """Return how a layout's columns are mixed: as in the round before, if nothing changes."""
        asked = [plans.get(p, _RESTS) for p in kind.own]
        pairs = zip(kind.known, asked, strict=False)
        same = all(a.weights is b.weights and a.neighbours == b.neighbours for a, b in pairs)
        if not (kind.known and same):
            kind.known, kind.mixings = asked, list(self._new_mixings(kind, asked))
        return kind.mixings

    def _new_mixings(self, kind: _Kind, plans: Sequence[Plan]) -> Iterator[_Mixing]:
        end = 0
        for block, columns in kind.slices.items():
            rows = [_row_of(plan, block) for plan in plans]
            end = columns.stop
            if not any(others for _, others in rows):
                yield _as_it_is(kind, columns)
                continue
            length = columns.stop - columns.start
            tables = [
                (k, place)
                for k in self._kinds
                if (place := k.slices.get(block)) is not None and place.stop - place.start == length
            ]
            begin: dict[int, int] = {}
            at = 0
            for k, _ in tables:
                begin[id(k)] = at
                at += len(k.layout.partitions)

            def row(p: int, begin: Mapping[int, int] = begin) -> int:
                found = self._kind_of[p]
                return begin[id(found)] + found.row[p]

            count = 1 + max(len(others) for _, others in rows)
            index, weights = list[list[int]](), list[list[float]]()
            for p, (own, others) in zip(kind.own, rows, strict=True):
                fill = count - 1 - len(others)
                index.append([row(p), *(row(n) for n, _ in others), *[row(p)] * fill])
                weights.append([own, *(weight for _, weight in others), *[0.0] * fill])
            device = kind.now.device
            yield _Mixing(
                columns,
                tables,
                torch.tensor(index, device=device),
                torch.tensor(weights, dtype=torch.float32, device=device),
            )
        if end < kind.layout.width:
            yield _as_it_is(kind, slice(end, kind.layout.width))

    def _apart(self, p: int, plan: Plan) -> float | None:
        """Return the disagreement of a device with its neighbours, over all that it mixes."""
        if not plan.neighbours:
            return None
        kind, total = self._kind_of[p], 0.0
        own = kind.now[kind.row[p]]
        for block, columns in kind.slices.items():
            _, others = _row_of(plan, block)
            if others:
                near = torch.stack([self._block(n, block) for n, _ in others])
                weights = own.new_tensor([[weight for _, weight in others]])
                total += disagreement(own[None, columns], near[None], weights)
        return total

    def _block(self, p: int, block: str) -> Tensor:
        kind = self._kind_of[p]
        return kind.now[kind.row[p], kind.slices[block]]

    # ---- after training ---------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> None:
        """Look at every own row once: its norm is at least its largest value, and shows a NaN."""
        for kind in self._kinds:
            kind.norms = torch.linalg.vector_norm(kind.now[kind.mine], dim=1).cpu()

    @property
    def sound(self) -> bool:
        """Whether all that the own devices have published is in range."""
        return all(bool((kind.norms <= LARGEST).all()) for kind in self._kinds)

    def _take_back(self, p: int) -> None:
        """Go back to the row of the round before."""
        kind, row = self._kind_of[p], self._kind_of[p].row[p]
        kind.now[row] = kind.next[row]
        kind.norms[row - kind.mine.start] = torch.linalg.vector_norm(kind.now[row])

    def _end(self, p: int, turn: Turn, taken: Taken | None, plain: bool) -> Outcome:
        learner, plan, kind = turn.learner, turn.plan, self._kind_of[p]
        learner.flat.stand_at(kind.now, kind.row[p])
        if not plan.iterations:
            return Outcome({}, learner.measured, learner.rejected)
        if not plain:
            return learner.finish(plan, turn.inbox, taken)
        if not kind.norms[kind.row[p] - kind.mine.start] <= LARGEST:
            check_finite(plan.server_round, learner.flat.copy())
        near = learner.near([self.reports[n] for n in plan.neighbours])
        payload = self._payload(p, kind.now) if learner.listens else {}
        return Outcome(payload, learner.measured | near, learner.rejected)

    def payload(self, p: int) -> Payload:
        """Return what a device published in the last round."""
        if self.published[p]:
            return self.published[p]
        return self._payload(p, self._kind_of[p].sent) if p in self.learners else self.rows_of(p)

    def _payload(self, p: int, matrix: Tensor) -> Payload:
        learner, kind = self.learners[p], self._kind_of[p]
        row = matrix[kind.row[p]]
        return {name: row[kind.slices[name]] for name in learner.block_names} | learner.extras()

    def row(self, p: int) -> Tensor:
        """Return what a device of any process has published, as it lies in its row ``[width]``."""
        kind = self._kind_of[p]
        return kind.sent[kind.row[p]]

    def rows_of(self, p: int) -> Payload:
        """Return all blocks of a device, of any process: views of its row."""
        kind = self._kind_of[p]
        return {name: kind.sent[kind.row[p], columns] for name, columns in kind.slices.items()}


_RESTS = Plan(0, 0)


def _trains(turn: Turn) -> bool:
    return bool(turn.plan.iterations and turn.learner.trains(turn.plan))


def _alike(turns: Mapping[int, Turn], devices: Iterable[int]) -> dict[Likeness | int, list[int]]:
    """Return devices by what they have in common; those that train alone by their partition."""
    found: dict[Likeness | int, list[int]] = {}
    for p in devices:
        found.setdefault(likeness(turns[p].learner, turns[p].plan) or p, []).append(p)
    return found


def _cut(devices: Sequence[int]) -> list[Sequence[int]]:
    """Return stacks of devices."""
    return [devices[start : start + STACK] for start in range(0, len(devices), STACK)]


def _row_of(plan: Plan, block: str) -> tuple[float, list[tuple[int, float]]]:
    """Return a device's own weight of a block, and its neighbours with theirs."""
    own, *others = plan.weights.get(block, (1.0,))
    pairs = zip(plan.neighbours, others, strict=True) if others else ()
    return own, [(n, weight) for n, weight in pairs if weight]


def _as_it_is(kind: _Kind, columns: slice) -> _Mixing:
    device = kind.now.device
    rows = torch.arange(kind.mine.start, kind.mine.stop, device=device)[:, None]
    return _Mixing(columns, [(kind, columns)], rows, torch.ones(len(rows), 1, device=device))
