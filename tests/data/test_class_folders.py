"""Folders without a manifest: what the names of folders say."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from flwr_dmml.data import DataError, LoadOptions, Modality, Source, find_dataset


def made(root: Path, *names: str) -> Path:
    """Make a picture, a sound or a vector of each name; what it holds is the number of the file."""
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".wav":
            soundfile.write(path, np.sin(np.arange(4000) * (k + 1) / 10), 8000)
        elif path.suffix == ".npy":
            np.save(path, np.array([k, k]))
        elif path.suffix in (".png", ".JPG"):
            Image.new("L", (8, 8), k).save(path, "PNG")
        else:
            path.write_text("")
    return root


def load(root: Path) -> Source:
    return find_dataset("folder").load(LoadOptions(path=str(root)))


def test_classes_in_train_and_test(tmp_path):
    made(tmp_path, "train/wren/a.png", "train/tit/b.JPG", "test/wren/c.png", "test/tit/d.png")
    made(tmp_path, "train/wren/.hidden.png", "train/readme.txt", ".git/x/y.png")
    source = load(tmp_path)
    assert source.class_names == ("tit", "wren") and [*source.modalities] == ["image"]
    assert source.modalities["image"] == Modality("image", (3, 32, 32))
    assert source.train.labels.tolist() == [0, 1] and source.test.labels.tolist() == [0, 1]
    shade = source.test.inputs["image"].mean(dim=(1, 2, 3)) * 255
    assert shade.round().tolist() == [3, 2]
    of = find_dataset("folder")
    assert of.modalities_of(LoadOptions(path=str(tmp_path))) == ("image",)
    assert of.files is not None
    named = {Path(file).name for file in of.files(LoadOptions(path=str(tmp_path)))}
    assert named == {"dataset.toml", "a.png", "b.JPG", "c.png", "d.png"}


@pytest.mark.parametrize("form", ["{m}/{s}/{c}/{n}", "{s}/{m}/{c}/{n}"])
def test_files_of_one_name_in_several_modalities_are_one_sample(tmp_path, form):
    samples = [("song", "wav"), ("photo", "png")]
    names = [
        form.format(m=m, s=split, c=label, n=f"{name}.{suffix}")
        for m, suffix in samples
        for split in ("train", "test")
        for label, name in (("wren", "1"), ("tit", "2" if split == "test" else "1"))
        if (m, name) != ("photo", "2")
    ]  # fmt: skip
    source = load(made(tmp_path, *names))
    assert {m: f.kind for m, f in source.modalities.items()} == {"photo": "image", "song": "audio"}
    assert len(source.train) == 2 and len(source.test) == 2
    present = source.test.present
    assert present is not None and present["song"].all()
    assert present["photo"].tolist() == [label == 1 for label in source.test.labels.tolist()]


def test_of_classes_alone_every_fifth_file_is_for_testing(tmp_path):
    made(tmp_path, *(f"{label}/{k:02d}.npy" for label in "ab" for k in range(11)))
    source = load(tmp_path)
    assert source.test.inputs["table"][:, 0].tolist() == [4, 9, 15, 20]
    assert source.test.labels.tolist() == [0, 0, 1, 1] and len(source.train) == 18


def test_the_description_counts_as_with_a_manifest(tmp_path):
    made(
        tmp_path,
        "learn/a/1.npy",
        "learn/b/2.npy",
        "test/a/3.npy",
        "dev/b/4.npy",
        "learn/junk/5.npy",
    )
    (tmp_path / "dataset.toml").write_text(
        'classes = ["b", "a"]\nignore = ["junk"]\n[splits]\nlearn = "train"\ndev = "out"'
    )
    source = load(tmp_path)
    assert source.train.labels.tolist() == [1, 0] and source.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("train", "test", "toml"),
    [
        ("Train", "Test", ""),
        ("TRAIN", "test", ""),
        ("Training", "Testing", '[splits]\nTraining = "train"\nTesting = "test"'),
        ("train", "Val", '[splits]\nVal = "test"'),
    ],
)
def test_splits_of_other_names(tmp_path, train, test, toml):
    """Files of the same names in both are samples of their own."""
    made(tmp_path, *(f"{s}/{c}/0{k}.npy" for s in (train, test) for c in "ab" for k in "01"))
    (tmp_path / "dataset.toml").write_text(toml)
    source = load(tmp_path)
    assert [*source.modalities] == ["table"]
    assert source.train.inputs["table"][:, 0].tolist() == [0, 1, 2, 3]
    assert source.test.inputs["table"][:, 0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train/x/y/a/1.npy"], "is too deep; expected"),
        (["train/a/1.npy", "a/2.npy"], "'a/2.npy' is neither in a folder train nor test"),
        (["m/a/1.npy", "m/a/1.csv", "n/a/1.npy"], "m/a/1.npy: 'm/a/1.csv' is of the same sample"),
        (["train/train/a/1.npy"], "is too deep; expected"),
        (["Training/a/1.npy", "Testing/a/1.npy"], "[splits] Testing = "),
        (["train/a/1.npy", "test/a/2.npy", "VAL/a/3.npy"], "the folder 'VAL' is named like a"),
        (["1.npy", "a/readme.txt"], "it holds no manifest; expected one of manifest.csv"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, names, problem):
    made(tmp_path, *names)
    with pytest.raises(DataError, match="data-path") as error:
        load(tmp_path)
    assert problem in str(error.value)


def test_links_to_folders_are_followed(tmp_path):
    root = made(tmp_path / "set", "train/tit/1.npy", "test/tit/2.npy", "test/wren/3.npy")
    made(root, ".more/wren/4.npy")
    (root / "train/wren").symlink_to("../.more/wren")
    (root / ".more/wren/again").symlink_to("../../train")  # a circle
    source = load(root)
    assert source.train.labels.tolist() == [0, 1] and source.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("to", "problem"), [("../../other", "leads out of the folder"), ("gone", "leads nowhere")]
)
def test_links_that_cannot_be_followed_are_named(tmp_path, to, problem):
    root = made(tmp_path / "set", "train/tit/1.npy", "test/tit/2.npy", "test/wren/3.npy")
    made(tmp_path / "other", "4.npy")
    (root / "train/wren").symlink_to(to)
    with pytest.raises(DataError, match=f"train/wren.*{problem}"):
        load(root)
