"""weak-strong: tables of features with one strong modality (text) and two weak ones (audio, video).

93 people say what is positive or negative; 62 of them train, the other 31 test. Text and video
stand for features of networks that were fitted to the training people's labels (``leak``): of those
people they tell the class far better than of new ones, so that nothing held out of the training
people shows which modality is worth little. Without the leak they tell it of all people as of new
ones. Audio tells mostly who speaks.
"""

import csv
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TRAIN, TEST = 62, 31  # people


@dataclass(frozen=True)
class Feature:
    """How a modality tells the class.

    ``signal`` and ``blur`` are the distance of a class from the middle along one direction, and the
    standard deviation there, of people whose labels the features were fitted to and of others;
    ``share`` is that direction's part of the variance, ``personal`` the part of the rest that is a
    person's own. The rest has ``rank`` strong directions, and scales that differ by sample
    (Student's t with ``tails`` degrees of freedom; 0: equal ones). ``constant`` columns are 0.
    """

    width: int
    signal: tuple[float, float]
    blur: tuple[float, float]
    share: float
    personal: float
    rank: int
    tails: int = 0
    constant: int = 0


FEATURES = {
    "text": Feature(100, (0.95, 0.40), (0.35, 0.55), 0.75, 0.2, 12),
    "audio": Feature(73, (0.15, 0.15), (1.0, 1.0), 0.12, 0.55, 20, tails=8),
    "video": Feature(100, (0.85, 0.05), (0.60, 0.55), 0.12, 0.2, 30, tails=5, constant=32),
}


def _rest(rng: np.random.Generator, rows: int, columns: int, rank: int) -> Floats:
    """Return ``[rows, columns]`` of unit variance, four fifths of it in a few directions."""
    strong = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) / np.sqrt(rank)
    return np.asarray(np.sqrt(0.8) * strong + np.sqrt(0.2) * rng.normal(size=(rows, columns)))


def features(
    rng: np.random.Generator, kind: Feature, classes: Floats, people: Any, new: Any, *, leak: bool
) -> Floats:
    """Return a modality's features ``[sample, width]``, standardised by the training samples."""
    which = new.astype(int) if leak else np.ones(len(classes), int)
    signal, blur = np.array(kind.signal)[which], np.array(kind.blur)[which]
    tells = classes * signal + blur * rng.normal(size=len(classes))
    tells /= tells[~new].std()
    columns = kind.width - kind.constant
    own = _rest(rng, people.max() + 1, columns, kind.rank)[people]
    rest = np.sqrt(kind.personal) * own
    rest += np.sqrt(1 - kind.personal) * _rest(rng, len(classes), columns, kind.rank)
    if kind.tails:
        rest *= np.sqrt(kind.tails / rng.chisquare(kind.tails, size=(len(classes), 1)))
    direction = rng.choice([-1.0, 1.0], size=columns)
    x = np.sqrt(kind.share) * tells[:, None] * direction + np.sqrt(1 - kind.share) * rest
    x = (x - x[~new].mean(axis=0)) / x[~new].std(axis=0)
    return np.hstack([x, np.zeros((len(x), kind.constant))])


@cache
def weak_strong(seed: int = 0, *, leak: bool = True) -> str:
    """Write the tables to a folder, for ``dataset = "feature-table"``; return its path."""
    rng = np.random.default_rng([seed, leak])
    sizes = np.clip(np.round(rng.lognormal(3.09, 0.38, TRAIN + TEST)), 9, 55).astype(int)
    people = np.repeat(np.arange(TRAIN + TEST), sizes)
    new = people >= TRAIN
    mood = rng.normal(size=TRAIN + TEST) * 1.1 + np.where(np.arange(TRAIN + TEST) < TRAIN, 0, 0.5)
    labels = (rng.random(len(people)) < 1 / (1 + np.exp(-mood[people]))).astype(int)
    folder = Path(tempfile.mkdtemp(prefix="weak-strong-"))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "split", "speaker"])
        for k, (label, person) in enumerate(zip(labels, people, strict=True)):
            split = "test" if person >= TRAIN else "train"
            writer.writerow([f"s{k}", ("negative", "positive")[label], split, f"p{person:02d}"])
    for name, kind in FEATURES.items():
        x = features(rng, kind, 2.0 * labels - 1, people, new, leak=leak)
        np.save(folder / f"{name}.npy", x.astype(np.float32))
    return str(folder)
