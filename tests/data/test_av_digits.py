import pytest
import torch

from flwr_dmml.base.seeding import torch_generator
from flwr_dmml.data import (
    DataError,
    LoadOptions,
    PartitionOptions,
    Source,
    load_partition,
    load_source,
)
from flwr_dmml.data.sets import av_digits
from flwr_dmml.data.sets.av_digits import list_recordings, pair_recordings

SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


@pytest.fixture(scope="module")
def source(real_data) -> Source:
    return load_source("av-digits", LoadOptions(path=str(real_data)))


def test_shapes_and_ranges(source):
    for samples, count in ((source.train, 12_000), (source.test, 2_000)):
        assert samples.inputs["audio"].shape == (count, 1, 32, 63)
        assert samples.inputs["image"].shape == (count, 1, 28, 28)
        assert samples.inputs["image"].min() == 0 and samples.inputs["image"].max() == 1
        assert samples.labels.unique().tolist() == list(range(10))
        assert all(tensor.dtype == torch.float32 for tensor in samples.inputs.values())
        assert samples.inputs["audio"].isfinite().all()


def test_natural_ids_are_the_six_speakers(source):
    for samples in (source.train, source.test):
        assert samples.groups is not None
        assert samples.groups.unique().tolist() == list(range(6))


def test_labels_are_those_of_the_images(source):
    """The nearest class mean of the training images is right for about 0.82 of MNIST."""
    train, test = source.train, source.test
    pixels = train.inputs["image"].flatten(1)
    means = torch.stack([pixels[train.labels == digit].mean(dim=0) for digit in range(10)])
    nearest = torch.cdist(test.inputs["image"].flatten(1), means).argmin(dim=1)
    assert (nearest == test.labels).float().mean() > 0.75


def test_recordings_have_the_digit_of_the_image_and_none_is_in_both_parts(real_data, monkeypatch):
    """Let the "features" be the index of the recording, and look the recordings up by name."""
    monkeypatch.setattr(av_digits, "_read", lambda path: torch.zeros(1))
    monkeypatch.setattr(av_digits, "_features", lambda waves, pairs, options, part: pairs)
    source = av_digits.load(LoadOptions(path=str(real_data)))

    recordings = list_recordings(real_data / "fsdd" / "recordings")
    assert sorted({recording.speaker for recording in recordings}) == SPEAKERS
    used = []
    for samples, is_test in ((source.train, False), (source.test, True)):
        pool = [recording for recording in recordings if recording.is_test == is_test]
        assert len(pool) == (300 if is_test else 2700)  # 10 digits, 6 speakers, 5 or 45
        chosen = [pool[i] for i in samples.inputs["audio"].tolist()]
        assert [recording.digit for recording in chosen] == samples.labels.tolist()
        assert samples.groups is not None
        assert [SPEAKERS.index(r.speaker) for r in chosen] == samples.groups.tolist()
        repetitions = {int(recording.path.stem.split("_")[2]) for recording in chosen}
        assert repetitions == (set(range(5)) if is_test else set(range(5, 50)))
        used.append({recording.path for recording in chosen})
    assert not used[0] & used[1]


def test_noise_changes_the_audio_only(source, real_data):
    other = av_digits.load(LoadOptions(path=str(real_data), snr_db=10.0))
    assert torch.equal(other.train.labels, source.train.labels)
    assert torch.equal(other.train.inputs["image"], source.train.inputs["image"])
    assert not torch.equal(other.train.inputs["audio"], source.train.inputs["audio"])


def test_speakers_as_nodes(source, real_data):
    options = PartitionOptions(
        "av-digits",
        num_nodes=6,
        load=LoadOptions(path=str(real_data)),
        scheme="natural",
        modality_pattern="audio",
    )
    parts = [load_partition(options, node) for node in range(6)]
    assert sum(len(part.train) for part in parts) == 12_000
    for node, part in enumerate(parts):
        assert part.train.groups is not None
        assert part.train.groups.unique().tolist() == [node]


def make_folder(root, *, mnist=True, recordings=range(50)):
    """Make a folder with the right names and nothing in the files."""
    raw, spoken = root / "mnist" / "MNIST" / "raw", root / "fsdd" / "recordings"
    raw.mkdir(parents=True)
    spoken.mkdir(parents=True)
    for part in ("train", "t10k"):
        for content in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            if mnist:
                (raw / f"{part}-{content}").touch()
    for digit in range(10):
        for speaker in SPEAKERS:
            for repetition in recordings:
                (spoken / f"{digit}_{speaker}_{repetition}.wav").touch()
    return raw, spoken


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load_source("av-digits", LoadOptions(path=str(root)))
    return str(caught.value)


def test_an_empty_folder_lacks_everything(tmp_path):
    message = message_of(tmp_path)
    assert message.startswith(f"data-path: '{tmp_path}'")
    assert "mnist: " in message and "train-images-idx3-ubyte" in message
    assert "torchvision.datasets.MNIST(" in message and "download=True" in message
    assert "holds 0 recordings, expected 3000" in message
    assert "Jakobovski/free-spoken-digit-dataset" in message


def test_a_missing_file_of_mnist_is_named_alone(tmp_path):
    raw, _ = make_folder(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    message = message_of(tmp_path)
    assert "lacks t10k-labels-idx1-ubyte (" in message
    assert "fsdd:" not in message


def test_half_of_the_recordings_are_counted(tmp_path):
    """10 digits, 6 speakers, 20 repetitions are 1,200."""
    make_folder(tmp_path, recordings=range(20))
    message = message_of(tmp_path)
    assert "holds 1200 recordings, expected 3000 (" in message
    assert "mnist:" not in message


def test_digits_without_recordings_are_named(tmp_path):
    _, spoken = make_folder(tmp_path)
    for repetition in range(5):  # rename the test recordings, so that all 3,000 are there
        for path in spoken.glob(f"3_*_{repetition}.wav"):
            path.rename(
                path.with_name(path.name.replace(f"_{repetition}.", f"_{repetition + 50}."))
            )
    message = message_of(tmp_path)
    assert "holds 3000 recordings, expected 3000, and has none of the digits 3 (test)" in message


def test_an_unreadable_mnist_is_one_message(tmp_path):
    make_folder(tmp_path)
    assert message_of(tmp_path).startswith("data-path: mnist under")


def test_an_unreadable_recording_is_named(tmp_path):
    path = tmp_path / "0_theo_0.wav"
    path.write_bytes(b"not a wave")
    with pytest.raises(DataError, match=r"0_theo_0\.wav' cannot be read"):
        av_digits._read(path)


def test_other_files_are_no_recordings(tmp_path):
    for name in ("0_theo_7.wav", "1_theo_0.wav", "12_theo_0.wav", "notes.wav", "0_theo_1.mp3"):
        (tmp_path / name).touch()
    found = list_recordings(tmp_path)
    assert [(r.path.name, r.digit, r.speaker, r.is_test) for r in found] == [
        ("0_theo_7.wav", 0, "theo", False),
        ("1_theo_0.wav", 1, "theo", True),
    ]


def test_pairs_share_the_digit_and_use_all_recordings(tmp_path):
    for digit in range(10):
        for repetition in range(3):
            (tmp_path / f"{digit}_theo_{repetition}.wav").touch()
    recordings = list_recordings(tmp_path)
    labels = torch.arange(10).repeat(40)
    pairs = pair_recordings(labels, recordings, torch_generator(0))
    assert [recordings[i].digit for i in pairs.tolist()] == labels.tolist()
    assert len(pairs.unique()) == 30
