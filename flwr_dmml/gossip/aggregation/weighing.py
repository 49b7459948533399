"""Rules that give every copy a weight by how far the copies are apart (:class:`Weighing`).

Such a rule needs no vector, only the inner products of their differences: ``O(n^2)`` numbers for n
neighbours, which cost as much as n weighted means of small n. What it finds are weights, and the
aggregate is the weighted mean with them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .mean import weighted_mean
from .rule import AggregationRule

PIECE = 2**18
"""Numbers that are multiplied at a time, so that a processor's cache holds them."""


@dataclass(frozen=True)
class Around:
    """What a device knows of where its neighbours' copies lie, m = 1 + neighbours, the own first.

    All are on the CPU, numbers in float64.

    Attributes
    ----------
    gram : Tensor
        Inner products of the copies' differences from the own, ``[rows, m, m]``; 0 of the own, and
        of what has not arrived.
    there : Tensor
        Which copies have arrived, ``[rows, m]`` bool; the own always.
    weights : Tensor
        ``[rows, m]``; rows sum to 1, 0 where nothing has arrived.
    liars : Tensor
        How many liars are assumed, ``[rows]`` int64.
    along : Tensor
        Inner products of these differences with the own copy, ``[rows, m]``.
    norm : Tensor
        Euclidean norms of the own copies, ``[rows]``.
    onward : Tensor
        Inner products of the differences with the own last progress p, ``[rows, m]``.
    made : Tensor
        Norms of that progress, ``[rows]``; 0 where nothing is known of it.
    trend : Tensor
        Inner products of the differences with the own drift d over the last rounds, ``[rows, m]``.
    drifted : Tensor
        Norms of that drift, ``[rows]``; 0 where nothing is known of it.
    """

    gram: Tensor
    there: Tensor
    weights: Tensor
    liars: Tensor
    along: Tensor
    norm: Tensor
    onward: Tensor
    made: Tensor
    trend: Tensor
    drifted: Tensor

    @classmethod
    def of(
        cls,
        rule: AggregationRule,
        own: Tensor | Sequence[Tensor],
        near: Tensor | Sequence[Sequence[Tensor]],
        weights: Tensor,
        past: Sequence[Tensor | None] | None = None,
    ) -> "Around | None":
        """Return what a rule is to know; None where it could take nobody for a liar.

        A copy that is not finite has not arrived, counts as one liar that has been found, and its
        weight goes to the own copy.

        Parameters
        ----------
        rule : AggregationRule
            Says how many liars it assumes.
        own, near, weights : Tensor
            See :class:`AggregationRule`; ``own`` and ``near`` may be sequences of vectors
            ``[length]`` as well, by row, and by row and neighbour.
        past : sequence of Tensor or None, optional
            By row, as much as the rule remembers of ``[2, length]``: where the training that led
            to the own copy began, and a slow mean of where it began in the rounds up to then; None
            where that is not known.
        """
        known = weights.detach().cpu().double()
        arrived = known[:, 1:] > 0
        liars = torch.tensor([rule.liars(int(n)) for n in arrived.sum(dim=1)])
        if not bool(liars.any()) and not (rule.alone and rule.assume_liars):
            return None
        kept = rule.remembers
        tables = [
            table_of(x, others, x.expand(kept, -1) if at is None else at[:kept])
            for x, others, at in zip(own, near, past or [None] * len(near), strict=True)
        ]
        whole = torch.stack(tables).cpu()
        m = whole.shape[1] - kept
        table, nothing = whole[:, :m, :m], whole.new_zeros(len(whole), m)
        moves = [(whole[:, k, :m], whole[:, k, k].sqrt()) for k in range(m, m + kept)]
        (onward, made), (trend, drifted), *_ = [*moves, *[(nothing, nothing[:, 0])] * 2]
        sound = table.diagonal(dim1=1, dim2=2).isfinite()  # the own copy always is
        there = torch.cat([sound[:, :1], arrived & sound[:, 1:]], dim=1)
        if not bool(sound.all()):
            lost = (arrived & ~sound[:, 1:]).sum(dim=1)
            most = torch.tensor([rule.most(int(n)) for n in there[:, 1:].sum(dim=1)])
            liars = torch.minimum((liars - lost).clamp(min=0), most)
            known = known * there
            known[:, 0] += 1 - known.sum(dim=1)
        norm, there[:, 0] = table[:, 0, 0].sqrt(), False
        inner = torch.where(there[:, :, None] & there[:, None], table, 0.0)
        along, there[:, 0] = torch.where(there, table[:, 0], 0.0), True
        onward, trend = (torch.where(there, x, 0.0) for x in (onward, trend))
        onward[:, 0] = trend[:, 0] = 0.0
        return cls(inner, there, known, liars, along, norm, onward, made, trend, drifted)

    @property
    def count(self) -> Tensor:
        """Copies that have arrived, the own among them, ``[rows]``."""
        return self.there.sum(dim=1)

    @property
    def apart(self) -> Tensor:
        """Squared distances between all copies, ``[rows, m, m]``."""
        squares = self.gram.diagonal(dim1=1, dim2=2)
        return (squares[:, :, None] + squares[:, None] - 2 * self.gram).clamp(min=0)

    @property
    def away(self) -> Tensor:
        """Distances from the own copy, ``[rows, m]``."""
        return self.gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    @property
    def ahead(self) -> Tensor:
        """Cosines between ``x_j - own`` and the own progress, ``[rows, m]``; 0 if either is 0."""
        return self.onward / (self.away * self.made[:, None]).clamp(min=1e-300)

    @property
    def behind(self) -> Tensor:
        """Share of the own drift that a copy lacks, ``[rows, m]``; 0 of a drift below the progress.

        ``-(x_j - own) . d / |d|^2``: 1 of a copy that stands where the own one came from.
        """
        found = -self.trend / self.drifted.square().clamp(min=1e-300)[:, None]
        return torch.where((self.drifted > self.made)[:, None], found, 0.0)

    def squares_to(self, shares: Tensor) -> Tensor:
        """Return squared distances ``[rows, m]`` to the mean with shares ``[rows, m]``.

        Of every copy j to ``mean = own + sum_i s_i (x_i - own)``:
        ``G_jj - 2 (G s)_j + s' G s``.
        """
        along = (self.gram * shares[:, None]).sum(dim=2)
        middle = (shares * along).sum(dim=1, keepdim=True)
        return (self.gram.diagonal(dim1=1, dim2=2) - 2 * along + middle).clamp(min=0)

    def lengths(self, shares: Tensor) -> Tensor:
        """Return how much more of the mean with shares ``[rows, m]`` a copy has than the own one.

        Of every copy j, ``(x_j - own) . mean / |mean|``, ``[rows, m]``.
        """
        along = (self.gram * shares[:, None]).sum(dim=2)
        square = self.norm.square() + (shares * (2 * self.along + along)).sum(dim=1)
        return (self.along + along) / square.clamp(min=1e-300).sqrt()[:, None]

    def cosines(self, shares: Tensor) -> Tensor:
        """Return the cosines, seen from the own copy, to the mean with shares ``[rows, m]``.

        Of every copy j, between ``x_j - own`` and ``mean - own``, ``[rows, m]``; 0 where either
        is 0.
        """
        along = (self.gram * shares[:, None]).sum(dim=2)
        middle = (shares * along).sum(dim=1, keepdim=True).clamp(min=0).sqrt()
        return along / (self.away * middle).clamp(min=1e-300)

    def kept(self, keep: Tensor) -> Tensor:
        """Return the weights of those that are kept ``[rows, m]`` bool, made to sum to 1.

        To the last bit as they are where all are kept.
        """
        shares = self.weights * keep
        return torch.where(
            (keep | ~self.there).all(dim=1, keepdim=True),
            self.weights,
            shares / shares.sum(dim=1, keepdim=True),
        )

    def moved(self, to: Tensor) -> "Around":
        """Return the same of other points: each a mean of these with shares ``[rows, m, m]``."""
        whole = product(product(to, self.gram), to.transpose(1, 2))
        first, centre = whole[:, 0], whole[:, 0, 0]
        gram = whole - first[:, None] - first[:, :, None] + centre[:, None, None]
        along = (to * self.along[:, None]).sum(dim=2)  # with the own copy that was
        norm = (self.norm.square() + 2 * along[:, 0] + centre).clamp(min=0).sqrt()
        along = along + first
        onward, trend = ((to * x[:, None]).sum(dim=2) for x in (self.onward, self.trend))
        along, onward, trend = (x - x[:, :1] for x in (along, onward, trend))
        return replace(self, gram=gram, along=along, norm=norm, onward=onward, trend=trend)


class Weighing(AggregationRule):
    """A rule that gives every copy a weight, by the distances of all."""

    robust: ClassVar[bool] = True

    def __call__(
        self,
        own: Tensor,
        near: Tensor,
        weights: Tensor,
        past: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Return the mean ``[rows, length]`` with the weights of :meth:`weigh`."""
        found = self.weigh(own, near, weights, past)
        unused = found[:, 1:] == 0
        if bool(unused.any()) and not bool(near[unused].isfinite().all()):
            near = torch.where(unused[:, :, None], own[:, None], near)  # 0 NaN is NaN
        return weighted_mean(own, near, found)

    def weigh(
        self,
        own: Tensor | Sequence[Tensor],
        near: Tensor | Sequence[Sequence[Tensor]],
        weights: Tensor,
        past: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Return the weights ``[rows, 1 + neighbours]`` of the aggregate, of ``weights``' type.

        See :meth:`Around.of`. A row in which no liar is assumed keeps its weights, unless the rule
        compares copies with the own one alone.
        """
        around = Around.of(self, own, near, weights, past)
        if around is None:
            return weights
        found = self.shares(around)
        if not self.alone:
            found = torch.where(around.liars[:, None] > 0, found, around.weights)
        return found.to(weights)

    @abstractmethod
    def shares(self, around: Around) -> Tensor:
        """Return the weights of all copies ``[rows, m]`` float64, >= 0; rows sum to 1.

        What is returned for a row without assumed liars is not used.
        """


def table_of(
    own: Tensor, near: Tensor | Sequence[Tensor], past: Tensor | Sequence[Tensor] = ()
) -> Tensor:
    """Return inner products of the own copy and all differences from it, ``[m, m]`` float64.

    In pieces of a size that depends on the number of neighbours alone: a device's numbers are the
    same whoever else is computed with it.

    Parameters
    ----------
    own : Tensor
        ``[length]``; the first in the table.
    near : Tensor, or sequence of Tensor
        ``[neighbours, length]``; the differences ``near - own`` are the others.
    past : sequence of Tensor, optional
        Up to two of ``[length]``; ``own - past[0]`` and ``past[0] - past[1]`` come last, and the
        table is larger by so many.
    """
    vectors_of = [own, *near, *past]
    size = len(vectors_of)
    begun = size - len(past)
    table = own.new_zeros(size, size, dtype=torch.float64)
    step = PIECE // size
    for at in range(0, len(own), step):
        some = slice(at, at + step)
        vectors = torch.stack([x[some] for x in vectors_of])
        vectors[1:] -= own[some]
        if len(past) == 2:
            vectors[-1] = vectors[-2] - vectors[-1]
        vectors[begun : begun + 1].neg_()
        found = vectors @ vectors.T
        table += (found + found.T).double() / 2
    return table


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return matrix products ``[rows, i, j]`` of ``[rows, i, k]`` and ``[rows, k, j]``.

    A row's numbers are the same alone, which BLAS does not promise.
    """
    return (a[:, :, None] * b.transpose(1, 2).contiguous()[:, None]).sum(dim=3)
