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
    needed = count * size
    passes = [
        torch.randperm(len(samples), generator=generator) for _ in range(-(-needed // len(samples)))
    ]
    if passes:
        for indices in torch.split(torch.cat(passes)[:needed], size):
            drawn = samples.subset(indices)
            yield Batch(dict(drawn.inputs), drawn.labels)
