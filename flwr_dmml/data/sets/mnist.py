"""``mnist``: MNIST's images of handwritten digits, all of them."""

from pathlib import Path

from ..forms import RawImage
from ..options import LoadOptions
from ..registry import Dataset
from ..samples import DataError, Modality, Samples, Source
from .mnist_files import as_input, mnist_problem, read_mnist


def load(options: LoadOptions) -> Source:
    """Load MNIST from ``options.path``, with its official division; nothing is drawn.

    Pixels are in ``[0, 1]``. No other option changes anything here.

    Returns
    -------
    Source
        ``image`` ``[1, 28, 28]``; 60,000 training and 10,000 test samples, without groups.

    Raises
    ------
    DataError
        If anything of ``mnist/`` is missing or cannot be read.

    References
    ----------
    Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits".
    """
    root = Path(options.path)
    if problem := mnist_problem(root / "mnist"):
        raise DataError(
            f"data-path: '{root}' does not hold the data set mnist. {problem}. "
            "Set data-path to the folder that holds mnist/."
        )

    def part(*, train: bool) -> Samples:
        images, labels = read_mnist(root / "mnist", train=train)
        return Samples({"image": as_input(images)}, labels)

    return Source(
        name="mnist",
        modalities={"image": Modality("image", (1, 28, 28), RawImage(side=28, colour=False))},
        num_classes=10,
        train=part(train=True),
        test=part(train=False),
    )


MNIST = Dataset(
    name="mnist",
    modalities=("image",),
    needs_path=True,
    natural_ids=False,
    load=load,
    description="MNIST: 28x28 images of handwritten digits, 60,000 for training, 10,000 for test",
)
