"""Standardising numbers by the training samples: zero mean and unit variance of each channel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .samples import Modality, Samples, Scale, Source

NUMBERS = ("vector", "series", "sequence")
"""Kinds of modalities whose values stay as they are in the files."""

_ROWS = 4096  # at once: bounds the memory of float64
_CONSTANT = 1e-6  # of a channel's largest value: float32 knows no less deviation


@dataclass(frozen=True)
class Range:
    """What the values of a channel are over samples that have it.

    Attributes
    ----------
    least, most, mean, deviation : float
        NaN where there is no value.
    """

    least: float
    most: float
    mean: float
    deviation: float

    @property
    def constant(self) -> bool:
        """Whether the values do not differ, as far as float32 can tell."""
        return not self.deviation > _CONSTANT * max(abs(self.least), abs(self.most))


def ranges_of(samples: Samples, name: str, modality: Modality) -> list[Range]:
    """Return the range of each channel of a modality, those of its first dimension.

    Steps behind the end of a sequence do not count; neither do samples that lack the modality.
    """
    channels = modality.shape[0] - (modality.kind == "sequence")
    count = torch.zeros(channels, dtype=torch.float64)
    total, least = torch.zeros_like(count), torch.full_like(count, torch.inf)
    most, square = -least, torch.zeros_like(count)
    for values, there in _values(samples, name, modality):
        count += there.sum(dim=(0, 2))
        total += (values * there).sum(dim=(0, 2))
        least = torch.minimum(least, values.masked_fill(~there, torch.inf).amin(dim=(0, 2)))
        most = torch.maximum(most, values.masked_fill(~there, -torch.inf).amax(dim=(0, 2)))
    mean = total / count
    for values, there in _values(samples, name, modality):
        square += ((values - mean[:, None]).square() * there).sum(dim=(0, 2))
    deviation = (square / count).sqrt()
    columns = (least, most, mean, deviation)
    rows = torch.stack(columns, dim=1).masked_fill((count == 0)[:, None], torch.nan)
    return [Range(*row) for row in rows.tolist()]


def standardised(source: Source) -> Source:
    """Return a source whose vectors, series and sequences have mean 0 and deviation 1 in training.

    By channel: subtracts the mean of the training samples, divides by their standard deviation, or
    by 1 where that is 0. Test samples are treated alike, and have no part in it. What is missing,
    and steps behind the end of a sequence, stay 0. A source that is standardised already is
    returned as it is.
    """
    names = [m for m, form in source.modalities.items() if form.kind in NUMBERS]
    if source.scales or not names:
        return source
    scales = {m: _scale(source.train, m, source.modalities[m]) for m in names}
    train, test = (
        replace(
            part,
            inputs={
                m: _scaled(part, m, source.modalities[m], scales[m]) if m in scales else x
                for m, x in part.inputs.items()
            },
        )
        for part in (source.train, source.test)
    )
    doubts = tuple(doubt for doubt in source.doubts if doubt.topic != "scale")
    return replace(source, train=train, test=test, scales=scales, doubts=doubts)


def _scale(samples: Samples, name: str, modality: Modality) -> Scale:
    found = ranges_of(samples, name, modality)
    usual = [(r.mean, 1.0 if r.constant else r.deviation) for r in found]
    if modality.kind == "sequence":
        usual.append((0.0, 1.0))  # the mask
    return Scale(tuple(mean for mean, _ in usual), tuple(deviation for _, deviation in usual))


def scale_inputs(x: Tensor, modality: Modality, scale: Scale) -> Tensor:
    """Return inputs ``[n, channels, ...]`` standardised; behind the end of a sequence 0 stays."""
    out = scale.applied(x)
    if modality.kind == "sequence":
        out[:, :-1] *= x[:, -1:]
        out[:, -1] = x[:, -1]
    return out


def _scaled(samples: Samples, name: str, modality: Modality, scale: Scale) -> Tensor:
    x = samples.inputs[name]
    out = torch.empty_like(x)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        out[rows] = scale_inputs(x[rows], modality, scale)
    has = None if samples.present is None else samples.present[name]
    if has is not None:
        out[~has] = 0
    return out


def _values(samples: Samples, name: str, modality: Modality) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield values ``[rows, channels, steps]`` in float64, and which are there."""
    x = samples.inputs[name]
    present: Mapping[str, Tensor] = samples.present or {}
    has = present.get(name, torch.ones(len(x), dtype=torch.bool))
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        part = part.reshape(len(part), part.shape[1], -1).double()
        there = has[start : start + _ROWS, None, None].expand(part.shape)
        if modality.kind == "sequence":
            part, there = part[:, :-1], there[:, :-1] & (part[:, -1:] > 0)
        yield part, there
