"""``folder``: one's own files, listed in a manifest, or as Hugging Face's ``datasets`` saves them.

Nothing of it is ever run: no pickles are loaded.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from logging import INFO
from pathlib import Path

from ...base.log import log
from ..forms import RawNumbers
from ..looks import channel_doubts
from ..options import LoadOptions
from ..reading.arrow_files import parquet_columns, read_parquet_manifest
from ..reading.cells import is_missing, label_problems, ordered
from ..reading.class_folders import (
    class_folder_modalities,
    has_class_folders,
    read_class_folders,
)
from ..reading.decoding import Decoded, Decoder
from ..reading.hf_disk import DICT, STATE, hf_columns, hf_files, read_hf_disk
from ..reading.manifest import (
    CSV,
    DESCRIPTION,
    PARQUET,
    SPLITS,
    Manifest,
    csv_columns,
    read_csv_manifest,
    read_description,
)
from ..reading.problems import Problems
from ..reading.recordings import indices, joined, read_recordings
from ..reading.windows import spans
from ..registry import Dataset
from ..samples import DataError, Modality, Samples, Source
from ..standard import standardised

CLASSES = "class folders"
"""Where folders alone say what samples there are."""


def load(options: LoadOptions) -> Source:
    """Load the files that ``manifest.csv`` or ``manifest.parquet`` in ``options.path`` lists.

    A row for each sample: ``label``, ``split`` ("train" or "test"), and for each modality the path
    of a file in the folder, or nothing where the sample lacks it; in Parquet also a list of numbers
    (a vector) or of such lists, one for each step. Optional are ``id``, all different, and
    ``node``, the natural id of training samples that the partition "natural" goes by.

    What a modality is follows from its files: images; sound; in ``.npy`` and ``.csv`` a vector, or
    a series if there are steps, the same number in each. ``dataset.toml`` may say otherwise and is
    needed for sequences::

        classes = ["robin", "wren"]      # and their order; else they are sorted
        ignore = ["remark"]              # columns that are no modality
        [columns]                        # of another name than label, split, id and node
        label = "species"
        [modalities]
        song = "audio"                   # image, audio, vector, series or sequence

    Images and sound become tensors as :mod:`~flwr_dmml.data.reading.media` says; numbers stay as
    they are, and columns of CSV files go by name, in the order of the first file. A sequence is cut
    to ``series.steps``, or ends with zeros.

    With ``[recordings]`` in ``dataset.toml`` a row is a recording, which becomes as many samples as
    it has windows (:func:`~flwr_dmml.data.reading.recordings.read_recordings`).

    Without a manifest, :func:`~flwr_dmml.data.reading.class_folders.read_class_folders` says what
    files in folders are.

    A folder that ``save_to_disk`` of Hugging Face's ``datasets`` wrote is loaded likewise, with the
    splits "train" and "test": images, sound, and lists of numbers are its modalities.

    Returns
    -------
    Source
        Modalities in the order of the columns; classes sorted, numbers as numbers.

    Raises
    ------
    DataError
        If anything is wrong with the folder; every row is named, with the reason.
    """
    started = time.perf_counter()
    root, manifest = Path(options.path), read_manifest(options)
    problems = Problems(f"data-path: '{root}' cannot be used")
    splits = [manifest.about.split_of(name) for name in manifest.splits]
    kept = [row for row, split in enumerate(splits) if split != "out"]
    if manifest.about.recordings is not None:
        return _finished(manifest, _from_recordings(root, manifest, splits, options, problems))
    classes = manifest.about.classes or ordered([manifest.labels[row] for row in kept])
    groups = ordered([manifest.nodes[row] for row in kept]) if manifest.nodes else ()
    _check_rows(manifest, splits, classes, problems)
    log(INFO, "reading %s samples of %s", f"{len(kept):,}", ", ".join(manifest.columns))
    # The parts one after the other, so that each is a slice of the same tensors.
    parts = [[row for row, s in enumerate(splits) if s == split] for split in SPLITS]
    rest = sorted({*kept}.difference(*parts))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoder = Decoder(root, options, manifest.where, problems, pool)
        decoded = {
            name: decoder.decode(name, column, [*parts[0], *parts[1], *rest])
            for name, column in manifest.columns.items()
        }
    whole = {name: found for name, found in decoded.items() if found is not None}
    if len(whole) == len(decoded):
        for row in sorted(decoder.empty.intersection(kept).difference(manifest.faults)):
            problems.add(manifest.where[row], "it has no modality")
    problems.check()
    train, test = (
        _part(manifest, whole, rows, offset, classes, groups)
        for rows, offset in zip(parts, (0, len(parts[0])), strict=True)
    )
    log(INFO, "read in %.1f s", time.perf_counter() - started)
    source = Source(
        name=manifest.about.name,
        modalities={name: form for name, (form, _, _) in whole.items()},
        num_classes=len(classes),
        train=train,
        test=test,
        class_names=classes,
        group_names=groups,
    )
    return _finished(manifest, source)


def _finished(manifest: Manifest, source: Source) -> Source:
    source = replace(source, doubts=channel_doubts(source))
    return standardised(source) if manifest.about.standardise == "auto" else source


def _from_recordings(
    root: Path,
    manifest: Manifest,
    splits: Sequence[str],
    options: LoadOptions,
    problems: Problems,
) -> Source:
    """Return the windows of the recordings that a manifest lists."""
    about = manifest.about
    assert about.recordings is not None
    rows = [row for row, split in enumerate(splits) if split != "out"]
    sound = [row for row in rows if row not in manifest.faults]
    log(INFO, "reading %s recordings of %s", f"{len(rows):,}", ", ".join(manifest.columns))
    found = read_recordings(root, manifest, sound, about.recordings, options.series, problems)
    labels = [label for windows in found for label in windows.labels]
    of = [splits[windows.row] for windows in found for _ in windows.labels]
    for split in SPLITS:
        if split not in of and split in splits and not len(problems):
            raise DataError(
                f"series.window-s = {options.series.window_s:g}: no {split} recording has a window "
                "of one activity without a gap; allowed: shorter ones"
            )
    classes = about.classes or ordered(labels)
    groups = ordered([manifest.nodes[row] for row in rows]) if manifest.nodes else ()
    _check_recordings(manifest, splits, labels, of, classes, problems)
    modalities = {}
    for name in manifest.columns:
        shapes = {windows.values[name].shape[1:] for windows in found if name in windows.values}
        if len(shapes) > 1:
            told = ", ".join(str(shape[0]) for shape in sorted(shapes))
            problems.add(f"column '{name}'", f"its recordings have {told} channels")
        elif not shapes:
            problems.add(f"column '{name}'", "it is empty")
        else:
            channels = next((w.names[name] for w in found if name in w.names), ())
            raw = RawNumbers(rate_hz=options.series.rate_hz, channels=channels)
            modalities[name] = Modality("series", shapes.pop(), raw)
    problems.check()
    parts = [[windows for windows in found if splits[windows.row] == split] for split in SPLITS]
    train, test = (joined(part, modalities, classes, groups, manifest.nodes) for part in parts)
    steps = next(iter(modalities.values())).shape[-1]
    return Source(
        name=about.name,
        modalities=modalities,
        num_classes=len(classes),
        train=train,
        test=test,
        class_names=classes,
        group_names=groups,
        windows=spans((windows.starts for windows in parts[0]), steps),
    )


def _check_recordings(
    manifest: Manifest,
    splits: Sequence[str],
    labels: Sequence[str],
    of: Sequence[str],
    classes: Sequence[str],
    problems: Problems,
) -> None:
    """Note what is wrong with rows that are recordings, and with the labels of their windows."""
    usual = [classes[0] if classes else ""] * len(splits)
    labelled = manifest if manifest.labels else replace(manifest, labels=usual)
    _check_rows(labelled, splits, classes, problems, whole=False)
    for label in sorted({*labels} - {*classes}):
        problems.add("", f"the label '{label}' is none of {', '.join(classes)}")
    if not manifest.about.classes:
        for problem in label_problems(labels, of):
            problems.add("", f"{problem}, or name the classes in {DESCRIPTION}")


def _part(
    manifest: Manifest,
    decoded: Mapping[str, Decoded],
    rows: Sequence[int],
    offset: int,
    classes: Sequence[str],
    groups: Sequence[str],
) -> Samples:
    """Return the samples of ``rows``, which are those from ``offset`` of what was decoded."""
    place = slice(offset, offset + len(rows))
    nodes = ["" if is_missing(n := manifest.nodes[row]) else n for row in rows] if groups else []
    present = {name: has[place] for name, (_, _, has) in decoded.items()}
    return Samples(
        inputs={name: inputs[place] for name, (_, inputs, _) in decoded.items()},
        labels=indices([manifest.labels[row] for row in rows], classes),
        groups=indices(nodes, groups) if nodes and all(nodes) else None,
        present=None if all(bool(has.all()) for has in present.values()) else present,
    )


def read_manifest(options: LoadOptions) -> Manifest:
    """Read what lists the samples of ``options.path``, none of their files.

    Raises
    ------
    DataError
        There is nothing of the kind, or it cannot be read.
    """
    with _at(options) as root:
        about = read_description(root)
        reads = {
            CSV: read_csv_manifest,
            PARQUET: read_parquet_manifest,
            CLASSES: read_class_folders,
        }
        return reads.get(_format(root), read_hf_disk)(root, about)


def _modalities(options: LoadOptions) -> tuple[str, ...]:
    with _at(options) as root:
        about, form = read_description(root), _format(root)
        if form in (CSV, PARQUET):
            names = csv_columns(root) if form == CSV else parquet_columns(root)
            return about.modalities_among(names)
        if form == CLASSES:
            return class_folder_modalities(root, about)
        found = hf_columns(root, about)
        return found.about.modalities_among(found.names)


def _files(options: LoadOptions) -> list[Path | str]:
    """Return the manifest and what it names, or the files that ``save_to_disk`` wrote."""
    with _at(options) as root:
        form = _format(root)
        if form not in (CSV, PARQUET, CLASSES):
            return [root / DESCRIPTION, *hf_files(root)]
    columns = read_manifest(options).columns.values()
    lists = [column.cells for column in columns if isinstance(column.cells, Sequence)]
    named = dict.fromkeys(str(cell) for cells in lists for cell in cells if cell)
    # Text: as paths, many small files would take longer than all else from the cache.
    manifest = [] if form == CLASSES else [root / form]
    return [root / DESCRIPTION, *manifest, *(os.path.join(root, name) for name in named)]


@contextmanager
def _at(options: LoadOptions) -> Iterator[Path]:
    """Give the folder, and name it in errors."""
    root = Path(options.path)
    try:
        yield root
    except DataError as error:
        raise DataError(f"data-path: '{root}' cannot be used: {error}") from error


def _format(root: Path) -> str:
    """Return which of the files that begin a data set is in a folder."""
    if not root.is_dir():
        raise DataError("there is no such folder")
    found = [name for name in (CSV, PARQUET, DICT, STATE) if (root / name).exists()]
    if not found and has_class_folders(root):
        return CLASSES
    if len(found) != 1:
        raise DataError(
            f"it holds {' and '.join(found) or 'no manifest'}; expected one of {CSV}, {PARQUET}, "
            f"a folder that save_to_disk of Hugging Face's datasets wrote ({DICT} or {STATE}), or "
            "a folder of files for each class"
        )
    return found[0]


def _check_rows(
    manifest: Manifest,
    splits: Sequence[str],
    classes: Sequence[str],
    problems: Problems,
    *,
    whole: bool = True,
) -> None:
    """Note what is wrong with the rows, besides their modalities; ``whole``: and their labels'."""
    known, seen, declared = set(classes), dict[str, int](), bool(manifest.about.classes)
    rows = [row for row, split in enumerate(splits) if split != "out"]
    if len(known) < 2 or len(known) < len(classes):
        problems.add(
            "",
            f"the classes are {', '.join(classes) or 'none'}; expected two or more, all different",
        )
    if whole and not declared:
        sound = [row for row in rows if row not in manifest.faults]
        for problem in label_problems(
            [manifest.labels[row] for row in sound], [splits[row] for row in sound]
        ):
            problems.add("", f"{problem}, or name the classes in {DESCRIPTION}")
    for split in SPLITS:
        if split not in splits:
            problems.add("", f"no row has the split '{split}'")
    for row in rows:
        where = manifest.where[row]
        if row in manifest.faults:
            problems.add(where, manifest.faults[row])
            continue
        label, split = manifest.labels[row], splits[row]
        if label not in known:
            if is_missing(label):
                told = f": '{label}' is a missing value" if label else ""
                problems.add(where, f"it has no label{told} (write its class, or delete the row)")
            else:
                problems.add(where, f"its label '{label}' is none of {', '.join(classes)}")
        if split not in SPLITS:
            problems.add(
                where,
                f"its split is '{split}'; allowed: train, test (for others, [splits] in "
                f"{DESCRIPTION})",
            )
        if manifest.nodes and split == "train" and is_missing(manifest.nodes[row]):
            problems.add(where, "it has no node")
        if manifest.ids and not is_missing(name := manifest.ids[row]):
            if name in seen:
                problems.add(where, f"its id '{name}' is that of {manifest.where[seen[name]]}")
            seen.setdefault(name, row)


FOLDER = Dataset(
    name="folder",
    modalities=_modalities,
    needs_path=True,
    natural_ids=True,
    load=load,
    description="your own images, sound and numbers, by a manifest or a saved Hugging Face set",
    files=_files,
    uses=("audio", "image", "series"),
)
