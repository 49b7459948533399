"""The reader of CREMA-D on small folders in the layout of its repository."""

import numpy as np
import pytest
import soundfile
import torch
from helpers import run_peers
from PIL import Image

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    PartitionOptions,
    find_dataset,
    load_partition,
    load_source,
)
from flwr_dmml.data.options import AudioOptions, ImageOptions
from flwr_dmml.data.reading.media import read_audio, read_image
from flwr_dmml.data.sets.crema_d import EMOTIONS, TEST_ACTORS

RATE_HZ = 16_000  # of the repository's files
AUDIO = AudioOptions(seconds=0.25, mels=16)
IMAGE = ImageOptions(side=8)
CODES = [*EMOTIONS]
TRAIN = [f"{actor}_DFA_{code}_XX" for actor in (1001, 1002) for code in CODES]
TEST = [f"1005_IEO_{code}_LO" for code in CODES]


def tone(code: str, seconds=0.3, seed=0) -> np.ndarray:
    """Return a tone whose pitch is the emotion, in noise."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return 0.3 * np.sin(2 * np.pi * 300 * (1 + CODES.index(code)) * time_s) + 0.03 * noise


def grey(code: str, number: int) -> int:
    """Return the grey of a frame, by emotion and its number."""
    return 30 * CODES.index(code) + 10 * number


def write_sound(root, clip, wave=None, name=None):
    path = root / "AudioWAV" / f"{name or clip}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(clip[9:12]) if wave is None else wave, RATE_HZ, subtype="PCM_16")
    return path


def write_frames(root, clip, numbers=(0, 30, 60), folder="Image-01-FPS"):
    """Write frames by their number in the video, as the lists' authors extract them."""
    (root / folder / clip).mkdir(parents=True, exist_ok=True)
    for k, number in enumerate(numbers):
        image = Image.new("RGB", (48, 36), (grey(clip[9:12], k), 200, 100))
        image.save(root / folder / clip / f"{number:05d}.jpg", quality=95)


def make(root, clips=(*TRAIN, *TEST)):
    for clip in clips:
        write_sound(root, clip)
        write_frames(root, clip)
    return root


def options_of(root) -> LoadOptions:
    return LoadOptions(path=str(root), audio=AUDIO, image=IMAGE, cache=False)


def load(root):
    return load_source("crema-d", options_of(root))


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load(root)
    return str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make(root / "crema-d")
    return root


# What is read


def test_sound_frames_emotions_and_actors(made):
    source = load(made)
    assert list(source.modalities) == ["audio", "image"]
    assert source.modalities["audio"].shape == (1, 16, 16)
    assert source.modalities["image"].shape == (3, 8, 8)
    assert source.class_names == ("anger", "disgust", "fear", "happy", "neutral", "sad")
    assert source.group_names == ("1001", "1002", "1005")
    assert source.train.labels.tolist() == [*range(6), *range(6)]
    assert source.train.groups.tolist() == [0] * 6 + [1] * 6
    assert source.test.labels.tolist() == [*range(6)] and source.test.groups.tolist() == [2] * 6
    assert source.train.present is None and source.test.present is None
    folder = made / "crema-d"
    for samples, clips in ((source.train, sorted(TRAIN)), (source.test, sorted(TEST))):
        for row, clip in enumerate(clips):
            sound = read_audio(folder / "AudioWAV" / f"{clip}.wav", AUDIO)
            frame = read_image(folder / "Image-01-FPS" / clip / "00030.jpg", IMAGE)
            assert torch.equal(samples.inputs["audio"][row], sound)
            assert torch.equal(samples.inputs["image"][row], frame)


def test_the_repository_will_do_itself(made):
    assert len(load(made / "crema-d").train) == 12


def test_every_fifth_actor_is_for_testing():
    assert len(TEST_ACTORS) == 18
    assert min(TEST_ACTORS) == "1005" and max(TEST_ACTORS) == "1090"


@pytest.mark.parametrize(
    ("numbers", "middle"), [((0,), 0), ((0, 30), 1), ((0, 30, 60), 1), ((9, 10, 100_000), 1)]
)
def test_the_middle_frame_is_read(tmp_path, numbers, middle):
    make(tmp_path, [*TRAIN, *TEST[1:]])
    write_sound(tmp_path, TEST[0])
    write_frames(tmp_path, TEST[0], numbers)
    red = load(tmp_path).test.inputs["image"][0, 0]
    assert float(255 * red.mean()) == pytest.approx(grey("ANG", middle), abs=4)


def test_of_several_folders_of_frames_the_slowest_is_read(tmp_path):
    make(tmp_path)
    write_frames(tmp_path, TEST[0], range(9), "Image-10-FPS")
    write_frames(tmp_path, "1005_WSI_HAP_XX", (0,), "Image-10-FPS")
    source = load(tmp_path)
    assert len(source.test) == 6
    red = source.test.inputs["image"][0, 0]
    assert float(255 * red.mean()) == pytest.approx(grey("ANG", 1), abs=4)


def test_a_clip_lacks_what_it_has_no_file_of(tmp_path):
    make(tmp_path, [*TRAIN[1:], *TEST[1:]])
    write_sound(tmp_path, TRAIN[0])
    (tmp_path / "Image-01-FPS" / TRAIN[0]).mkdir()  # a video that could not be read
    write_frames(tmp_path, TEST[0])
    write_frames(tmp_path, "1076_MTI_SAD_XX")
    write_sound(tmp_path, "1076_MTI_SAD_XX", np.zeros(RATE_HZ))
    source = load(tmp_path)
    present = source.train.present
    assert present["audio"].tolist() == [True] * 12 + [False]  # silence is none
    assert present["image"].tolist() == [False] + [True] * 12
    assert source.test.present["audio"].tolist() == [False] + [True] * 5
    assert source.test.present["image"].all()
    assert not source.train.inputs["image"][0].any() and not source.train.inputs["audio"][12].any()


def test_a_clip_without_anything_is_none(tmp_path):
    make(tmp_path)
    write_sound(tmp_path, "1076_MTI_SAD_XX", np.zeros(RATE_HZ))
    (tmp_path / "Image-01-FPS" / "1002_WSI_SAD_XX").mkdir()
    source = load(tmp_path)
    assert len(source.train) == 12 and source.group_names == ("1001", "1002", "1005", "1076")


def test_the_misnamed_sound_belongs_to_its_video(tmp_path):
    make(tmp_path)
    write_sound(tmp_path, "1040_ITH_SAD_XX", name="1040_ITH_SAD_X")
    write_frames(tmp_path, "1040_ITH_SAD_XX")
    source = load(tmp_path)
    assert len(source.test) == 7 and source.test.present is None


def test_without_frames_there_is_audio_alone(tmp_path):
    for clip in (*TRAIN, *TEST):
        write_sound(tmp_path, clip)
    assert list(load(tmp_path).modalities) == ["audio"]
    assert find_dataset("crema-d").modalities_of(options_of(tmp_path)) == ("audio",)


def test_other_files_are_let_be(tmp_path):
    make(tmp_path)
    (tmp_path / "AudioWAV" / "._1001_DFA_ANG_XX.wav").write_bytes(b"\x00\x05")
    (tmp_path / "Image-01-FPS" / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "Image-01-FPS" / TRAIN[0] / "._00030.jpg").write_bytes(b"\x00")
    (tmp_path / "VideoFlash").mkdir()
    assert len(load(tmp_path).train) == 12


def test_lists_say_what_is_for_testing(tmp_path):
    """As in the repository of OGM-GE: no header, and here in another division and a label moved."""
    make(tmp_path)
    (tmp_path / "train.csv").write_text("1005_IEO_ANG_LO,ANG\n1001_DFA_SAD_XX,NEU\n")
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbf1005_IEO_SAD_LO,SAD\n")
    source = load(tmp_path)
    assert source.train.labels.tolist() == [0, 4] and source.test.labels.tolist() == [5]
    assert source.group_names == ("1001", "1005")
    assert source.train.groups.tolist() == [1, 0] and source.test.groups.tolist() == [1]


def test_actors_are_natural_ids(made):
    options = PartitionOptions(
        "crema-d", 2, options_of(made), scheme="natural", modality_pattern="audio+image"
    )
    assert [len(load_partition(options, node).train) for node in range(2)] == [6, 6]


def test_the_cache_goes_by_clip_and_file(tmp_path):
    """The same frame under another clip is another data set."""
    make(tmp_path)
    options = LoadOptions(path=str(tmp_path), audio=AUDIO, image=IMAGE)
    files = find_dataset("crema-d").files
    before = [path.relative_to(tmp_path).as_posix() for path in files(options)]
    assert before[:2] == ["train.csv", "test.csv"]
    assert before[2:4] == [f"AudioWAV/{TRAIN[0]}.wav", f"Image-01-FPS/{TRAIN[0]}/00030.jpg"]
    assert len(before) == 2 + 2 * 18


# What is refused


def test_an_empty_folder_says_what_is_expected(tmp_path):
    message = message_of(tmp_path)
    assert message.startswith(f"data-path: '{tmp_path}' has neither AudioWAV/*.wav nor Image-*-FPS")
    assert "CheyneyComputerScience/CREMA-D" in message
    with pytest.raises(DataError, match="has neither"):
        find_dataset("crema-d").modalities_of(options_of(tmp_path))


def test_everything_wrong_is_named_at_once(tmp_path):
    make(tmp_path)
    write_sound(tmp_path, TRAIN[0]).write_bytes(b"RIFF")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:27\nsize 82260\n"
    write_sound(tmp_path, TEST[0]).write_bytes(pointer)
    (tmp_path / "Image-01-FPS" / TRAIN[1] / "00030.jpg").write_bytes(b"\xff\xd8\xff")
    write_sound(tmp_path, "1003_DFA_JOY_XX", tone("HAP"))
    write_frames(tmp_path, "100x_DFA_SAD_XX")
    lines = message_of(tmp_path).splitlines()
    assert lines[0] == f"data-path: '{tmp_path}' cannot be used:"
    found = [line.strip() for line in lines[1:]]
    wanted = [
        "AudioWAV/1003_DFA_JOY_XX.wav: it is not named like 1001_DFA_ANG_XX",
        "Image-01-FPS/100x_DFA_SAD_XX: it is not named like 1001_DFA_ANG_XX",
        "1001_DFA_ANG_XX.wav: ",
        "1001_DFA_DIS_XX/00030.jpg: ",
        "1005_IEO_ANG_LO.wav: only a pointer to the file: run 'git lfs pull' in the repository",
    ]
    assert len(found) == len(wanted)
    for line, expected in zip(found, wanted, strict=True):
        assert line.startswith(expected)


def test_lists_that_cannot_be_are_named(tmp_path):
    make(tmp_path)
    (tmp_path / "train.csv").write_text(
        "1001_DFA_ANG_XX,ANG\n1001_DFA_DIS_XX\n1001_DFA_FEA_XX,JOY\n1001_DFA_ANG_XX,ANG\n"
        "1009_DFA_ANG_XX,ANG\n"
    )
    (tmp_path / "test.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    found = [line.strip() for line in message_of(tmp_path).splitlines()[1:]]
    assert found == [
        "train.csv, line 2: '1001_DFA_DIS_XX', expected e.g. '1001_DFA_ANG_XX,ANG'",
        "train.csv, line 3: emotion 'JOY', expected one of ANG, DIS, FEA, HAP, NEU, SAD",
        "train.csv, line 4: 1001_DFA_ANG_XX is there twice",
        "train.csv, line 5: 1009_DFA_ANG_XX has neither sound nor frames",
        "test.csv: 1001_DFA_ANG_XX is in train.csv too",
    ]


def test_one_list_alone_is_refused(tmp_path):
    make(tmp_path)
    (tmp_path / "train.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    assert "there is train.csv alone, expected train.csv and test.csv" in message_of(tmp_path)


def test_clips_of_one_part_alone_are_refused(tmp_path):
    assert "all clips are for training, by their actors" in message_of(make(tmp_path, TRAIN))


def test_audio_options_that_cannot_be_are_refused(made):
    options = LoadOptions(path=str(made), audio=AudioOptions(seconds=0.01), cache=False)
    with pytest.raises(DataError, match=r"audio\.seconds"):
        load_source("crema-d", options)


# Training


def test_devices_learn_it(tmp_path):
    """Emotions are tones and colours here: chance is 1/6. Some clips lack a modality."""
    for actor in (1001, 1002, 1003, 1005):
        for k, sentence in enumerate(("DFA", "IEO", "WSI", "TIE")):
            for code in CODES:
                clip = f"{actor}_{sentence}_{code}_XX"
                if (actor, k) != (1001, 0):
                    write_sound(tmp_path, clip, tone(code, seed=actor + k))
                if (actor, k) != (1002, 1):
                    write_frames(tmp_path, clip)
    peers = run_peers(
        {
            "dataset": "crema-d",
            "data-path": str(tmp_path),
            "audio.seconds": 0.25,
            "audio.mels": 16,
            "image.side": 8,
            "num-nodes": 3,
            "partition": "natural",
            "modality-pattern": "audio,image,audio+image",
            "local-iterations": 10,
            "batch-size": 16,
        },
        num_rounds=6,
    )
    assert peers.records[-1].accuracy > 0.4
