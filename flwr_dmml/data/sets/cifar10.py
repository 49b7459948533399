"""``cifar10``: the 10,000 test images of CIFAR-10, divided once more into training and test."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ..division import stratified_split
from ..forms import RawImage
from ..options import LoadOptions
from ..registry import Dataset
from ..samples import DataError, Modality, Samples, Source

NUM_TRAIN, NUM_TEST = 8_000, 2_000  # images, the same number of each class
NUM_CLASSES = 10

_SHAPE = (NUM_TRAIN + NUM_TEST, 32, 32, 3)
_OF_EACH = _SHAPE[0] // NUM_CLASSES
_LAYOUT = (
    f"expected a numpy archive with 'images' {_SHAPE} uint8 and 'labels' ({_SHAPE[0]},) integers "
    f"from 0 to {NUM_CLASSES - 1}, {_OF_EACH} of each: CIFAR-10's test images (get them with "
    "torchvision.datasets.CIFAR10(folder, train=False, download=True) and write its .data and "
    ".targets with numpy.savez_compressed(file, images=..., labels=...))"
)


def load(options: LoadOptions) -> Source:
    """Load ``cifar10/cifar10_test.npz`` from ``options.path`` and divide it 8,000 to 2,000.

    These are the *test* images of CIFAR-10, and in the file that this project's numbers come from
    they were decoded from JPEG copies (lossy) and shuffled: accuracies are not those of papers,
    which train on 50,000 other images. The division is stratified, 800 and 200 of each class, is
    always the same for the same file and depends on no option. Pixels are in ``[0, 1]``.

    Returns
    -------
    Source
        ``image`` ``[3, 32, 32]``; 8,000 training and 2,000 test samples, without groups.

    Raises
    ------
    DataError
        If the file is missing, cannot be read, or holds something else.

    References
    ----------
    Images: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Division:
    this project.
    """
    path = Path(options.path) / "cifar10" / "cifar10_test.npz"
    images, labels = _read(path)
    samples = Samples(
        {"image": torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)},
        torch.from_numpy(labels.astype(np.int64)),
    )
    train, test = stratified_split(labels, NUM_TEST, random_state=0)
    return Source(
        name="cifar10",
        modalities={"image": Modality("image", (3, 32, 32), RawImage())},
        num_classes=NUM_CLASSES,
        train=samples.subset(train).gathered(),
        test=samples.subset(test).gathered(),
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Return the checked images ``[10000, 32, 32, 3]`` and labels ``[10000]`` of the archive."""
    if not path.is_file():
        raise DataError(
            f"data-path: '{path}' is missing; set data-path to the folder that holds cifar10/; "
            f"{_LAYOUT}"
        )
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            names = archive.files if isinstance(archive, NpzFile) else ()  # a single array: none
            arrays = {name: np.asarray(archive[name]) for name in names}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"data-path: '{path}' cannot be read ({error}); {_LAYOUT}") from error
    if problem := _problem(arrays):
        raise DataError(f"data-path: '{path}' {problem}; {_LAYOUT}")
    return arrays["images"], arrays["labels"]


def _problem(arrays: dict[str, NDArray[np.generic]]) -> str | None:
    """Say what is wrong with the arrays of the archive, or return None when it is CIFAR-10."""
    if lacking := [name for name in ("images", "labels") if name not in arrays]:
        return f"lacks {' and '.join(lacking)}, it holds {sorted(arrays)}"
    images, labels = arrays["images"], arrays["labels"]
    if images.shape != _SHAPE or images.dtype != np.uint8:
        return f"has images {images.shape} {images.dtype}"
    if labels.shape != _SHAPE[:1] or not np.issubdtype(labels.dtype, np.integer):
        return f"has labels {labels.shape} {labels.dtype}"
    values, counts = np.unique(labels, return_counts=True)
    if values.tolist() != [*range(NUM_CLASSES)] or set(counts.tolist()) != {_OF_EACH}:
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return f"has labels with the counts {dict(list(found.items())[:12])}"
    return None


CIFAR10 = Dataset(
    name="cifar10",
    modalities=("image",),
    needs_path=True,
    natural_ids=False,
    load=load,
    description="CIFAR-10's 10,000 test images (32x32), 8,000 for training and 2,000 for test",
)
