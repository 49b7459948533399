"""MNIST's files, as torchvision lays them out: which are missing, and what is in them."""

from pathlib import Path

import torch

from ...base.libraries import needed
from ..samples import DataError

NUM_TRAIN, NUM_TEST = 60_000, 10_000  # images

_FILES = tuple(
    f"{part}-{content}"
    for part in ("train", "t10k")
    for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def mnist_files(root: Path) -> list[Path]:
    """Return the files under ``root`` (torchvision's folder), whether they are there or not."""
    return [root / "MNIST" / "raw" / name for name in _FILES]


def mnist_problem(root: Path) -> str | None:
    """Say which files ``root`` (torchvision's folder) lacks and how to get them, or return None."""
    missing = [file.name for file in mnist_files(root) if not file.is_file()]
    if not missing:
        return None
    return (
        f"mnist: {root / 'MNIST' / 'raw'} lacks {', '.join(missing)} "
        f'(get it with torchvision.datasets.MNIST("{root}", download=True))'
    )


def read_mnist(root: Path, *, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images ``[n, 28, 28]`` uint8 and labels ``[n]`` int64 of one part of MNIST.

    Parameters
    ----------
    root : Path
        The folder that holds ``MNIST/raw``.
    train : bool
        The 60,000 training images, or else the 10,000 test images.

    Raises
    ------
    DataError
        If a file cannot be read or is not a whole part of MNIST.
    """
    with needed("torchvision"):
        from torchvision.datasets import MNIST

    try:
        mnist = MNIST(root, train=train, download=False)
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, OSError) as error:
        raise DataError(f"data-path: mnist under '{root}' cannot be read: {error!r}") from error
    images, labels = mnist.data, mnist.targets.to(torch.int64)
    part, count = ("training", NUM_TRAIN) if train else ("test", NUM_TEST)
    if images.shape != (count, 28, 28) or labels.shape != (count,) or bool((labels > 9).any()):
        raise DataError(
            f"data-path: the {part} data of mnist under '{root}' are {len(labels)} labels from "
            f"{labels.unique().tolist()[:11]} and images {tuple(images.shape)}, expected {count} "
            f"labels from 0 to 9 and images ({count}, 28, 28)"
        )
    return images, labels


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Return images ``[n, 28, 28]`` uint8 as model inputs: ``[n, 1, 28, 28]`` in ``[0, 1]``."""
    return images.unsqueeze(1).to(torch.float32) / 255
