"""Mini-batches of a device's samples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Samples


@dataclass(frozen=True)
class Batch:
    """Samples: ``inputs`` by modality ``[batch, *shape]``, and ``labels`` ``[batch]`` int64."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def only(self, modalities: Iterable[str]) -> "Batch":
        """Return the batch as a solo iteration sees it: with these modalities alone."""
        return Batch({m: self.inputs[m] for m in modalities}, self.labels)


def draw_batches(
    samples: Samples, count: int, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield ``count`` mini-batches of ``size`` from reshuffled passes over ``samples``."""
    for indices in draw_indices(len(samples), count, size, generator):
        drawn = samples.subset(indices)
        yield Batch(dict(drawn.inputs), drawn.labels)


def draw_indices(total: int, count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ``count`` times ``size`` positions below ``total``, from reshuffled passes over all."""
    needed = count * size
    passes = [torch.randperm(total, generator=generator) for _ in range(-(-needed // total))]
    if passes:
        yield from torch.split(torch.cat(passes)[:needed], size)


@dataclass(frozen=True)
class MixedBatch(Batch):
    """Rows of a device's own data, and rows of the public set with soft labels; each may be none.

    The public rows may lack modalities that the own ones have. Their ``labels`` are probabilities
    ``[batch, classes]`` float32.
    """

    public: Batch

    def only(self, modalities: Iterable[str]) -> Batch:
        """Return both parts with these modalities alone."""
        names = list(modalities)
        own = super().only(names)
        public = self.public.only(m for m in names if m in self.public.inputs)
        return MixedBatch(own.inputs, own.labels, public)
