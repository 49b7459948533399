"""``digits``: small images of digits, each with the keypad tone of the digit. No download."""

import numpy as np
import torch

from ...base.libraries import needed
from ...base.seeding import torch_generator
from ..options import LoadOptions
from ..reading.audio import add_noise, log_mel
from ..registry import Dataset
from ..samples import Modality, Samples, Source
from .dtmf import dtmf_tones


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
    with needed("sklearn"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    pixels, digits = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits, dtype=torch.int64)

    tones = dtmf_tones(labels, torch_generator(options.seed, "digits", "tones"))
    noisy = add_noise(tones, options.snr_db, torch_generator(options.seed, "digits", "noise"))
    samples = Samples({"audio": log_mel(noisy), "image": images}, labels)

    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits, random_state=0
    )
    return Source(
        name="digits",
        modalities={"audio": Modality("audio", (1, 32, 16)), "image": Modality("image", (1, 8, 8))},
        num_classes=10,
        train=samples.subset(train).gathered(),
        test=samples.subset(test).gathered(),
    )


DIGITS = Dataset(
    name="digits",
    modalities=("audio", "image"),
    needs_path=False,
    natural_ids=False,
    load=load,
    description="8x8 images of digits with the keypad tone of the digit; built in, no download",
)
