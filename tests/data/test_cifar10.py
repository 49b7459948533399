import numpy as np
import pytest
import torch

from flwr_dmml.data import DataError, LoadOptions, PartitionOptions, Source, load_partition
from flwr_dmml.data.sets.cifar10 import load

LABELS = np.random.default_rng(0).permutation(np.arange(10_000) % 10).astype(np.uint8)
IMAGES = np.zeros((10_000, 32, 32, 3), np.uint8)
IMAGES[:, :, :, 0] = LABELS[:, None, None]  # red is the class,
IMAGES[:, 0, :, 1] = np.arange(32)  # green of the top row the column,
IMAGES[:, :, 0, 2] = 200 + np.arange(32)  # blue of the left column the row,
IMAGES[:, 31, 31, 1] = np.arange(10_000) // 256  # and the last pixel has the number of the image
IMAGES[:, 31, 31, 2] = np.arange(10_000) % 256


def options_of(root) -> LoadOptions:
    return LoadOptions(path=str(root))


def numbers(image: torch.Tensor) -> torch.Tensor:
    """Return the numbers ``[n]`` of images made here, ``[n, 3, 32, 32]``."""
    high, low = (255 * image[:, 1:, 31, 31]).round().long().unbind(dim=1)
    return 256 * high + low


def write(root, **arrays):
    folder = root / "cifar10"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "cifar10_test.npz", **arrays)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), images=IMAGES, labels=LABELS)


@pytest.fixture(scope="module")
def source(made) -> Source:
    return load(options_of(made))


# The layout


def test_shapes(source):
    assert list(source.modalities) == ["image"] and source.num_classes == 10
    assert source.modalities["image"].kind == "image"
    assert source.modalities["image"].shape == (3, 32, 32)
    for samples, count in ((source.train, 8_000), (source.test, 2_000)):
        assert samples.inputs["image"].shape == (count, 3, 32, 32)
        assert samples.inputs["image"].dtype == torch.float32
        assert samples.labels.dtype == torch.int64 and samples.groups is None


def test_colours_rows_and_columns_are_where_they_belong(source):
    for samples in (source.train, source.test):
        image = 255 * samples.inputs["image"]
        torch.testing.assert_close(image[:, 0, 5, 7], samples.labels.float())
        torch.testing.assert_close(image[3, 1, 0], torch.arange(32.0))
        torch.testing.assert_close(image[3, 2, :31, 0], 200 + torch.arange(31.0))


def test_every_image_is_in_one_part_with_its_label(source):
    train, test = (numbers(part.inputs["image"]) for part in (source.train, source.test))
    assert sorted(torch.cat([train, test]).tolist()) == list(range(10_000))
    assert np.array_equal(LABELS[train], source.train.labels.numpy())
    assert np.array_equal(LABELS[test], source.test.labels.numpy())


def test_the_division_is_stratified_and_mixed(source):
    assert source.train.labels.bincount().tolist() == [800] * 10
    assert source.test.labels.bincount().tolist() == [200] * 10
    test = numbers(source.test.inputs["image"])  # not simply the last ones
    assert 4_500 < float(test.float().mean()) < 5_500 and test.min() < 100 and test.max() > 9_900


@pytest.mark.parametrize("other", [{}, {"seed": 7}, {"snr_db": 20.0}], ids=str)
def test_the_division_depends_on_no_option(source, made, other):
    again = load(LoadOptions(path=str(made), **other))
    for part, other_part in ((source.train, again.train), (source.test, again.test)):
        assert torch.equal(part.inputs["image"], other_part.inputs["image"])
        assert torch.equal(part.labels, other_part.labels)


def test_any_integers_do_for_labels(source, made, tmp_path):
    """As torchvision's list of targets, which numpy makes int64; and other arrays may lie by."""
    write(tmp_path, images=IMAGES, labels=LABELS.tolist(), names=np.array(["cat", "dog"]))
    again = load(options_of(tmp_path))
    assert torch.equal(again.train.labels, source.train.labels)


def test_devices_share_it(made):
    options = PartitionOptions(
        "cifar10", num_nodes=4, load=options_of(made), scheme="iid", modality_pattern="image"
    )
    parts = [load_partition(options, node) for node in range(4)]
    assert sum(len(part.train) + len(part.validation) for part in parts) == 8_000
    assert all(len(part.test) == 2_000 for part in parts)


# What is refused


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load(options_of(root))
    message = str(caught.value)
    assert message.startswith(f"data-path: '{root / 'cifar10' / 'cifar10_test.npz'}' ")
    assert "'images' (10000, 32, 32, 3) uint8 and 'labels' (10000,) integers" in message
    assert "torchvision.datasets.CIFAR10(" in message and "numpy.savez_compressed(" in message
    return message


def test_a_missing_file_is_named(tmp_path):
    assert "is missing; set data-path to the folder that holds cifar10/" in message_of(tmp_path)


def test_a_folder_in_its_place_is_no_file(tmp_path):
    (tmp_path / "cifar10" / "cifar10_test.npz").mkdir(parents=True)
    assert "is missing" in message_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_archive_is_one_message(tmp_path, content):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar10_test.npz").write_bytes(content)
    assert "cannot be read (" in message_of(tmp_path)


@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], lambda d: d[:400] + d[600:]])
def test_a_damaged_archive_is_one_message(tmp_path, spoil):
    write(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "cifar10" / "cifar10_test.npz"
    path.write_bytes(spoil(path.read_bytes()))
    assert "cannot be read (" in message_of(tmp_path)


def test_a_damaged_compressed_archive_is_one_message(tmp_path):
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / "cifar10_test.npz"
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[100:300] = bytes(200)
    path.write_bytes(content)
    assert "cannot be read (" in message_of(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    """An array of objects: reading it would run what the file says."""
    write(tmp_path, images=IMAGES, labels=np.array([{}] * 3, dtype=object))
    message = message_of(tmp_path)
    assert "cannot be read (" in message and "allow_pickle=False" in message


def test_a_single_array_is_no_archive(tmp_path):
    (tmp_path / "cifar10").mkdir()
    with (tmp_path / "cifar10" / "cifar10_test.npz").open("wb") as file:
        np.save(file, LABELS)
    assert "lacks images and labels, it holds []" in message_of(tmp_path)


def test_a_missing_array_is_named(tmp_path):
    write(tmp_path, data=IMAGES, labels=LABELS)
    assert "lacks images, it holds ['data', 'labels']" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (IMAGES[:9_999], "has images (9999, 32, 32, 3) uint8"),
        (IMAGES.transpose(0, 3, 1, 2), "has images (10000, 3, 32, 32) uint8"),
        (IMAGES.reshape(10_000, -1), "has images (10000, 3072) uint8"),
        (IMAGES.astype(np.int8), "has images (10000, 32, 32, 3) int8"),
    ],
    ids=["one too few", "channels first", "flat", "signed"],
)
def test_other_images_are_refused(tmp_path, images, found):
    write(tmp_path, images=images, labels=LABELS)
    assert found in message_of(tmp_path)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (LABELS[:100], "has labels (100,) uint8"),
        (LABELS[:, None], "has labels (10000, 1) uint8"),
        (LABELS / 1.0, "has labels (10000,) float64"),
        (LABELS + 1, "counts {1: 1000, 2: 1000"),
        (LABELS // 2, "counts {0: 2000, 1: 2000, 2: 2000, 3: 2000, 4: 2000}"),
        (np.minimum(LABELS, 8), "8: 2000}"),
        (np.where(np.arange(10_000) == np.argmax(LABELS == 0), 1, LABELS), "{0: 999, 1: 1001, "),
    ],
    ids=["too few", "column", "floats", "from 1", "5 classes", "9 classes", "unequal"],
)
def test_other_labels_are_refused(tmp_path, labels, found):
    write(tmp_path, images=IMAGES, labels=labels)
    assert found in message_of(tmp_path)


# The real file


@pytest.fixture(scope="module")
def real(real_data) -> Source:
    return load(options_of(real_data))


def test_the_real_images(real):
    """Means of red, green and blue over CIFAR-10 are known to be 0.491, 0.482 and 0.447."""
    assert real.train.labels.bincount().tolist() == [800] * 10
    assert real.test.labels.bincount().tolist() == [200] * 10
    for samples in (real.train, real.test):
        image = samples.inputs["image"]
        assert image.min() == 0 and image.max() == 1
        means = image.mean(dim=(0, 2, 3))
        torch.testing.assert_close(means, torch.tensor([0.491, 0.482, 0.447]), atol=0.02, rtol=0)
    pixels = torch.cat([real.train.inputs["image"], real.test.inputs["image"]]).flatten(1)
    assert len(np.unique(pixels.numpy(), axis=0)) == 10_000  # no image is in both parts


def test_the_real_labels_say_what_is_in_the_images(real):
    """Nearest class means know CIFAR-10 to about 0.28, by colour mostly; chance is 0.1."""
    pixels = real.train.inputs["image"].flatten(1)
    means = torch.stack([pixels[real.train.labels == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(real.test.inputs["image"].flatten(1), means).argmin(dim=1)
    assert (nearest == real.test.labels).float().mean() > 0.22
