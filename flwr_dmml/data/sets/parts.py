"""``parts``: a data set that has been cut into a folder for each device."""

import filecmp
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...base.files import PART, write_whole
from ...base.formats import first_problem
from ..forms import Raw
from ..options import PartitionOptions
from ..registry import Dataset
from ..samples import DataError, Kind, Modality, Partition, Samples, Scale
from ..store import samples_of, save_tensors, tensors_of

ABOUT, TENSORS, TEST = "part.json", "samples.safetensors", "test.safetensors"
"""The files of a part: what it is, its own samples, and those that all devices are tested on."""


class PartAbout(BaseModel):
    """Contents of ``part.json``: who a part is for, what is in it, and how it was cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: int = Field(ge=0)
    parts: int = Field(ge=1)
    modalities: tuple[str, ...] = Field(min_length=1)
    source_modalities: dict[str, tuple[Kind, tuple[int, ...]]]
    raw: dict[str, Raw | None] = {}
    num_classes: int = Field(ge=1)
    class_names: tuple[str, ...] = ()
    train: int = Field(ge=1)
    validation: int = Field(ge=0)
    test: int = Field(ge=1)
    class_counts: tuple[int, ...]
    scales: dict[str, Scale] = {}
    settings: dict[str, Any]
    digest: str
    test_digest: str

    @property
    def line(self) -> str:
        """The part in a line, for people."""
        counts = f"{self.train} training, {self.validation} validation, {self.test} test samples"
        return f"part {self.part} of {self.parts}: {'+'.join(self.modalities)}, {counts}"


def part_folder(folder: Path, part: int) -> Path:
    """Return where part ``part`` of a divided data set is."""
    return folder / f"part-{part:03d}"


def save_part(
    folder: Path,
    partition: Partition,
    parts: int,
    settings: Mapping[str, Any],
    *,
    like: Iterable[Path] = (),
) -> PartAbout:
    """Write one device's part into ``folder``, which is made, and read it back to check it.

    Test samples that one of the parts in ``like`` has as well are a link to its file, so that the
    disk holds them once; a copy of the folder has a file of its own.

    Parameters
    ----------
    folder : Path
        New or empty.
    partition : Partition
        What the device sees.
    parts : int
        Number of devices.
    settings : mapping
        How the data set was cut, for people: JSON values.
    like : iterable of Path
        Folders of parts on the same disk.

    Raises
    ------
    DataError
        If the folder is not empty, or holds something else than was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"'{folder}' is not empty; name another folder, or remove it")
    tensors = tensors_of("train", partition.train)
    tensors |= tensors_of("validation", partition.validation)
    save_tensors(tensors, folder / TENSORS)
    tensors = tensors_of("test", partition.test)
    tensors |= {f"test_present.{m}": x for m, x in (partition.test_present or {}).items()}
    save_tensors(tensors, folder / TEST)
    _link_equal(folder / TEST, [other / TEST for other in like])
    labels = partition.train.labels
    about = PartAbout(
        part=partition.partition_id,
        parts=parts,
        modalities=partition.modalities,
        source_modalities={m: (k.kind, k.shape) for m, k in partition.source_modalities.items()},
        raw={m: k.raw for m, k in partition.source_modalities.items()},
        num_classes=partition.num_classes,
        class_names=partition.class_names,
        train=len(partition.train),
        validation=len(partition.validation),
        test=len(partition.test),
        class_counts=tuple(torch.bincount(labels, minlength=partition.num_classes).tolist()),
        scales=dict(partition.scales),
        settings=dict(settings),
        digest=_digest(folder / TENSORS),
        test_digest=_digest(folder / TEST),
    )
    write_whole(folder / ABOUT, about.model_dump_json(indent=2) + "\n")
    load_part(folder)
    return about


def read_about(folder: Path) -> PartAbout:
    """Read ``part.json`` of a part.

    Raises
    ------
    DataError
        If it is not there, or is not what :func:`save_part` writes.
    """
    file = folder / ABOUT
    try:
        return PartAbout.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"data-path: '{folder}' has no {ABOUT} ({error.strerror}); name a folder that "
            "flwr-dmml partition has made, or one of the parts in it"
        ) from error
    except ValidationError as error:
        raise DataError(f"data-path: '{file}' is damaged: {first_problem(error)}") from error


def load_part(folder: Path) -> Partition:
    """Read what :func:`save_part` wrote.

    Raises
    ------
    DataError
        If anything is missing, or the tensors are not those that ``part.json`` was written for.
    """
    about = read_about(folder)
    tensors = _tensors(folder / TENSORS, about.digest)
    tensors |= _tensors(folder / TEST, about.test_digest)
    try:
        samples = {
            name: samples_of(name, tensors, about.modalities)
            for name in ("train", "validation", "test")
        }
    except KeyError as error:
        raise DataError(
            f"data-path: '{folder}' does not hold a part: {TENSORS} or {TEST} lacks {error}"
        ) from error
    forms = {
        m: Modality(kind, shape, about.raw.get(m))
        for m, (kind, shape) in about.source_modalities.items()
    }
    _check(folder, about, samples, forms)
    return Partition(
        partition_id=about.part,
        modalities=about.modalities,
        train=samples["train"],
        validation=samples["validation"],
        source_modalities=forms,
        num_classes=about.num_classes,
        test=samples["test"],
        test_present=_test_present(tensors, about.modalities),
        class_names=about.class_names,
        scales=about.scales,
    )


def load(options: PartitionOptions, partition_id: int) -> Partition:
    """Load a device's part from ``options.load.path``: a folder of parts, or the part itself.

    How the parts were cut is not changed by any option.

    Raises
    ------
    DataError
        If there is no such part, it is another device's, or there are more or fewer devices.
    """
    root = Path(options.load.path)
    folder = root if os.path.exists(root / ABOUT) else part_folder(root, partition_id)
    if folder != root and not folder.is_dir():
        raise DataError(
            f"data-path: '{root}' holds no data of device {partition_id}: there is neither {ABOUT} "
            f"nor {folder.name}; name a folder that flwr-dmml partition has made, or one of the "
            "parts in it"
        )
    about = read_about(folder)
    if about.part != partition_id:
        raise DataError(
            f"data-path: '{folder}' is part {about.part}, this is device {partition_id}; leave "
            "partition-id out of the node config, or make them equal"
        )
    if about.parts != options.num_nodes:
        raise DataError(
            f"data-path: '{folder}' is one of {about.parts} parts; num-nodes is "
            f"{options.num_nodes}: make them equal"
        )
    return load_part(folder)


def _tensors(file: Path, digest: str) -> dict[str, Tensor]:
    try:
        if _digest(file) != digest:
            raise DataError(
                f"data-path: '{file}' is not the file that {ABOUT} was written for: it is damaged, "
                "cut short, or another's; copy the part again"
            )
        return load_file(file)
    except OSError as error:
        raise DataError(f"data-path: '{file}' cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise DataError(f"data-path: '{file}' does not hold a part: {error}") from error


def _link_equal(file: Path, others: Iterable[Path]) -> None:
    """Make a file a link to the first of the others that is equal, where the disk has links."""
    for other in others:
        if filecmp.cmp(file, other, shallow=False):
            link = file.with_name(file.name + PART)
            try:
                os.link(other, link)
            except OSError:  # no links on this disk, or too many: a copy does as well
                return
            link.replace(file)
            return


def _check(
    folder: Path, about: PartAbout, samples: Mapping[str, Samples], forms: Mapping[str, Modality]
) -> None:
    """Raise for samples that are not what ``part.json`` says, or not finite."""
    problems = []
    for name, part in samples.items():
        where = f"{TEST if name == 'test' else TENSORS}: "
        if len(part) != getattr(about, name):
            problems.append(f"{where}{len(part)} {name} samples, {getattr(about, name)} expected")
        for m, x in part.inputs.items():
            if m not in forms or x.shape[1:] != forms[m].shape:
                problems.append(f"{where}{name}: {m} has shape {tuple(x.shape[1:])}")
            elif not bool(torch.isfinite(x).all()):
                problems.append(f"{where}{name}: {m} has a value that is not finite")
        if (
            len(part)
            and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < about.num_classes
        ):
            problems.append(f"{where}{name}: a label outside 0 to {about.num_classes - 1}")
    if problems:
        raise DataError(f"data-path: '{folder}': {'; '.join(problems)}")


def _test_present(
    tensors: Mapping[str, Tensor], modalities: tuple[str, ...]
) -> dict[str, Tensor] | None:
    found = {m: tensors[key] for m in modalities if (key := f"test_present.{m}") in tensors}
    return found or None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, lambda: blake2b(digest_size=16)).hexdigest()


PARTS = Dataset(
    name="parts",
    modalities=(),
    needs_path=True,
    description="what flwr-dmml partition has cut: a folder for each device",
    load_part=load,
)
