"""What is doubtful about loaded samples: channels that are no measurements, values far from 1."""

from collections.abc import Iterator, Sequence

import torch

from .forms import RawNumbers
from .samples import Doubt, Modality, Samples, Source
from .standard import NUMBERS, Range, ranges_of

_STAMPS = 1e8  # of seconds since 1970, and all the more of milliseconds
_LARGE, _SMALL = 30.0, 0.01  # of a root mean square, and of a deviation
_FEW = 5  # steps, or samples, from which an order shows
_SHOWN = 3  # channels that are spelled out


def named_channels(form: Modality) -> tuple[str, ...]:
    """Return the names of the channels of a modality; empty where they have none."""
    return form.raw.channels if isinstance(form.raw, RawNumbers) else ()


def channel_doubts(source: Source) -> tuple[Doubt, ...]:
    """Return what is doubtful about the channels of vectors, series and sequences.

    Constants, numbers like time stamps, those that count or never fall, and values that are far
    from a range around 1, by the training samples.
    """
    found = list[Doubt]()
    for name, form in source.modalities.items():
        if form.kind not in NUMBERS:
            continue
        ranges = ranges_of(source.train, name, form)
        found += _doubts(name, form, source.train, ranges, _called(form, ranges))
    return tuple(found)


def _called(form: Modality, ranges: Sequence[Range]) -> list[str]:
    what = "column" if form.kind == "vector" else "channel"
    known = named_channels(form) or [""] * len(ranges)
    return [f"{what} {k + 1}" + (f" ({n})" if n else "") for k, n in enumerate(known)]


def _doubts(
    name: str, form: Modality, samples: Samples, ranges: Sequence[Range], called: Sequence[str]
) -> Iterator[Doubt]:
    stamps = [k for k, r in enumerate(ranges) if r.least >= _STAMPS]
    constant = [k for k, r in enumerate(ranges) if r.constant and k not in stamps]
    rising = [k for k in _rising(samples, name, form) if k not in (*stamps, *constant)]
    rest = [k for k in range(len(ranges)) if k not in (*stamps, *constant, *rising)]
    large = [k for k in rest if (ranges[k].mean ** 2 + ranges[k].deviation ** 2) ** 0.5 > _LARGE]
    small = [k for k in rest if ranges[k].deviation < _SMALL and k not in large]

    def listed(which: Sequence[int]) -> str:
        shown = ", ".join(called[k] for k in which[:_SHOWN])
        return shown + (f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else "")

    if stamps:
        yield Doubt(
            "channel",
            f"{name}: {listed(stamps)} from {ranges[stamps[0]].least:.3g} on: time stamps? Leave "
            "them out: choose the channels in dataset.toml, or write the files without",
        )
    if rising:
        yield Doubt(
            "channel",
            f"{name}: {listed(rising)} only rises from step to step, or row to row: an index, or "
            "time? Leave it out, if it is no measurement",
        )
    if constant:
        yield Doubt("channel", f"{name}: {listed(constant)} never changes, and tells nothing")
    for which, how in ((large, "far above"), (small, "far below")):
        if which:
            r = ranges[which[0]]
            yield Doubt(
                "scale",
                f"{name}: {listed(which)} far from 1 (mean {r.mean:.3g}, deviation "
                f"{r.deviation:.3g}): training with values {how} 1 goes badly; set standardise = "
                '"auto"',
            )


def _rising(samples: Samples, name: str, form: Modality) -> list[int]:
    """Return the channels that rise from each step to the next, or row to row of vectors."""
    x = samples.inputs[name]
    if samples.present is not None:
        x = x[samples.present[name]]
    if form.kind == "vector":
        x = x.T[None]  # [1, features, rows]
    last = x.shape[1] - (form.kind == "sequence")
    if x.shape[2] < _FEW or not len(x):
        return []
    steps = x[:, :last].diff(dim=2) > 0
    if form.kind == "sequence":
        steps |= x[:, -1:, 1:] == 0  # behind the end
        if not bool((x[:, -1].sum(dim=1) >= _FEW).any()):
            return []
    found: list[int] = torch.nonzero(steps.all(dim=2).all(dim=0)).flatten().tolist()
    return found
