"""Mini-batches of a device's samples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..data.samples import Rows, Samples

BATCH = 500
"""Samples that are predicted at a time."""


@dataclass(frozen=True)
class Batch:
    """Rows of a mini-batch that have the same modalities, and the other rows of it.

    In a stack of devices every tensor has a first dimension more, for these.

    Parameters
    ----------
    inputs : dict of str to Tensor
        Modality -> ``[batch, *shape]``.
    labels : Tensor
        Classes ``[batch]`` int64, or probabilities ``[batch, classes]`` float32.
    others : tuple of Batch
        Further rows of the same mini-batch, with other modalities or labels of another kind.
    given : dict of str to Tensor
        What the method's :meth:`~.hooks.Hooks.fixed`, :meth:`~.hooks.Hooks.running` and
        :meth:`~.hooks.Hooks.draw` return.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    others: tuple["Batch", ...] = ()
    given: dict[str, Tensor] = field(default_factory=dict)

    def only(self, modalities: Iterable[str]) -> "Batch":
        """Return the batch as a solo iteration sees it: with these modalities alone."""
        names = list(modalities)
        kept = {m: self.inputs[m] for m in names if m in self.inputs}
        return Batch(kept, self.labels, tuple(other.only(names) for other in self.others))

    @property
    def parts(self) -> list["Batch"]:
        """All rows by what they have; without what has no rows or no modality left."""
        every = [Batch(self.inputs, self.labels), *self.others]
        return [part for part in every if len(part.labels) and part.inputs]


def draw_batches(
    samples: Samples, count: int, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield ``count`` mini-batches of ``size`` from reshuffled passes over ``samples``."""
    for indices in draw_indices(len(samples), count, size, generator):
        yield batch_of(samples.subset(indices))


def batch_of(samples: Samples) -> Batch:
    """Return samples as one batch, cut into rows that have the same modalities."""
    if not samples.present or not len(samples):
        return Batch(dict(samples.inputs), samples.labels)
    names = tuple(samples.inputs)
    table = torch.stack([samples.present[m] for m in names], dim=1)  # [n, modality]
    parts: list[Batch] = []
    for pattern in torch.unique(table, dim=0).flip(0):  # most modalities of the first first
        rows = torch.nonzero((table == pattern).all(dim=1)).squeeze(1)
        owned = [m for m, has in zip(names, pattern.tolist(), strict=True) if has]
        part = samples.subset(rows)
        parts.append(Batch({m: part.inputs[m] for m in owned}, part.labels))
    return Batch(parts[0].inputs, parts[0].labels, tuple(parts[1:]))


def numbered(samples: Samples) -> Samples:
    """Return samples with their positions ``0 .. n-1`` for labels."""
    return replace(samples, labels=torch.arange(len(samples), device=samples.labels.device))


def every_part(samples: Samples) -> Iterator[Batch]:
    """Yield all samples, those with the same modalities together; their labels are positions.

    Those without any modality are left out.
    """
    data = numbered(samples)
    for rows in torch.split(torch.arange(len(data)), BATCH):
        yield from batch_of(data.subset(rows)).parts


@dataclass(frozen=True)
class Pool:
    """Training samples of several devices, so that one look-up finds the mini-batches of all.

    Attributes
    ----------
    inputs : dict of str to Tensor
        Modality -> what the samples are rows of, ``[rows, *shape]``; shared by all devices.
    index : Tensor
        Their rows, ``[samples]`` int64, one device's behind the other's.
    labels : Tensor
        ``[samples]``.
    start : int
        Where a device's samples begin.
    """

    inputs: Mapping[str, Tensor]
    index: Tensor
    labels: Tensor
    start: int

    def look_up(self, rows: Tensor, modalities: Iterable[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs and labels of samples ``[...]``, counted from the first device's first."""
        flat = rows.to(self.labels.device).flatten()
        at, shape = self.index[flat], rows.shape
        inputs = {m: self.inputs[m].index_select(0, at) for m in modalities}
        inputs = {m: x.view(*shape, *x.shape[1:]) for m, x in inputs.items()}
        return inputs, self.labels[flat].view(shape)


def pooled(each: Sequence[Samples]) -> list[Pool]:
    """Return devices' samples with equal modalities as one pool; those of one source by number."""
    inputs = [samples.inputs for samples in each]
    labels = torch.cat([samples.labels for samples in each])
    starts = [0, *accumulate(map(len, each))][:-1]
    shared = [own for own in inputs if isinstance(own, Rows)]
    if len(shared) == len(inputs) and all(own.same_source(shared[0]) for own in shared):
        index = torch.cat([own.index for own in shared]).to(labels.device)
        whole: Mapping[str, Tensor] = shared[0].source
    else:
        whole = {m: torch.cat([own[m] for own in inputs]) for m in inputs[0]}
        index = torch.arange(len(labels), device=labels.device)
    return [Pool(whole, index, labels, start) for start in starts]


def draw_rows(total: int, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return ``[count, size]`` positions below ``total``, from reshuffled passes over all."""
    needed = count * size
    passes = [torch.randperm(total, generator=generator) for _ in range(-(-needed // total))]
    whole = passes[0] if len(passes) == 1 else torch.cat(passes)
    return whole[:needed].view(count, size)


def draw_indices(total: int, count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ``count`` times ``size`` positions below ``total``, from reshuffled passes over all."""
    needed = count * size
    passes = [torch.randperm(total, generator=generator) for _ in range(-(-needed // total))]
    if passes:
        yield from torch.split(torch.cat(passes)[:needed], size)


def mean_over(batch: Batch, loss: Callable[[Batch], Tensor]) -> Tensor:
    """Return the mean of ``loss`` over all rows, where it gives the mean over those of a part.

    0 where no row has what is trained; there is then nothing to step.
    """
    parts = batch.parts
    if not parts:
        return torch.zeros((), requires_grad=True)
    if len(parts) == 1:
        return loss(parts[0])
    losses = torch.stack([loss(part) for part in parts])
    sizes = losses.new_tensor([len(part.labels) for part in parts])
    return (losses * sizes).sum() / sizes.sum()
