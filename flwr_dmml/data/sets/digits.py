"""``digits``: small images of digits, each with the keypad tone of the digit. No download."""

import gzip
from importlib.metadata import PackageNotFoundError, distribution
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from ...base.libraries import needed
from ...base.seeding import torch_generator
from ..division import stratified_split
from ..forms import RawImage
from ..options import LoadOptions
from ..reading.audio import add_noise, log_mel, sound_at_8_khz
from ..registry import Dataset
from ..samples import Modality, Samples, Source
from .dtmf import WINDOW_S, dtmf_tones


def load(options: LoadOptions) -> Source:
    """Pair the 1,797 images of scikit-learn's digits with synthesised keypad tones.

    The images are 8x8, scaled to ``[0, 1]``. The tones last 40 to 100 ms in a window of 0.25 s
    at 8 kHz and differ by up to 12 dB in strength, in white noise: ``snr_db`` is the
    signal-to-noise ratio of the *strongest* tone while it sounds, so at 0 dB the tones lie
    between -12 and 0 dB. Every fifth pair is test data, stratified; the division is always the
    same and depends on no option.

    Returns
    -------
    Source
        ``audio`` ``[1, 32, 16]`` and ``image`` ``[1, 8, 8]``; 1,437 training, 360 test samples.

    References
    ----------
    Images: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998 (test part), as shipped with scikit-learn. Pairing: this project.
    """
    pixels, digits = _read()
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits, dtype=torch.int64)

    tones = dtmf_tones(labels, torch_generator(options.seed, "digits", "tones"))
    noisy = add_noise(tones, options.snr_db, torch_generator(options.seed, "digits", "noise"))
    samples = Samples({"audio": log_mel(noisy), "image": images}, labels)

    train, test = stratified_split(digits, ceil(0.2 * len(digits)), random_state=0)
    return Source(
        name="digits",
        modalities={
            "audio": Modality("audio", (1, 32, 16), sound_at_8_khz(WINDOW_S, options.snr_db)),
            "image": Modality("image", (1, 8, 8), RawImage(side=8, colour=False)),
        },
        num_classes=10,
        train=samples.subset(train).gathered(),
        test=samples.subset(test).gathered(),
    )


def _read() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what scikit-learn's ``load_digits`` does: pixels ``[1797, 64]`` in 0..16, classes.

    From its file: to import scikit-learn takes a second.

    Raises
    ------
    LibraryError
        scikit-learn is missing, or keeps the file elsewhere and does not load.
    """
    try:
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        with gzip.open(str(file), "rt", encoding="ascii") as opened:
            table = np.loadtxt(opened, delimiter=",")  # [1797, 65]
    except (PackageNotFoundError, FileNotFoundError):
        with needed("sklearn"):
            from sklearn.datasets import load_digits
        pixels, classes = load_digits(return_X_y=True)
        return pixels, classes
    return table[:, :-1], table[:, -1].astype(np.int64)


DIGITS = Dataset(
    name="digits",
    modalities=("audio", "image"),
    needs_path=False,
    natural_ids=False,
    load=load,
    description="8x8 images of digits with the keypad tone of the digit; built in, no download",
)
