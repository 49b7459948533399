"""A model's blocks as slices of one flat vector; the model's parameters are views of it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

LINE = 16
"""Numbers in a cache line. BLAS chooses its kernels by where a matrix begins: rows, and what is
computed for many devices at once, begin on a line, or a device's bits would depend on which row is
its own."""


FEW = 4096
"""Numbers of a parameter, in the mean of a block, below which a step of many parameters at once is
faster than one of each: they are copied together first."""


class Flat:
    """The parameters of one device: a row of a matrix ``[rows, width]``, float32.

    A block is a slice of the row, and a parameter a view of its part of the slice, so that mixing,
    a training step or a checkpoint is an operation on slices. Every block begins on a line
    (:data:`LINE`); what is left between two is 0. Devices of one process whose models are alike can
    share a matrix (:class:`Stack`), a row each.

    Parameters
    ----------
    blocks : mapping of str to nn.Module
        By block name, in the order of the slices. Their parameters become float32 views of the row,
        on the device where they are.

    Attributes
    ----------
    slices : dict of str to slice
        Where each block lies in a row.
    parameters : list of nn.Parameter
        In the order of the row.
    places : list of slice
        Where each of them lies.
    modules : dict of str to nn.Module
        By block name.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self.slices: dict[str, slice] = {}
        self.parameters: list[nn.Parameter] = []
        self.places: list[slice] = []
        self.modules = dict(blocks)
        self._block_of: list[str] = []
        self._few: set[str] = set()
        values: list[Tensor] = []
        at = 0
        for name, module in blocks.items():
            begun, own = at, list(module.parameters())
            for p in own:
                self._block_of.append(name)
                self.parameters.append(p)
                self.places.append(slice(at, at + p.numel()))
                values.append(p.detach().reshape(-1).float())
                at += p.numel()
            self.slices[name] = slice(begun, at)
            if at - begun < FEW * len(own):
                self._few.add(name)
            if gap := -at % LINE:
                values.append(values[-1].new_zeros(gap))
                at += gap
        self._index = {id(p): i for i, p in enumerate(self.parameters)}
        self.length = at
        self._ends = {i for i, (a, b) in enumerate(pairwise(self._block_of)) if a != b}
        self._runs: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        self._attached: tuple[Tensor | None, int] = (None, 0)
        self.stand_at((torch.cat(values) if values else torch.zeros(0))[None], 0)
        self.attach()

    def stand_at(self, matrix: Tensor, row: int) -> None:
        """Live in a row of a matrix ``[rows, width]`` from now on, with the numbers there.

        The parameters follow when they are asked for, see :meth:`attach`.
        """
        self.matrix, self.row = matrix, row

    def move_to(self, matrix: Tensor, row: int) -> None:
        """Copy the numbers to a row of another matrix ``[rows, width]``, and live there."""
        matrix[row] = self.matrix[self.row]
        self.stand_at(matrix, row)

    def move_out(self) -> None:
        """Live in a matrix of its own."""
        self.move_to(torch.empty_like(self.rows), 0)
        self.attach()

    def attach(self) -> None:
        """Make the parameters views of the row where they are none."""
        if self._attached[0] is self.matrix and self._attached[1] == self.row:
            return
        vector = self.vector
        for p, place in zip(self.parameters, self.places, strict=True):
            p.data = vector[place].view(p.shape)
        self._attached = self.matrix, self.row

    @property
    def vector(self) -> Tensor:
        """The row's numbers, ``[length]``."""
        return self.matrix[self.row]

    def __len__(self) -> int:
        return self.length

    @property
    def rows(self) -> Tensor:
        """The row as a matrix ``[1, length]``."""
        return self.matrix[self.row : self.row + 1]

    def indices_of(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """Return the positions of these parameters, sorted.

        Raises
        ------
        KeyError
            One of them is in no block.
        """
        return sorted(self._index[id(p)] for p in parameters)

    def block_of(self, index: int) -> str:
        """Return the block of the parameter at a position."""
        return self._block_of[index]

    def cut(self, indices: Sequence[int]) -> None:
        """Let no run (:meth:`runs`) have parameters both at these positions and at others."""
        own = set(indices)
        self._ends |= {i for i in range(len(self.parameters)) if (i in own) != (i + 1 in own)}
        self._runs = {}

    def runs(self, indices: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return positions in ascending order, cut into runs of parameters to be stepped as one.

        A run lies in one block, and its parameters follow one another. Where a block's parameters
        are large, each is a run: it depends on the block alone.
        """
        if indices not in self._runs:
            runs: list[list[int]] = []
            for i in indices:
                few = self._block_of[i] in self._few
                if runs and few and runs[-1][-1] == i - 1 and i - 1 not in self._ends:
                    runs[-1].append(i)
                else:
                    runs.append([i])
            self._runs[indices] = [tuple(run) for run in runs]
        return self._runs[indices]

    def columns(self, x: Tensor, other: "Flat") -> Tensor:
        """Return the blocks of another layout, which are all here, as they lie in a row there.

        From rows ``[rows, width]`` of this one, which are returned themselves if that is the other.
        """
        if other is self:
            return x
        lengths = {name: place.stop - place.start for name, place in other.slices.items()}
        starts = {name: self.slices[name].start for name in lengths}
        return torch.cat(
            [x[:, starts[name] : starts[name] + n + -n % LINE] for name, n in lengths.items()],
            dim=1,
        )

    def positions(self, other: "Flat") -> list[int]:
        """Return where the parameters of another layout, whose blocks are all here, are here."""
        if other is self:
            return list(range(len(self.parameters)))
        first = {name: i for i, name in reversed(list(enumerate(self._block_of)))}
        begin = {name: i for i, name in reversed(list(enumerate(other._block_of)))}
        return [first[name] + i - begin[name] for i, name in enumerate(other._block_of)]

    def copy(self) -> dict[str, Tensor]:
        """Return a copy of every block, ``[length]`` on the CPU: slices of one new vector."""
        whole = self.vector.detach().to("cpu", copy=True)
        return {name: whole[place] for name, place in self.slices.items()}

    def load(self, name: str, vector: Tensor) -> None:
        """Copy a flat vector ``[length]`` into a block.

        Raises
        ------
        ValueError
            The length is not that of the block.
        """
        own = self.vector[self.slices[name]]
        if vector.shape != own.shape:
            raise ValueError(
                f"block '{name}': expected a vector of length {len(own)}, got {tuple(vector.shape)}"
            )
        own.copy_(vector)

    def views(self, matrix: Tensor) -> list[Tensor]:
        """Return the parts ``[rows, *shape]`` of a matrix ``[rows, length]`` by parameter."""
        return self.views_of(matrix, range(len(self.parameters)))

    def views_of(self, matrix: Tensor, indices: Iterable[int]) -> list[Tensor]:
        """Return the parts of a matrix at some positions, as :meth:`views` does."""
        parameters, places = self.parameters, self.places
        return [matrix[:, places[i]].view(-1, *parameters[i].shape) for i in indices]

    def blocks_of(self, indices: Iterable[int]) -> list[str]:
        """Return the blocks that hold the parameters at some positions."""
        return list(dict.fromkeys(self.block_of(i) for i in indices))


class Stack:
    """Rows of devices with equal layouts, brought together in one matrix.

    Attributes
    ----------
    matrix : Tensor
        ``[device, width]``: the rows themselves where they follow one another, else a copy.
    """

    def __init__(self, flats: Sequence[Flat]) -> None:
        self._flats = flats
        home, rows = flats[0].matrix, [flat.row for flat in flats]
        self._rows: Tensor | None = None
        if all(flat.matrix is home for flat in flats):
            if rows == list(range(rows[0], rows[0] + len(rows))):
                self.matrix = home[rows[0] : rows[0] + len(rows)]
            else:
                self._rows = torch.tensor(rows, device=home.device)
                self.matrix = home[self._rows]
        else:
            self.matrix = home.new_empty(len(flats), home.shape[1])
            for k, flat in enumerate(flats):
                flat.move_to(self.matrix, k)
        self._home = home

    def put_back(self) -> None:
        """Copy the numbers to where the devices' rows are."""
        if self._rows is not None:
            self._home[self._rows] = self.matrix


def joined(places: Sequence[slice]) -> list[slice]:
    """Return slices in their order, with those that follow on one another made one."""
    cuts = [k for k, (a, b) in enumerate(pairwise(places), start=1) if a.stop != b.start]
    bounds = pairwise([0, *cuts, len(places)])
    return [slice(places[a].start, places[b - 1].stop) for a, b in bounds if a < b]


def part(matrix: Tensor, places: Sequence[slice]) -> Tensor:
    """Return the columns of a matrix ``[rows, length]`` at some places: a view where it is one."""
    if len(places) == 1:
        return matrix[:, places[0]]
    return torch.cat([matrix[:, place] for place in places], dim=1) if places else matrix[:, :0]
