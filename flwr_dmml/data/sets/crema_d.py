"""``crema-d``: six emotions in face and voice, twelve sentences by 91 actors."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..forms import RawImage, RawSound
from ..options import LoadOptions
from ..reading.media import audio_shape, image_shape, read_audio, read_image
from ..reading.problems import Problems, reason
from ..registry import Dataset, folder_of
from ..samples import DataError, Modality, Samples, Source

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
TEST_ACTORS = frozenset(str(actor) for actor in range(1005, 1092, 5))
"""Every fifth of 1001 to 1091: 18 of 91."""

_CLIP = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{2}")
_SOUNDS, _FRAMES = "AudioWAV", "Image-*-FPS"
_LISTS = ("train.csv", "test.csv")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Clip:
    """One recording: its name, the code of its emotion, and its files where they are there."""

    name: str
    emotion: str
    sound: Path | None
    frame: Path | None


def load(options: LoadOptions) -> Source:
    """Load the sound and one frame of every clip, divided by actor or as two lists say.

    The layout is that of the authors' repository, with the frames that the code of Peng et al.
    extracts from its videos: ``AudioWAV/1001_DFA_ANG_XX.wav`` (actor, sentence, emotion, level) and
    ``Image-01-FPS/1001_DFA_ANG_XX/00000.jpg`` and so on; of several folders ``Image-*-FPS`` the
    first by name is read. The folder is ``crema-d`` under ``options.path``, or ``options.path``
    itself. ``options.audio`` and ``options.image`` apply (clips last 1.3 to 5 s: the default of
    ``audio.seconds`` hears the middle one only); ``options.snr_db`` has no influence.

    The image of a clip is its middle frame, the later one of an even number. A clip lacks the
    modality that it has no file of; one of digital silence, such as 1076_MTI_SAD_XX, lacks audio.
    Its emotion is what the actor was to show, as its name says. Clips of :data:`TEST_ACTORS` are
    for testing, unless there are ``train.csv`` and ``test.csv`` (``clip,emotion`` a line, such as
    ``1001_DFA_ANG_XX,ANG``): then these say which clips there are, with which emotion, and what is
    for testing. Groups are indices of ``group_names``, the actors.

    Returns
    -------
    Source
        ``audio`` ``[1, mels, frames]`` and ``image`` ``[channels, side, side]``; only one where
        there is no file of the other.

    Raises
    ------
    DataError
        If files are missing or cannot be read; all are named, with the reason.

    References
    ----------
    H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova and R. Verma, "CREMA-D:
    Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on Affective Computing
    5(4), 2014. Lists and frames: X. Peng et al., "Balanced Multimodal Learning via On-the-fly
    Gradient Modulation", CVPR 2022. Division by actor: this project.
    """
    root = folder_of(options, "crema-d")
    modalities = _modalities(options)
    problems = Problems(f"data-path: '{root}' cannot be used")
    parts = _divide(root, problems)
    actors = sorted({clip.name[:4] for clips in parts for clip in clips})
    train, test = (_samples(clips, actors, modalities, options, problems) for clips in parts)
    problems.check()
    return Source(
        name="crema-d",
        modalities=modalities,
        num_classes=len(EMOTIONS),
        train=train,
        test=test,
        class_names=tuple(EMOTIONS.values()),
        group_names=tuple(actors),
    )


def _modalities(options: LoadOptions) -> dict[str, Modality]:
    """Return the modalities that there are files of."""
    root = folder_of(options, "crema-d")
    found = {}
    if any((root / _SOUNDS).glob("*.wav")):
        found["audio"] = Modality(
            "audio", audio_shape(options.audio), RawSound(**options.audio.model_dump())
        )
    if any(root.glob(f"{_FRAMES}/*/*.jpg")):
        found["image"] = Modality(
            "image", image_shape(options.image), RawImage(**options.image.model_dump())
        )
    if not found:
        raise DataError(
            f"data-path: '{root}' has neither {_SOUNDS}/*.wav nor {_FRAMES}/*/*.jpg; get CREMA-D "
            "from the GitHub repository CheyneyComputerScience/CREMA-D (with git lfs), and extract "
            "frames of VideoFlash/*.flv into Image-01-FPS/, a folder a clip"
        )
    return found


def _files_by_clip(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the sound and the middle frame of each clip that has them."""
    sounds = {}
    for path in sorted((root / _SOUNDS).glob("[!.]*.wav")):
        # One file is called 1040_ITH_SAD_X.wav; its video and the lists have XX.
        sounds[f"{path.stem}X" if path.stem.endswith("_X") else path.stem] = path
    frames = {}
    for folder in sorted(root.glob(_FRAMES))[:1]:
        for clip in sorted(folder.glob("[!.]*")):
            found = sorted(clip.glob("[!.]*.jpg"), key=lambda path: (len(path.name), path.name))
            if found:
                frames[clip.name] = found[len(found) // 2]
    return sounds, frames


def _divide(root: Path, problems: Problems) -> tuple[list[Clip], list[Clip]]:
    """Return the clips for training and for testing."""
    sounds, frames = _files_by_clip(root)
    listed = [name for name in _LISTS if (root / name).is_file()]
    if len(listed) == 1:
        problems.add("", f"there is {listed[0]} alone, expected {' and '.join(_LISTS)} or neither")
    if listed:
        train, test = (_read_list(root / name, sounds, frames, problems) for name in _LISTS)
        for name in sorted({c.name for c in train} & {c.name for c in test}):
            problems.add(_LISTS[1], f"{name} is in {_LISTS[0]} too")
        return train, test
    train, test = [], []
    for name in sorted({*sounds, *frames}):
        match = _CLIP.fullmatch(name)
        if match is None or match["emotion"] not in EMOTIONS:
            where = sounds.get(name) or frames[name].parent
            problems.add(
                where.relative_to(root).as_posix(),
                "it is not named like 1001_DFA_ANG_XX with one of the emotions "
                + ", ".join(EMOTIONS),
            )
            continue
        part = test if match["actor"] in TEST_ACTORS else train
        part.append(Clip(name, match["emotion"], sounds.get(name), frames.get(name)))
    if not train or not test:
        problems.add("", f"all clips are for {'training' if train else 'testing'}, by their actors")
    return train, test


def _read_list(
    path: Path, sounds: dict[str, Path], frames: dict[str, Path], problems: Problems
) -> list[Clip]:
    """Return the clips that ``train.csv`` or ``test.csv`` names."""
    found: dict[str, Clip] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.add(path.name, f"it cannot be read: {reason(error)}")
        return []
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}, line {number}"
        if len(row) != 2 or not _CLIP.fullmatch(row[0]):
            problems.add(where, f"'{','.join(row)}', expected e.g. '1001_DFA_ANG_XX,ANG'")
        elif row[1] not in EMOTIONS:
            problems.add(where, f"emotion '{row[1]}', expected one of {', '.join(EMOTIONS)}")
        elif row[0] in found:
            problems.add(where, f"{row[0]} is there twice")
        elif row[0] not in sounds and row[0] not in frames:
            problems.add(where, f"{row[0]} has neither sound nor frames")
        else:
            found[row[0]] = Clip(row[0], row[1], sounds.get(row[0]), frames.get(row[0]))
    if not rows:
        problems.add(path.name, "it is empty")
    return [*found.values()]


def _samples(
    clips: Sequence[Clip],
    actors: Sequence[str],
    modalities: Iterable[str],
    options: LoadOptions,
    problems: Problems,
) -> Samples:
    """Read all files; those that cannot be are noted."""
    inputs, present = {}, {}
    for modality in modalities:
        is_audio = modality == "audio"
        shape = audio_shape(options.audio) if is_audio else image_shape(options.image)
        inputs[modality] = torch.zeros(len(clips), *shape)
        present[modality] = torch.zeros(len(clips), dtype=torch.bool)
        for row, clip in enumerate(clips):
            path = clip.sound if is_audio else clip.frame
            if path is None:
                continue
            where = path.name if is_audio else f"{clip.name}/{path.name}"
            with problems.at(where):
                _refuse_pointer(path)
                if is_audio:
                    read = read_audio(path, options.audio)
                    present[modality][row] = read.abs().amax() > 0.5  # of unit variance, or zeros
                else:
                    read = read_image(path, options.image)
                    present[modality][row] = True
                if present[modality][row]:
                    inputs[modality][row] = read
    emotions = [*EMOTIONS]
    samples = Samples(
        inputs=inputs,
        labels=torch.tensor([emotions.index(clip.emotion) for clip in clips], dtype=torch.int64),
        groups=torch.tensor([actors.index(clip.name[:4]) for clip in clips], dtype=torch.int64),
        present=None if all(bool(has.all()) for has in present.values()) else present,
    )
    return samples.with_any().gathered()


def _refuse_pointer(path: Path) -> None:
    """Refuse what a clone of the repository without git lfs has in place of a file."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_POINTER))
    except OSError as error:
        raise DataError(f"it cannot be read: {reason(error)}") from error
    if begin == _POINTER:
        raise DataError("only a pointer to the file: run 'git lfs pull' in the repository")


def _files(options: LoadOptions) -> list[Path]:
    """Return all files; the frame of a clip follows its sound, for frames have the same names."""
    root = folder_of(options, "crema-d")
    sounds, frames = _files_by_clip(root)
    paths = [by.get(name) for name in sorted({*sounds, *frames}) for by in (sounds, frames)]
    return [*(root / name for name in _LISTS), *(path for path in paths if path is not None)]


CREMA_D = Dataset(
    name="crema-d",
    modalities=lambda options: tuple(_modalities(options)),
    needs_path=True,
    natural_ids=True,
    load=load,
    description="six emotions in voice and face (one frame of the video), 91 actors (CREMA-D)",
    files=_files,
    uses=("audio", "image"),
)
