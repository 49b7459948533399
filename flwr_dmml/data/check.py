"""A first look at a data set: what was understood of it, and what may be wrong (:func:`check`)."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from ..base.files import write_whole
from .forms import RawNumbers
from .looks import channel_doubts, named_channels
from .options import LoadOptions
from .reading.manifest import DESCRIPTION, SPLITS, Column, Manifest, read_description
from .reading.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, image_size, sound_facts
from .reading.recordings import recorded_times
from .registry import find_dataset
from .samples import DataError, Doubt, Modality, Samples, Source
from .sets.folder import FOLDER, read_manifest
from .standard import NUMBERS, Range, ranges_of

_CHANNELS = 24  # of a modality that are shown one by one
_EXAMPLES = 3  # rows that are named
_CLIPPED = 1e-3  # share of a sound at full scale from which it counts as clipped


@dataclass(frozen=True)
class Sheet:
    """A table: its title, the names of its columns, and rows of as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Checked:
    """What was found out about a data set.

    Attributes
    ----------
    sheets : list of Sheet
        What was understood.
    doubts : list of Doubt
        What may be wrong.
    problem : str
        Why it cannot be used; empty where it can.
    """

    sheets: list[Sheet] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    problem: str = ""


def check(dataset: str, options: LoadOptions) -> Checked:
    """Read a data set and look at it; the cache is left alone.

    Parameters
    ----------
    dataset : str
        Name of a registered data set.
    options : LoadOptions
        How to load it.

    Raises
    ------
    DataError
        There is no data set of that name.
    """
    found, of = Checked(), find_dataset(dataset)
    options = of.with_own(options)
    manifest: Manifest | None = None
    try:
        if dataset == FOLDER.name:
            manifest = read_manifest(options)
            found.sheets += [_columns(manifest), _rows(manifest)]
        source = of.loader(options)
    except DataError as error:
        found.problem = str(error)
        return found
    where = _places(source, manifest)
    files = _Files(manifest, options, source) if manifest is not None else None
    found.sheets += [_classes(source), _modalities(source)]
    found.sheets += _values(source, source.train, "Values in training")
    found.sheets += _values(source, source.test, "Values in testing")
    found.doubts += source.doubts if source.scales else channel_doubts(source)
    found.doubts += [doubt for doubt in source.doubts if doubt.topic == "file"]
    found.doubts += [*_class_doubts(source), *_sample_doubts(source, where)]
    if files is not None:
        found.sheets += files.sheets
        found.doubts += files.doubts
    found.doubts = [*dict.fromkeys(found.doubts)]
    return found


def _columns(manifest: Manifest) -> Sheet:
    about, rows = manifest.about, len(manifest.where)
    roles = {"labels": manifest.labels, "splits": manifest.splits}
    roles |= {"ids": manifest.ids, "nodes": manifest.nodes}
    named = about.columns
    names = {"labels": named.label, "splits": named.split, "ids": named.id, "nodes": named.node}
    taken = [
        (names[role], role, f"{sum(map(bool, cells)):,} of {rows:,}")
        for role, cells in roles.items()
        if len(cells)
    ]
    for name, column in manifest.columns.items():
        filled = sum(cell is not None for cell in _cells(column))
        kind = column.kind or "modality, by its files"
        taken.append((name, kind, f"{filled:,} of {rows:,}"))
    taken += [(name, "ignored", "") for name in about.ignore]
    return Sheet("Columns", ("column", "taken as", "filled"), taken)


def _cells(column: Column) -> Iterator[object]:
    if isinstance(column.cells, Sequence):
        yield from column.cells
    else:
        yield from (True for _ in range(len(column.cells)))  # numbers: not read for a count


def _rows(manifest: Manifest) -> Sheet:
    splits = Counter(manifest.splits)
    rows = [
        (name or "(none)", manifest.about.split_of(name) if name else "", f"{count:,}")
        for name, count in sorted(splits.items())
    ]
    return Sheet("Rows", ("split", "taken as", "rows"), rows)


def _places(source: Source, manifest: Manifest | None) -> dict[str, Sequence[str]]:
    """Return what names each sample of a part, in its order."""
    if manifest is None or manifest.about.recordings is not None:  # or several samples a row
        return {
            split: [f"{split} sample {k}" for k in range(len(part))]
            for split, part in zip(SPLITS, (source.train, source.test), strict=True)
        }
    splits = map(manifest.about.split_of, manifest.splits)
    pairs = [*zip(splits, manifest.where, strict=True)]
    return {split: [where for s, where in pairs if s == split] for split in SPLITS}


def _classes(source: Source) -> Sheet:
    names = source.class_names or tuple(map(str, range(source.num_classes)))
    counts = [
        torch.bincount(part.labels, minlength=source.num_classes).tolist()
        for part in (source.train, source.test)
    ]
    rows = [
        (name, f"{train:,}", f"{test:,}") for name, train, test in zip(names, *counts, strict=True)
    ]
    rows.append(("all", f"{len(source.train):,}", f"{len(source.test):,}"))
    return Sheet("Classes", ("class", "train", "test"), rows)


def _has(part: Samples, name: str) -> torch.Tensor:
    return torch.ones(len(part), dtype=torch.bool) if part.present is None else part.present[name]


def _modalities(source: Source) -> Sheet:
    rows = []
    for name, form in source.modalities.items():
        has = [_has(part, name) for part in (source.train, source.test)]
        shares = [f"{1 - h.double().mean().item():.1%}" if len(h) else "" for h in has]
        raw = form.raw
        rate = f"{raw.rate_hz:g}" if isinstance(raw, RawNumbers) and raw.rate_hz else ""
        rows.append((name, form.kind, " x ".join(map(str, form.shape)), rate, *shares))
    title = "Modalities" + (", standardised" if source.scales else "")
    columns = ("modality", "kind", "shape of a sample", "rate, Hz", "missing in train", "in test")
    return Sheet(title, columns, rows)


def _values(source: Source, part: Samples, title: str) -> Iterator[Sheet]:
    """Yield the ranges of a part's values, if it has samples."""
    rows = []
    for name, form in source.modalities.items() if len(part) else ():
        if not _has(part, name).any():
            continue
        ranges = ranges_of(part, name, form)
        known = named_channels(form) or [""] * len(ranges)
        one_by_one = form.kind in NUMBERS and len(ranges) <= _CHANNELS
        called = [f"{k + 1}" + (f" {n}" if n else "") for k, n in enumerate(known)]
        if not one_by_one:
            called, ranges = [f"all {len(ranges)}"], [_together(ranges)]
        rows += [
            (name, which, *(f"{x:.4g}" for x in (r.least, r.most, r.mean, r.deviation)))
            for which, r in zip(called, ranges, strict=True)
        ]
    columns = ("modality", "channel", "least", "most", "mean", "deviation")
    if rows:
        yield Sheet(title, columns, rows)


def _together(ranges: Sequence[Range]) -> Range:
    count = len(ranges)
    mean = sum(r.mean for r in ranges) / count
    square = sum(r.deviation**2 + (r.mean - mean) ** 2 for r in ranges) / count
    return Range(min(r.least for r in ranges), max(r.most for r in ranges), mean, square**0.5)


def _class_doubts(source: Source) -> Iterator[Doubt]:
    names = source.class_names or tuple(map(str, range(source.num_classes)))
    train, test = (
        torch.bincount(part.labels, minlength=source.num_classes).tolist()
        for part in (source.train, source.test)
    )
    for split, counts in (("training", train), ("test", test)):
        if none := [name for name, count in zip(names, counts, strict=True) if not count]:
            yield Doubt("class", f"no {split} sample is of class {_few(none)}")
    alike = defaultdict[str, list[str]](list)
    for name in names:
        alike["".join(c for c in name.casefold() if c.isalnum())].append(name)
    for several in alike.values():
        if len(several) > 1 and len("".join(several)) > len(several):
            yield Doubt(
                "class",
                f"the classes {', '.join(several)} are spelled alike: one class? Write them alike",
            )
    if source.train.groups is not None and source.test.groups is not None:
        both = {*source.train.groups.tolist()} & {*source.test.groups.tolist()}
        if both:
            yield Doubt(
                "class",
                f"{len(both)} nodes have both training and test samples: the test then says little "
                "about people (or places) that are new",
            )


def _sample_doubts(source: Source, where: Mapping[str, Sequence[str]]) -> Iterator[Doubt]:
    for name, form in source.modalities.items():
        flat, seen = list[str](), dict[bytes, str]()
        twins = list[str]()
        for split, part in zip(SPLITS, (source.train, source.test), strict=True):
            x, has = part.inputs[name], _has(part, name)
            flat_rows = _flat(x, by_channel=form.kind == "image")
            for row in torch.nonzero(has).flatten().tolist():
                place = where[split][row]
                if bool(flat_rows[row]):
                    flat.append(place)
                    continue
                key = blake2b(x[row].contiguous().numpy().tobytes(), digest_size=16).digest()
                if split == "train":
                    seen.setdefault(key, place)
                elif key in seen:
                    twins.append(f"{place} as {seen[key]}")
        yield from _told(name, form, flat, twins)


def _told(name: str, form: Modality, flat: list[str], twins: list[str]) -> Iterator[Doubt]:
    what = {"audio": "silent", "image": "of one colour"}.get(form.kind, "of one value alone")
    if flat and (form.kind != "vector" or form.shape[0] > 1):
        yield Doubt(
            "sample",
            f"{name}: {len(flat):,} samples are {what} ({_few(flat)}); leave the cells empty, if "
            "nothing was recorded",
        )
    if twins:
        yield Doubt(
            "sample",
            f"{name}: {len(twins):,} test samples are equal to training samples ({_few(twins)}): "
            "the test then rewards memory",
        )


def _flat(x: torch.Tensor, *, by_channel: bool) -> torch.Tensor:
    """Return which samples ``[n, channels, ...]`` have one value alone, or one in each channel."""
    rows = x.reshape(len(x), x.shape[1] if by_channel else 1, -1)
    return (rows == rows[..., :1]).flatten(1).all(dim=1)


def _few(places: Sequence[str]) -> str:
    more = len(places) - _EXAMPLES
    return ", ".join(places[:_EXAMPLES]) + (f" and {more:,} more" if more > 0 else "")


def _pace(found: Sequence[NDArray[np.float64]]) -> Iterator[tuple[str, str]]:
    """Yield rates and lengths of recordings, by the times of their rows."""
    lengths = [float(times[-1] - times[0]) for times in found]
    pairs = zip(found, lengths, strict=True)
    for what, numbers in (
        ("rows a second", [(len(times) - 1) / length for times, length in pairs if length > 0]),
        ("length, s", lengths),
    ):
        if numbers:
            of = (min(numbers), max(numbers), median(numbers))
            yield (what, "{:.4g} to {:.4g}, median {:.4g}".format(*of))


class _Files:
    """What the files of a folder are: sizes, rates and lengths.

    Attributes
    ----------
    sheets : list of Sheet
        A line for each modality.
    doubts : list of Doubt
        What may be wrong.
    """

    def __init__(self, manifest: Manifest, options: LoadOptions, source: Source) -> None:
        self.doubts: list[Doubt] = []
        self._modalities = source.modalities
        self._options = options
        self._recordings = manifest.about.recordings
        rows: list[tuple[str, ...]] = []
        for name, column in manifest.columns.items():
            if isinstance(column.cells, Sequence):
                paths = {
                    Path(options.path, cell): manifest.where[row]
                    for row, cell in enumerate(column.cells)
                    if isinstance(cell, str)
                    and manifest.about.split_of(manifest.splits[row]) in SPLITS
                }
                rows += [(name, *line) for line in self._look(name, column, paths)]
        self.sheets = [Sheet("Files", ("modality", "of its files", "are"), rows)] if rows else []

    def _look(
        self, name: str, column: Column, paths: Mapping[Path, str]
    ) -> Iterator[tuple[str, str]]:
        suffixes = Counter(path.suffix.lower() for path in paths)
        yield ("files", ", ".join(f"{n:,} {suffix or 'other'}" for suffix, n in suffixes.items()))
        if column.kind == "audio" or suffixes.keys() <= AUDIO_SUFFIXES:
            yield from self._sounds(name, paths)
        elif column.kind == "image" or suffixes.keys() <= IMAGE_SUFFIXES:
            sizes = Counter(image_size(path) for path in paths)
            listed = [f"{n:,} of {width} x {height}" for (width, height), n in sizes.most_common()]
            yield ("pixels", _few(listed))
        elif tables := [path for path in paths if path.suffix.lower() == ".csv"]:
            if names := named_channels(self._modalities[name]):
                yield ("channels", ", ".join(names))
            about = self._recordings
            if about is not None and about.time:
                yield from _pace([recorded_times(path, about) for path in tables])

    def _sounds(self, name: str, paths: Mapping[Path, str]) -> Iterator[tuple[str, str]]:
        facts = {path: sound_facts(path) for path in paths}
        rates = Counter(fact.rate_hz for fact in facts.values())
        yield ("rate, Hz", ", ".join(f"{n:,} of {rate}" for rate, n in rates.most_common()))
        channels = Counter(fact.channels for fact in facts.values())
        yield ("channels", ", ".join(f"{n:,} of {k}" for k, n in channels.most_common()))
        lengths = [fact.seconds for fact in facts.values()]
        usual, kept = median(lengths), self._options.audio.seconds
        yield ("length, s", f"{min(lengths):.2f} to {max(lengths):.2f}, median {usual:.2f}")
        if not 0.5 * kept <= usual <= 1.05 * kept:
            becomes = f"the middle {kept:g} s is kept" if usual > kept else "the rest is silence"
            self.doubts.append(
                Doubt(
                    "file",
                    f"{name}: sounds last {usual:.2f} s (median), and with audio.seconds = "
                    f"{kept:g} {becomes}; set audio.seconds",
                )
            )
        for what, told in (
            ("cancelled", "have channels that cancel out, of which the loudest is taken"),
            ("clipped", "are clipped: recorded too loud"),
        ):
            found = [
                f"{paths[path]}, {path.name}"
                for path, fact in facts.items()
                if (fact.cancelled if what == "cancelled" else fact.full_scale > _CLIPPED)
            ]
            if found:
                text = f"{name}: {len(found):,} sounds {told} ({_few(found)})"
                self.doubts.append(Doubt("sample", text))


def standardise_in(root: Path) -> None:
    """Have the ``dataset.toml`` of a folder say that its numbers are standardised.

    Raises
    ------
    DataError
        It says something else already, or cannot be read or written.
    """
    path = root / DESCRIPTION
    if "standardise" in read_description(root).model_fields_set:
        raise DataError(f"{path} has a line for standardise already; change it there")
    before = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    write_whole(path, f'standardise = "auto"\n{before}')
