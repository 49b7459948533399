"""``av-digits``: MNIST images, each with a recording of the same spoken digit (FSDD)."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ...base.libraries import needed
from ...base.seeding import torch_generator
from ..forms import RawImage
from ..options import LoadOptions
from ..reading.audio import (
    SAMPLE_RATE_HZ,
    add_noise,
    log_mel,
    place,
    sound_at_8_khz,
    unit_variance,
)
from ..registry import Dataset
from ..samples import DataError, Modality, Samples, Source
from .mnist_files import as_input, mnist_files, mnist_problem, read_mnist

NUM_RECORDINGS = 3000  # 10 digits, 6 speakers, 50 repetitions
NUM_TRAIN, NUM_TEST = 12_000, 2_000  # pairs
TEST_REPETITIONS = 5  # FSDD's official split: repetitions 0 to 4 are test data

_FILE_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<repetition>\d+)\.wav")
_CHUNK = 200  # pairs whose waves are held at once


@dataclass(frozen=True)
class Recording:
    """One file of FSDD, by its name ``<digit>_<speaker>_<repetition>.wav``."""

    path: Path
    digit: int
    speaker: str
    is_test: bool


def list_recordings(folder: Path) -> list[Recording]:
    """Return the recordings in ``folder``, sorted by file name; empty if there is no folder."""
    matches = ((path, _FILE_NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.wav")))
    return [
        Recording(
            path, int(m["digit"]), m["speaker"], is_test=int(m["repetition"]) < TEST_REPETITIONS
        )
        for path, m in matches
        if m is not None
    ]


def pair_recordings(
    labels: torch.Tensor, recordings: list[Recording], generator: torch.Generator
) -> torch.Tensor:
    """Return for each label, ``[n]``, the index of a random recording of that digit, ``[n]``."""
    pairs = torch.empty_like(labels)
    for digit in range(10):
        candidates = torch.tensor([i for i, r in enumerate(recordings) if r.digit == digit])
        where = torch.nonzero(labels == digit).flatten()
        draws = torch.randint(len(candidates), where.shape, generator=generator)
        pairs[where] = candidates[draws]
    return pairs


def load(options: LoadOptions) -> Source:
    """Load MNIST and FSDD from ``options.path`` and pair them by class, train with train.

    Recordings have unit variance and lie at a random offset in one second at 8 kHz (cropped at
    random if longer); white noise of standard deviation ``10^(-snr_db/20)``. Images are in
    ``[0, 1]``. Groups are the indices of the speakers, in alphabetical order.

    Returns
    -------
    Source
        ``audio`` ``[1, 32, 63]`` and ``image`` ``[1, 28, 28]``; 12,000 training and 2,000 test
        pairs.

    Raises
    ------
    DataError
        If anything of ``mnist/`` or ``fsdd/recordings/`` is missing or cannot be read.

    References
    ----------
    Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits"; Z. Jackson
    et al., "Free Spoken Digit Dataset" (CC BY-SA 4.0). Pairing: this project.
    """
    root = Path(options.path)
    recordings = list_recordings(root / "fsdd" / "recordings")
    _check(root, recordings)
    speakers = sorted({recording.speaker for recording in recordings})

    def part(name: str, count: int, *, train: bool) -> Samples:
        pool = [recording for recording in recordings if recording.is_test != train]
        images, labels = read_mnist(root / "mnist", train=train)
        draw = torch_generator(options.seed, "av-digits", name, "pairs")
        chosen = torch.randperm(len(labels), generator=draw)[:count]
        pairs = pair_recordings(labels[chosen], pool, draw)
        waves = [unit_variance(_read(recording.path)) for recording in pool]
        return Samples(
            inputs={
                "audio": _features(waves, pairs, options, name),
                "image": as_input(images[chosen]),
            },
            labels=labels[chosen],
            groups=torch.tensor([speakers.index(recording.speaker) for recording in pool])[pairs],
        )

    return Source(
        name="av-digits",
        modalities={
            "audio": Modality("audio", (1, 32, 63), sound_at_8_khz(1.0, options.snr_db)),
            "image": Modality("image", (1, 28, 28), RawImage(side=28, colour=False)),
        },
        num_classes=10,
        train=part("train", NUM_TRAIN, train=True),
        test=part("test", NUM_TEST, train=False),
    )


def _files(options: LoadOptions) -> list[Path]:
    root = Path(options.path)
    recordings = [recording.path for recording in list_recordings(root / "fsdd" / "recordings")]
    return [*mnist_files(root / "mnist"), *recordings]


def _check(root: Path, recordings: list[Recording]) -> None:
    """Raise one error that lists everything missing under ``root``, and where to get it."""
    problems = []
    if problem := mnist_problem(root / "mnist"):
        problems.append(problem)
    spoken = {(recording.digit, recording.is_test) for recording in recordings}
    silent = [
        f"{digit} ({'test' if is_test else 'train'})"
        for digit in range(10)
        for is_test in (False, True)
        if (digit, is_test) not in spoken
    ]
    if len(recordings) < NUM_RECORDINGS or silent:
        problem = f"fsdd: {root / 'fsdd' / 'recordings'} holds {len(recordings)} recordings, "
        problem += f"expected {NUM_RECORDINGS}"
        if recordings and silent:
            problem += f", and has none of the digits {', '.join(silent)}"
        problems.append(
            f"{problem} (get them from the GitHub repository Jakobovski/free-spoken-digit-dataset)"
        )
    if problems:
        raise DataError(
            f"data-path: '{root}' does not hold the data set av-digits. "
            + "; ".join(problems)
            + ". Set data-path to the folder that holds mnist/ and fsdd/."
        )


def _read(path: Path) -> torch.Tensor:
    """Return a recording as ``[T]`` float32."""
    with needed("soundfile"):
        import soundfile
    try:
        wave, rate = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError as error:
        raise DataError(f"data-path: '{path}' cannot be read: {error}") from error
    if wave.ndim != 1 or rate != SAMPLE_RATE_HZ or len(wave) == 0:
        raise DataError(
            f"data-path: '{path}' has shape {wave.shape} at {rate} Hz, "
            f"expected mono at {SAMPLE_RATE_HZ} Hz"
        )
    return torch.from_numpy(wave)


def _features(
    waves: list[torch.Tensor], pairs: torch.Tensor, options: LoadOptions, part: str
) -> torch.Tensor:
    """Return the features ``[n, 1, 32, 63]`` of the recordings ``pairs``, ``[n]``, in noise."""
    offsets = torch_generator(options.seed, "av-digits", part, "offsets")
    noise = torch_generator(options.seed, "av-digits", part, "noise")
    chunks = []
    for chosen in torch.split(pairs, _CHUNK):
        placed = [place(waves[i], SAMPLE_RATE_HZ, offsets) for i in chosen.tolist()]
        chunks.append(log_mel(add_noise(torch.stack(placed), options.snr_db, noise)))
    return torch.cat(chunks)


AV_DIGITS = Dataset(
    name="av-digits",
    modalities=("audio", "image"),
    needs_path=True,
    natural_ids=True,
    load=load,
    description="MNIST images with a recording of the same spoken digit (FSDD), 6 speakers",
    files=_files,
    uses=("snr_db", "seed"),
)
