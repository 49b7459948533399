"""The rows of devices' parameters in matrices, and their mixing: weighted means of rows.

An aggregation rule may find the weights anew in every round, by how far the rows are apart.

What a device publishes stays where it is, its row of one of two matrices: while a round writes the
new rows into the other one, the neighbours read it. Nothing is packed, sent or copied. Processes of
one machine can have these matrices in shared memory: then the rows of all devices are there, and
each process writes those of its own.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..gossip.aggregation.rule import AggregationRule
from ..gossip.aggregation.weighing import Weighing
from ..payload.blocks import LARGEST, carried
from ..payload.plan import Payload, Plan
from .learner import Learner
from .mixing import disagreement, noted

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
    rows: Tensor  # [own device, 1 + sources] int64, of these tables; the own first
    weights: Tensor  # [own device, 1 + sources]
    sources: tuple[tuple[int, ...], ...] = ()  # by own device; the others in its row are itself
    block: str = ""
    far: tuple[tuple[int, str], ...] = ()  # below the tables: courier, and name in its payload


class Rows:
    """The rows of all devices, of which a process writes its own.

    Parameters
    ----------
    every : sequence of Layout
        Those of all processes' devices.
    own : collection of int
        Partition ids of this process's devices.
    make : callable
        Makes or opens the matrices.
    rounds : int
        Rounds that the devices have run in these matrices.
    closed : bool
        Whether nothing was published in the last of them.
    """

    def __init__(
        self,
        every: Sequence[Layout],
        own: Collection[int],
        make: MakeMatrix,
        rounds: int,
        closed: bool,
    ) -> None:
        self._kinds: list[_Kind] = []
        self._kind_of: dict[int, _Kind] = {}
        for number, layout in enumerate(every):
            pair = make(number, layout)
            mine = [p for p in layout.partitions if p in own]
            kind = _Kind(layout, *(pair[::-1] if rounds % 2 else pair), mine)
            kind.sent = kind.next if closed else kind.now
            self._kind_of |= dict.fromkeys(layout.partitions, kind)
            self._kinds.append(kind)

    @property
    def own(self) -> list[list[int]]:
        """The own devices of each layout."""
        return [kind.own for kind in self._kinds]

    def now(self, p: int) -> tuple[Tensor, int]:
        """Return the matrix in which a device's numbers are, and its row there."""
        return self._kind_of[p].now, self._kind_of[p].row[p]

    def next(self, p: int) -> tuple[Tensor, int]:
        """Return the matrix into which this round writes, and a device's row there."""
        return self._kind_of[p].next, self._kind_of[p].row[p]

    def begin_again(self, p: int) -> None:
        """Begin a device's round anew, with what it had before."""
        matrix, row = self.next(p)
        matrix[row] = self.now(p)[0][row]

    def turn(self) -> None:
        """End a round: what it has written is what there is now."""
        for kind in self._kinds:
            kind.now, kind.next = kind.next, kind.now
        self.measure()

    def take_back(self, p: int) -> None:
        """Go back to a device's row of the round before, once the round has ended."""
        kind, row = self._kind_of[p], self._kind_of[p].row[p]
        kind.now[row] = kind.next[row]
        kind.norms[row - kind.mine.start] = torch.linalg.vector_norm(kind.now[row])

    def publish(self) -> None:
        """Let neighbours read what there is now."""
        for kind in self._kinds:
            kind.sent = kind.now

    def published(self, p: int) -> Tensor:
        """Return what a device of any process has published, as it lies in its row ``[width]``."""
        kind = self._kind_of[p]
        return kind.sent[kind.row[p]]

    def blocks(self, p: int, row: Tensor) -> Payload:
        """Return the blocks in a row ``[width]`` of a device: views of it."""
        return {name: row[columns] for name, columns in self._kind_of[p].slices.items()}

    # ---- range ------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> None:
        """Look at every own row once: its norm is at least its largest value, and shows a NaN."""
        for kind in self._kinds:
            kind.norms = torch.linalg.vector_norm(kind.now[kind.mine], dim=1).cpu()

    @property
    def sound(self) -> bool:
        """Whether all own rows are in range."""
        return all(bool((kind.norms <= LARGEST).all()) for kind in self._kinds)

    def in_range(self, p: int) -> bool:
        """Return whether an own row is."""
        kind = self._kind_of[p]
        return bool(kind.norms[kind.row[p] - kind.mine.start] <= LARGEST)

    # ---- mixing -----------------------------------------------------------------------------

    @torch.no_grad()
    def mix(
        self,
        plans: Mapping[int, Plan],
        brought: Mapping[int, Payload],
        rule: AggregationRule,
        past: Mapping[int, Mapping[str, Tensor]],
    ) -> dict[int, dict[str, dict[int, float]]]:
        """Write the weighted means of rows into the next matrices; others stay as they are.

        Parameters
        ----------
        plans : mapping of int to Plan
            By partition id.
        brought : mapping of int to Payload
            What couriers have published for others, of every process.
        rule : AggregationRule
            The mean, or one that finds weights.
        past : mapping of int to mapping of str to Tensor
            What :attr:`.Mixer.mixed` holds, of every own device.

        Returns
        -------
        dict of int to dict of str to dict of int to float
            What :attr:`.Mixer.shares` holds, of every own device.
        """
        shares: dict[int, dict[str, dict[int, float]]] = {}
        for kind in self._kinds:
            if not kind.own:
                continue
            for mixing in self._mixings(kind, plans):
                parts = [k.now[:, columns] for k, columns in mixing.tables]
                if mixing.far:
                    parts.append(torch.stack([brought[r][name] for r, name in mixing.far]))
                weights = mixing.weights
                if isinstance(rule, Weighing) and any(mixing.sources):
                    last = [past[p].get(mixing.block) for p in kind.own]
                    weights = _weighed(mixing, parts, rule, last)
                    for p, near, old, new in zip(
                        kind.own, mixing.sources, mixing.weights, weights, strict=True
                    ):
                        own = noted(near, old[: 1 + len(near)], new[: 1 + len(near)])
                        shares.setdefault(p, {})[mixing.block] = own
                count, length = sum(map(len, parts)), parts[0].shape[1]
                mixed = kind.next[kind.mine, mixing.columns]
                cached = mixed.device.type == "cpu"
                step = max(256, CACHED // count) if cached else length
                for at in range(0, length, step):
                    some = slice(at, at + step)
                    cut = [part[:, some] for part in parts]
                    table = cut[0] if len(cut) == 1 else torch.cat(cut)
                    mixed[:, some] = F.embedding_bag(
                        mixing.rows, table, mode="sum", per_sample_weights=weights
                    )
        return shares

    def _mixings(self, kind: _Kind, plans: Mapping[int, Plan]) -> list[_Mixing]:
        """Return how a layout's columns are mixed: as in the round before, if nothing changes."""
        asked = [plans.get(p, _RESTS) for p in kind.own]
        pairs = zip(kind.known, asked, strict=False)
        same = all(a.weights is b.weights and a.sources == b.sources for a, b in pairs)
        if not (kind.known and same):
            kind.known, kind.mixings = asked, list(self._new_mixings(kind, asked))
        return kind.mixings

    def _new_mixings(self, kind: _Kind, plans: Sequence[Plan]) -> Iterator[_Mixing]:
        for block, columns in kind.slices.items():
            rows = [_row_of(plan, block) for plan in plans]
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

            far: dict[tuple[int, str], int] = {}

            def row(
                source: _Source, begin: Mapping[int, int] = begin, far: Far = far, end: int = at
            ) -> int:
                if isinstance(source, tuple):
                    return end + far.setdefault(source, len(far))
                found = self._kind_of[source]
                return begin[id(found)] + found.row[source]

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
                tuple(_origins(plan, block) for plan in plans),
                block,
                tuple(far),
            )

    def apart(self, p: int, plan: Plan, brought: Mapping[int, Payload]) -> float | None:
        """Return the disagreement of a device with its neighbours, over all that it mixes."""
        if not plan.neighbours:
            return None
        kind, total = self._kind_of[p], 0.0
        own = kind.now[kind.row[p]]
        for block, columns in kind.slices.items():
            _, others = _row_of(plan, block)
            if others:
                near = torch.stack(
                    [
                        brought[n[0]][n[1]] if isinstance(n, tuple) else self._block(n, block)
                        for n, _ in others
                    ]
                )
                weights = own.new_tensor([[weight for _, weight in others]])
                total += disagreement(own[None, columns], near[None], weights)
        return total

    def _block(self, p: int, block: str) -> Tensor:
        kind = self._kind_of[p]
        return kind.now[kind.row[p], kind.slices[block]]


_RESTS = Plan(0, 0)


_Source = int | tuple[int, str]
"""Whose block: a neighbour's, or what a courier (first) has published under a name."""
Far = dict[tuple[int, str], int]


def _weighed(
    mixing: _Mixing, parts: Sequence[Tensor], rule: Weighing, past: Sequence[Tensor | None]
) -> Tensor:
    """Return the weights that a rule gives ``[own device, 1 + sources]``.

    Of devices with equally many neighbours at once: they are what each would find by itself.
    """
    vectors = [row for part in parts for row in part]
    weights = mixing.weights.clone()
    rows = mixing.rows.tolist()
    groups: dict[int, list[int]] = {}
    for k, near in enumerate(mixing.sources):
        groups.setdefault(len(near), []).append(k)
    for count, devices in groups.items():
        copies = [[vectors[i] for i in rows[k][: 1 + count]] for k in devices]
        own, others = [x for x, *_ in copies], [x for _, *x in copies]
        chosen = weights[devices, : 1 + count]
        last = [past[k] for k in devices]
        weights[devices, : 1 + count] = rule.weigh(own, others, chosen, last)
    return weights


def _row_of(plan: Plan, block: str) -> tuple[float, list[tuple[_Source, float]]]:
    """Return a device's own weight of a block, and those whose it mixes with theirs."""
    own, *others = plan.weights.get(block, (1.0,))
    if not others:
        return own, []
    far = [(there.via, carried(block, there.origin)) for there in plan.far]
    sources: list[_Source] = [*plan.neighbours, *far]
    return own, [(n, weight) for n, weight in zip(sources, others, strict=True) if weight]


def _origins(plan: Plan, block: str) -> tuple[int, ...]:
    """Return whose copies of a block those of :func:`_row_of` are."""
    weights = plan.weights.get(block, (1.0,))[1:]
    return tuple(j for j, weight in zip(plan.sources, weights, strict=False) if weight)


def _as_it_is(kind: _Kind, columns: slice) -> _Mixing:
    device = kind.now.device
    rows = torch.arange(kind.mine.start, kind.mine.stop, device=device)[:, None]
    return _Mixing(columns, [(kind, columns)], rows, torch.ones(len(rows), 1, device=device))
