import struct

import pytest
import torch

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    PartitionOptions,
    Source,
    load_partition,
    load_source,
)
from flwr_dmml.data.sets import mnist_files

NAMES = [
    f"{part}-{content}"
    for part in ("train", "t10k")
    for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
SMALL = {"train": 40, "t10k": 20}
"""Images in the folders made here."""


# The real files


@pytest.fixture(scope="module")
def source(real_data) -> Source:
    return load_source("mnist", LoadOptions(path=str(real_data)))


def test_shapes_and_ranges(source):
    assert list(source.modalities) == ["image"] and source.num_classes == 10
    assert source.modalities["image"].kind == "image"
    assert source.modalities["image"].shape == (1, 28, 28)
    for samples, count in ((source.train, 60_000), (source.test, 10_000)):
        image = samples.inputs["image"]
        assert image.shape == (count, 1, 28, 28) and image.dtype == torch.float32
        assert image.min() == 0 and image.max() == 1
        assert samples.labels.dtype == torch.int64 and samples.groups is None


def test_it_is_all_of_mnist(source):
    """Counts of the classes and the mean pixel, 0.1307, are those that everybody reports."""
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert source.train.labels.bincount().tolist() == train
    assert source.test.labels.bincount().tolist() == test
    assert float(source.train.inputs["image"].mean()) == pytest.approx(0.1307, abs=1e-4)


def test_labels_are_those_of_the_images(source):
    """The nearest class mean of the training images is right for 0.82 of MNIST."""
    pixels = source.train.inputs["image"].flatten(1)
    means = torch.stack([pixels[source.train.labels == digit].mean(dim=0) for digit in range(10)])
    nearest = torch.cdist(source.test.inputs["image"].flatten(1), means).argmin(dim=1)
    assert (nearest == source.test.labels).float().mean() > 0.8


# Files made here


def write_idx(path, array: torch.Tensor) -> None:
    """Write uint8 numbers in the idx format: 0, 0, type 8, dimensions, sizes, all big-endian."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.numpy().tobytes())


def make_folder(root):
    """Make an MNIST with few images; in the i-th all pixels are i, and its label is i mod 10."""
    raw = root / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in SMALL.items():
        numbers = torch.arange(count, dtype=torch.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", numbers[:, None, None].repeat(1, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", numbers % 10)
    return raw


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder with few images, which count as all of MNIST."""
    monkeypatch.setattr(mnist_files, "NUM_TRAIN", SMALL["train"])
    monkeypatch.setattr(mnist_files, "NUM_TEST", SMALL["t10k"])
    make_folder(tmp_path)
    return tmp_path


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load_source("mnist", LoadOptions(path=str(root)))
    return str(caught.value)


def test_torchvisions_layout_is_read(small):
    source = load_source("mnist", LoadOptions(path=str(small)))
    for samples, count in ((source.train, 40), (source.test, 20)):
        grey = torch.arange(count) / 255
        expected = grey[:, None, None, None].expand(count, 1, 28, 28)
        torch.testing.assert_close(samples.inputs["image"], expected)
        assert samples.labels.tolist() == [i % 10 for i in range(count)]


def test_no_option_but_the_path_matters(small):
    plain = load_source("mnist", LoadOptions(path=str(small)))
    other = load_source("mnist", LoadOptions(path=str(small), seed=3, snr_db=9.0))
    assert other is not plain
    assert torch.equal(other.train.inputs["image"], plain.train.inputs["image"])
    assert torch.equal(other.test.labels, plain.test.labels)


def test_rows_can_be_hidden(small):
    image = load_source("mnist", LoadOptions(path=str(small), image_visible=0.5)).train.inputs[
        "image"
    ]
    assert bool((image[1:, :, :14] > 0).all()) and not image[:, :, 14:].any()


def test_devices_share_it(small):
    """All 40 samples, one sensor each, no natural ids."""
    shared = {"num_nodes": 4, "load": LoadOptions(path=str(small)), "modality_pattern": "image"}
    options = PartitionOptions("mnist", scheme="iid", **shared)
    parts = [load_partition(options, node) for node in range(4)]
    assert sum(len(part.train) + len(part.validation) for part in parts) == 40
    assert all(part.modalities == ("image",) and len(part.test) == 20 for part in parts)
    with pytest.raises(DataError, match="natural"):
        load_partition(PartitionOptions("mnist", scheme="natural", **shared), 0)


def test_an_empty_folder_lacks_every_file(tmp_path):
    message = message_of(tmp_path)
    assert message.startswith(f"data-path: '{tmp_path}' does not hold the data set mnist")
    assert all(name in message for name in NAMES)
    assert "torchvision.datasets.MNIST(" in message and "download=True" in message
    assert "the folder that holds mnist/" in message and "fsdd" not in message


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_alone(small, name):
    (small / "mnist" / "MNIST" / "raw" / name).unlink()
    message = message_of(small)
    assert f"lacks {name} (" in message
    assert not [other for other in NAMES if other != name and other in message]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a list of numbers",
        struct.pack(">4B3I", 0, 0, 8, 3, 40, 28, 28) + bytes(100),  # cut off
        struct.pack(">4BI", 0, 0, 8, 1, 40) + bytes(40),  # one dimension
        struct.pack(">4B3I", 0, 0, 9, 3, 40, 28, 28) + bytes(40 * 784),  # int8
        struct.pack(">4B3I", 0, 0, 10, 3, 40, 28, 28) + bytes(40 * 784),  # no type has this number
    ],
    ids=["empty", "text", "cut off", "flat", "signed", "unknown type"],
)
def test_a_file_that_is_no_list_of_images_is_one_message(small, content):
    (small / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    message = message_of(small)
    assert message.startswith(f"data-path: mnist under '{small / 'mnist'}' cannot be read: ")


def test_fewer_images_than_mnist_has_are_refused(tmp_path):
    make_folder(tmp_path)
    message = message_of(tmp_path)
    assert "training data of mnist" in message
    assert "are 40 labels from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] and images (40, 28, 28)" in message
    assert "expected 60000 labels from 0 to 9 and images (60000, 28, 28)" in message


@pytest.mark.parametrize(
    ("content", "array", "found"),
    [
        ("images-idx3", torch.zeros(20, 28, 27, dtype=torch.uint8), "images (20, 28, 27)"),
        ("labels-idx1", torch.zeros(19, dtype=torch.uint8), "19 labels"),
        ("labels-idx1", torch.full((20,), 10, dtype=torch.uint8), "labels from [10]"),
    ],
    ids=["narrow images", "a label missing", "a class too many"],
)
def test_files_that_are_not_mnist_are_refused(small, content, array, found):
    """As the test part, after a training part that is in order."""
    write_idx(small / "mnist" / "MNIST" / "raw" / f"t10k-{content}-ubyte", array)
    message = message_of(small)
    assert "test data of mnist" in message and found in message
