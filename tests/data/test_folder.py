"""One's own files as a data set: what comes out by hand, and every way in which they are wrong."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flwr_dmml.base.libraries import LibraryError
from flwr_dmml.data import (
    DataError,
    LoadOptions,
    Modality,
    PartitionOptions,
    Source,
    find_dataset,
    load_partition,
    load_source,
)
from flwr_dmml.data.forms import RawNumbers
from flwr_dmml.data.options import AudioOptions, ImageOptions, SeriesOptions
from flwr_dmml.data.reading.media import read_audio, read_image

HEAD = "label,split"


def png(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 0, 255 - shade)).save(path)
    return path


def wav(path: Path, hz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(4000) * hz * 2 * np.pi / 8000), 8000)
    return path


def manifest(root: Path, *lines: str, toml: str = "") -> Path:
    (root / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if toml:
        (root / "dataset.toml").write_text(toml, encoding="utf-8")
    return root


def load(root: Path, **options: object) -> Source:
    return find_dataset("folder").load(LoadOptions(path=str(root), **options))  # type: ignore[arg-type]


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as error:
        load(root, **options)
    return str(error.value)


def npy(root: Path, **arrays: object) -> None:
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", np.asarray(array))


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Four rows of a modality "v": two numbers each."""
    npy(tmp_path, a=[1, 2], b=[3, 4], c=[5, 6], d=[7, 8])
    return manifest(
        tmp_path, "v,label,split", "a.npy,x,train", "b.npy,y,train", "c.npy,y,test", "d.npy,x,test"
    )


# ---------------------------------------------------------------------------- what comes out


def test_images_and_sound_of_which_some_are_missing(tmp_path):
    png(tmp_path / "photos" / "a.png", 10), png(tmp_path / "photos" / "b.PNG", 200)
    wav(tmp_path / "a.wav"), wav(tmp_path / "b.flac", 880)
    root = manifest(
        tmp_path,
        "id,photo,split,sound,label",
        "1,photos/a.png,train,a.wav,wren",
        "2,photos/b.PNG,test,,robin",
        "",
        '3,"photos/../photos/b.PNG",train,,robin',
        "4,,train,b.flac,robin",
    )
    source = load(root)
    assert source.name == "folder" and source.class_names == ("robin", "wren")
    assert source.modalities == {
        "photo": Modality("image", (3, 32, 32)),
        "sound": Modality("audio", (1, 32, 63)),
    }
    assert source.train.labels.tolist() == [1, 0, 0] and source.test.labels.tolist() == [0]
    assert source.train.groups is None and source.group_names == ()
    train, test = source.train.present, source.test.present
    assert train is not None and test is not None
    assert {m: has.tolist() for m, has in train.items()} == {
        "photo": [True, True, False],
        "sound": [True, False, True],
    }
    assert {m: has.tolist() for m, has in test.items()} == {"photo": [True], "sound": [False]}
    photo, sound = source.train.inputs["photo"], source.train.inputs["sound"]
    assert torch.equal(photo[0], read_image(root / "photos" / "a.png", ImageOptions()))
    assert torch.equal(photo[1], read_image(root / "photos" / "b.PNG", ImageOptions()))
    assert torch.equal(sound[2], read_audio(root / "b.flac", AudioOptions()))
    assert (photo[2] == 0).all() and (sound[1] == 0).all()
    assert torch.equal(source.test.inputs["photo"][0], photo[1])


def test_options_shape_images_and_sound(tmp_path):
    png(tmp_path / "a.png"), wav(tmp_path / "a.wav")
    files = "a.png,a.wav"
    manifest(tmp_path, f"i,s,{HEAD}", f"{files},0,train", f"{files},1,train", f"{files},1,test")
    source = load(
        tmp_path,
        image=ImageOptions(side=8, colour=False),
        audio=AudioOptions(rate_hz=8000, seconds=0.5, mels=16, window_ms=16, hop_ms=8),
    )
    assert source.modalities["i"].shape == (1, 8, 8)
    assert source.modalities["s"].shape == (1, 16, 63)  # 4,000 / 64 + 1 frames
    assert source.train.present is None
    problem = refused(tmp_path, audio=AudioOptions(seconds=0.001))
    assert problem.startswith("audio.seconds = 0.001")


def test_vectors(vectors):
    source = load(vectors)
    assert source.modalities == {"v": Modality("vector", (2,))}
    assert source.train.inputs["v"].tolist() == [[1, 2], [3, 4]]
    assert source.train.inputs["v"].dtype == torch.float32
    assert source.test.inputs["v"].tolist() == [[5, 6], [7, 8]]
    assert source.train.labels.tolist() == [0, 1] and source.test.labels.tolist() == [1, 0]


def test_series_have_their_steps_last(tmp_path):
    (tmp_path / "a.csv").write_text("acc,gyro\n1,10\n2,20\n3,30\n")
    npy(tmp_path, b=np.arange(6).reshape(3, 2))
    manifest(tmp_path, f"s,{HEAD}", "a.csv,0,train", "a.csv,1,train", "b.npy,1,test")
    source = load(tmp_path)
    assert source.modalities == {"s": Modality("series", (2, 3))}
    assert source.train.inputs["s"].tolist() == [[[1, 2, 3], [10, 20, 30]]] * 2
    assert source.test.inputs["s"].tolist() == [[[0, 2, 4], [1, 3, 5]]]


def test_columns_go_by_their_names(tmp_path):
    """Those of the first file that is read, a training sample; an array has no names."""
    (tmp_path / "b.csv").write_text("z,x,y\n3,1,2\n30,10,20\n")
    (tmp_path / "a.csv").write_text(",x,y,z\n0,1,2,3\n1,10,20,30\n")
    npy(tmp_path, c=[[1, 2, 3], [10, 20, 30]])
    rows = "b.csv,1,test", "c.npy,0,train", "a.csv,0,train", "b.csv,1,train", ",1,train"
    manifest(tmp_path, f"s,v,{HEAD}", *[row.replace(",", ",v.csv,", 1) for row in rows])
    (tmp_path / "v.csv").write_text("q,p\n4,5\n")
    source = load(tmp_path)
    expected = [[1, 10], [2, 20], [3, 30]]
    assert source.train.inputs["s"].tolist() == [expected] * 3 + [[[0, 0]] * 3]
    assert source.test.inputs["s"].tolist() == [expected]
    raw = {name: form.raw for name, form in source.modalities.items()}
    assert raw == {
        "s": RawNumbers(channels=("x", "y", "z")),
        "v": RawNumbers(channels=("q", "p")),
    }
    (tmp_path / "dataset.toml").write_text('[channels]\ns = ["z", "x"]')
    manifest(tmp_path, f"s,{HEAD}", rows[0], *rows[2:4])
    source = load(tmp_path)
    assert source.train.inputs["s"][:2].tolist() == [[[3, 30], [1, 10]]] * 2
    assert source.modalities["s"].raw == RawNumbers(channels=("z", "x"))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("x,y,w", "there is no column 'z' and a column 'w', unlike in line 2, s 'a.csv'; name the"),
        ("x,y,z,w", "there is a column 'w', unlike in line 2, s 'a.csv'"),
        ("x,y,y", "its columns have no names of their own, and those of line 2, s 'a.csv' have"),
        ("4,5,6", "its columns have no names of their own, and those of line 2, s 'a.csv' have"),
    ],
)
def test_columns_of_other_names_are_refused(tmp_path, names, problem):
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    line = ",".join("1" for _ in names.split(","))
    (tmp_path / "b.csv").write_text(f"{names}\n{line}\n" + f"{line}\n" * (names != "4,5,6"))
    manifest(tmp_path, f"s,{HEAD}", "a.csv,0,train", "b.csv,1,train", "a.csv,1,test")
    assert f"line 3, s 'b.csv': {problem}" in refused(tmp_path)
    (tmp_path / "dataset.toml").write_text('[channels]\ns = ["y", "x"]')
    if names in ("x,y,w", "x,y,z,w"):
        assert load(tmp_path).modalities["s"].shape == (2, 2)
    else:
        assert "line 3, s 'b.csv': line 1" in refused(tmp_path)


def test_columns_whose_names_do_not_tell_them_apart_go_by_place(tmp_path):
    (tmp_path / "a.csv").write_text("x,x\n1,2\n4,5\n")
    manifest(tmp_path, f"s,{HEAD}", "a.csv,0,train", "a.csv,1,train", "a.csv,1,test")
    source = load(tmp_path)
    assert source.train.inputs["s"][0].tolist() == [[1, 4], [2, 5]]
    assert source.modalities["s"].raw == RawNumbers()


def test_sequences_carry_a_mask(tmp_path):
    (tmp_path / "a.csv").write_text("1,10\n")  # one step
    npy(tmp_path, b=[[1, 10], [2, 20], [3, 30]], c=[[4, 40]])
    rows = [f"s,{HEAD}", "a.csv,0,train", "b.npy,1,train", ",0,train", "c.npy,1,test"]
    rows = [r + (",v" if i == 0 else ",a.csv") for i, r in enumerate(rows)]
    manifest(tmp_path, *rows, toml='[modalities]\ns = "sequence"')
    source = load(tmp_path)
    assert source.modalities == {"s": Modality("sequence", (3, 3)), "v": Modality("vector", (2,))}
    assert source.train.inputs["s"].tolist() == [
        [[1, 0, 0], [10, 0, 0], [1, 0, 0]],
        [[1, 2, 3], [10, 20, 30], [1, 1, 1]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    assert source.test.inputs["s"].tolist() == [[[4, 0, 0], [40, 0, 0], [1, 0, 0]]]
    cut = load(tmp_path, series=SeriesOptions(steps=2)).train.inputs["s"]
    assert cut[1].tolist() == [[1, 2], [10, 20], [1, 1]]
    longer = load(tmp_path, series=SeriesOptions(steps=4)).train.inputs["s"]
    assert longer[1].tolist() == [[1, 2, 3, 0], [10, 20, 30, 0], [1, 1, 1, 0]]


def test_a_series_of_one_channel(tmp_path):
    npy(tmp_path, a=[1, 2, 3], b=[[4], [5], [6]])
    rows = "a.npy,0,train", "a.npy,1,train", "b.npy,1,test"
    manifest(tmp_path, f"s,{HEAD}", *rows, toml='[modalities]\ns = "series"')
    source = load(tmp_path)
    assert source.modalities["s"] == Modality("series", (1, 3))
    assert source.test.inputs["s"].tolist() == [[[4, 5, 6]]]
    (tmp_path / "dataset.toml").write_text('[modalities]\ns = "vector"')
    assert load(tmp_path).test.inputs["s"].tolist() == [[4, 5, 6]]


def test_the_description(vectors):
    (vectors / "dataset.toml").write_text(
        'name = "mine"\nclasses = ["y", "x", "z"]\nignore = ["remark"]\n'
        '[columns]\nlabel = "species"\nnode = "station"\n'
    )
    manifest(
        vectors,
        "species,v,remark,station,split",
        "x,a.npy,good,10,train",
        "y,b.npy,,9,train",
        "y,c.npy,,10,test",
    )
    source = load(vectors)
    assert source.name == "mine" and source.class_names == ("y", "x", "z")
    assert source.num_classes == 3 and [*source.modalities] == ["v"]
    assert source.train.labels.tolist() == [1, 0]
    assert source.group_names == ("9", "10")  # as numbers
    assert source.train.groups is not None and source.train.groups.tolist() == [1, 0]
    assert source.test.groups is not None and source.test.groups.tolist() == [1]


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9, unique=True))
@settings(max_examples=20, deadline=None)
def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path_factory, numbers):
    root = tmp_path_factory.mktemp("numbers")
    npy(root, a=[0.0])
    rows = [f"a.npy,{n},{split}" for n in numbers for split in ("train", "test")]
    source = load(manifest(root, "v,label,split", *rows))
    assert source.class_names == tuple(str(n) for n in sorted(numbers))
    named = [int(source.class_names[label]) for label in source.train.labels.tolist()]
    assert named == numbers


def test_the_modalities_are_known_without_reading_the_files(tmp_path):
    manifest(tmp_path, "b,split,a,label,node", "nothing.png,train,,0,1")
    dataset = find_dataset("folder")
    assert dataset.modalities_of(LoadOptions(path=str(tmp_path))) == ("b", "a")
    assert dataset.modalities_of(LoadOptions(path=str(tmp_path / "elsewhere"))) is None
    with pytest.raises(DataError, match=r"no manifest; expected one of manifest\.csv"):
        dataset.modalities_of(LoadOptions(path=str(_made(tmp_path / "empty"))))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_cache_goes_by_the_content_of_the_files(vectors):
    options = LoadOptions(path=str(vectors))
    files = [Path(file).name for file in find_dataset("folder").files(options)]  # type: ignore[misc]
    assert files == ["dataset.toml", "manifest.csv", "a.npy", "b.npy", "c.npy", "d.npy"]
    assert load_source("folder", options).train.inputs["v"][0].tolist() == [1, 2]
    npy(vectors, a=[9, 9])
    load_source.cache_clear()
    assert load_source("folder", options).train.inputs["v"][0].tolist() == [9, 9]


def test_devices_by_node_own_what_their_samples_have(tmp_path):
    png(tmp_path / "a.png"), npy(tmp_path, a=[1, 2])
    rows = [
        f"{photo},{v},{i % 2},{split},{node}"
        for node, photo, v in (("ann", "a.png", ""), ("bea", "", "a.npy"), ("cy", "a.png", "a.npy"))
        for split in ("train", "test")
        for i in range(4)
    ]
    manifest(tmp_path, f"photo,v,{HEAD},node", *rows)
    options = PartitionOptions(
        "folder",
        num_nodes=3,
        load=LoadOptions(path=str(tmp_path)),
        scheme="natural",
        modality_pattern="auto",
    )
    partitions = [load_partition(options, node) for node in range(3)]
    assert [p.modalities for p in partitions] == [("photo",), ("v",), ("photo", "v")]
    assert [len(p.train) for p in partitions] == [4, 4, 4]
    assert [len(p.test) for p in partitions] == [8, 8, 12]


# ------------------------------------------------------------------------------ what is wrong


def test_every_wrong_row_is_named_at_once(tmp_path):
    root = tmp_path / "data"
    wav(root / "a.wav"), png(root / "a.png")
    png(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "cut.wav").write_bytes((root / "a.wav").read_bytes()[:1000])
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:60])
    (root / "bad.csv").write_text("x,y\n1,2\n3,nan\n")
    (root / "good.csv").write_text("x,y\n1,2\n3,4\n")
    manifest(
        root,
        "id,photo,sound,imu,label,split,node",
        "1,a.png,a.wav,good.csv,0,train,k",
        "2,cut.png,cut.wav,bad.csv,1,test,k",
        "3,a.png,,,2,valid,k",
        "3,a.png,,,7,train,k",
        "4,,,,1,train,k",
        "5,../outside.png,,,1,train,k",
        f"6,{tmp_path / 'outside.png'},,,1,train,k",
        "7,link.png,,,1,train,k",
        "8,none.png,,,,train,",
        "9,a.png,a.wav",
        f"10,{'x' * 300}.png,,,0,train,k",
        "11,.,,,0,train,k",
        toml='classes = [0, 1, 2]\n[modalities]\nphoto = "image"',
    )
    long = "x" * 300
    allowed = "allowed: train, test (for others, [splits] in dataset.toml)"
    outside = tmp_path / "outside.png"
    gap = "'nan' is a missing value; fill it in, or leave the line out"
    found = dict.fromkeys(refused(root).splitlines())
    for line in (
        f"  line 4: its split is 'valid'; {allowed}",
        "  line 5: its label '7' is none of 0, 1, 2",
        "  line 5: its id '3' is that of line 4",
        "  line 10: it has no label (write its class, or delete the row)",
        "  line 10: it has no node",
        "  line 11: 3 columns, expected 7",
        "  line 3, photo 'cut.png': the image cannot be read: image file is truncated",
        "  line 7, photo '../outside.png': the path leads out of the folder",
        f"  line 8, photo '{outside}': the path is absolute; give it from the folder on",
        "  line 9, photo 'link.png': the path leads out of the folder",
        "  line 10, photo 'none.png': there is no such file",
        f"  line 12, photo '{long}.png': it is no path: File name too long",
        "  line 13, photo '.': there is no such file",
        "  line 3, sound 'cut.wav': the sound is truncated: 956 of 8,000 bytes",
        f"  line 3, imu 'bad.csv': line 3, column 2 (y): {gap}",
        "  line 6: it has no modality",
    ):
        assert line in found, (line, [*found])
        del found[line]
    assert [*found] == [f"data-path: '{root}' cannot be used:"]


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("v,split", "there is no column 'label'"),
        ("v,label", "there is no column 'split'"),
        ("label,split,id,node", "none is a modality"),
        ("v,v,label,split", "there are 2 columns 'v'"),
        ("v+w,label,split", "a modality cannot be named 'v+w'"),
        ("common,label,split", "named 'common', which is the head of what all modalities share"),
        ("v,,label,split", "a modality cannot be named ''"),
    ],
)
def test_wrong_columns(tmp_path, head, problem):
    manifest(tmp_path, head, "a,b,c,d")
    assert problem in refused(tmp_path)
    with pytest.raises(DataError, match="data-path"):
        find_dataset("folder").modalities_of(LoadOptions(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "the classes are none; expected two or more"),
        (["a.npy,x,train", "a.npy,x,test"], "the classes are x; expected two or more"),
        (["a.npy,x,train", "a.npy,y,train"], "no row has the split 'test'"),
        (["a.npy,x,test", "a.npy,y,test"], "no row has the split 'train'"),
        ([",x,train", ",y,test"], "column 'v': it is empty"),
    ],
)
def test_wrong_rows(tmp_path, rows, problem):
    npy(tmp_path, a=[1])
    assert problem in refused(manifest(tmp_path, "v,label,split", *rows))


@pytest.mark.parametrize(
    ("arrays", "toml", "problem"),
    [
        ([[1, 2], [1, 2], [1]], "", "line 4, v 'c.npy': it has 1 number, most have 2 numbers"),
        (
            [[[1, 2]] * 3, [[1, 2]] * 4, [[1, 2]] * 3],
            "",
            "column 'v': its tables have from 3 (line 2) to 4 steps (line 3); say in dataset.toml",
        ),
        (
            [[[1, 2]] * 3, [[1, 2]] * 4, [[1, 2]] * 3],
            "series",
            "line 3, v 'b.npy': it has 4 steps of 2 numbers, most have 3 steps of 2 numbers",
        ),
        (
            [[[1, 2]] * 3, [[1, 2, 3]] * 3, [[1, 2]] * 3],
            "",
            "line 3, v 'b.npy': it has 3 steps of 3 numbers, most have 3 steps of 2 numbers",
        ),
        (
            [[[1, 2]] * 3, [[1]] * 4, [[1, 2]] * 5],
            "sequence",
            "line 3, v 'b.npy': it has 1 number, most have 2 numbers",
        ),
        (
            [[[1, 2]] * 3] * 3,
            "vector",
            "column 'v': it has 3 steps of 2 numbers, expected a vector",
        ),
        ([[1, 2]] * 3, "image", "line 2, v 'a.npy': it is no image that is PNG"),
        ([[1, 2]] * 3, "audio", "line 2, v 'a.npy': the sound cannot be read"),
        ([[1], [2], [np.nan]], "", "line 4, v 'c.npy': index [0]: nan is not a finite number"),
    ],
)
def test_wrong_tables(tmp_path, arrays, toml, problem):
    npy(tmp_path, **dict(zip("abc", arrays, strict=True)))
    manifest(
        tmp_path,
        "v,label,split",
        *("a.npy,0,train", "b.npy,1,train", "c.npy,1,test"),
        toml=f'[modalities]\nv = "{toml}"' if toml else "",
    )
    assert problem in refused(tmp_path)


def test_a_column_is_of_one_type(tmp_path):
    manifest(tmp_path, "v,label,split", "a.png,0,train", "b.wav,1,test", ",0,train")
    assert "column 'v': it mixes files of image (line 2) and audio (line 3)" in refused(tmp_path)
    manifest(tmp_path, "v,label,split", "a.png,0,train", "b.tiff,1,test", "3.5,0,train")
    problem = refused(tmp_path)
    assert "line 3, v 'b.tiff': its type is none of .bmp, .csv" in problem
    assert "line 4, v '3.5': its type is none of" in problem


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("classes = [", "dataset.toml: "),
        ("colour = 1", "dataset.toml: colour: Extra inputs are not permitted"),
        ('[modalities]\nv = "video"', "dataset.toml: modalities.v: Input should be 'image'"),
        ('[modalities]\nw = "image"', "there is no column 'w'"),
        ('ignore = ["w"]', "there is no column 'w'"),
        ('ignore = ["v"]', "none is a modality"),
        ('[columns]\nnode = "station"', "there is no column 'station'"),
        ('classes = ["x", "x", "y"]', "the classes are x, x, y; expected two or more, all differ"),
        ('classes = ["x", "z"]', "line 3: its label 'y' is none of x, z"),
    ],
)
def test_wrong_descriptions(vectors, toml, problem):
    (vectors / "dataset.toml").write_text(toml)
    assert problem in refused(vectors)


def test_manifests_that_are_no_text(tmp_path):
    (tmp_path / "manifest.csv").write_text("")
    assert "manifest.csv: it is empty" in refused(tmp_path)
    (tmp_path / "manifest.csv").write_bytes(b"v,label,split\n\xff\xfe,1,train\n")
    assert "manifest.csv: it is not in UTF-8 ('utf-8' codec" in refused(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"")
    assert "it holds manifest.csv and manifest.parquet; expected one of" in refused(tmp_path)


def test_a_pipe_is_not_waited_for(vectors):
    (vectors / "a.npy").unlink()
    os.mkfifo(vectors / "a.npy")
    assert "line 2, v 'a.npy': there is no such file" in refused(vectors)


def test_a_pickle_is_not_loaded(vectors):
    with (vectors / "a.npy").open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "Object arrays cannot be loaded" in refused(vectors)


# ------------------------------------------------------------------------------------ Parquet


def parquet(root: Path, **columns: Sequence[object]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'simulation'")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), root / "manifest.parquet")
    return root


def test_parquet_holds_paths_and_numbers(tmp_path):
    png(tmp_path / "a.png")
    parquet(
        tmp_path,
        photo=["a.png", None, "a.png"],
        v=[[1, 2], [3, 4], None],
        imu=[[[1.0, 10.0], [2.0, 20.0]], None, [[3.0, 30.0], [4.0, 40.0]]],
        label=[3, 20, 3],
        split=["train", "train", "test"],
        node=[1, 2, 1],
    )
    source = load(tmp_path)
    assert source.modalities == {
        "photo": Modality("image", (3, 32, 32)),
        "v": Modality("vector", (2,)),
        "imu": Modality("series", (2, 2)),
    }
    assert source.class_names == ("3", "20") and source.group_names == ("1", "2")
    assert source.train.inputs["v"].tolist() == [[1, 2], [3, 4]]
    assert source.train.inputs["imu"].tolist() == [[[1, 2], [10, 20]], [[0, 0], [0, 0]]]
    assert source.test.inputs["imu"].tolist() == [[[3, 4], [30, 40]]]
    assert source.test.present is not None and source.test.present["v"].tolist() == [False]
    files = find_dataset("folder").files(LoadOptions(path=str(tmp_path)))  # type: ignore[misc]
    assert [Path(p).name for p in files] == ["dataset.toml", "manifest.parquet", "a.png"]


def test_parquet_of_other_types(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'simulation'")
    steps = pa.array([[[1, 2], [3, 4]], [[5, 6]], [[7, 8]]], pa.large_list(pa.list_(pa.int8(), 2)))
    parquet(
        tmp_path,
        photo=pa.array([png(tmp_path / "a.png").read_bytes()] * 2 + [None]),
        s=steps,
        label=pa.array(["x", "y", "y"]).dictionary_encode(),
        split=pa.array(["train", "test", "train"], pa.large_string()),
    )
    assert "column 'photo' holds contents of files; say in dataset.toml" in refused(tmp_path)
    (tmp_path / "dataset.toml").write_text('[modalities]\nphoto = "image"\ns = "sequence"')
    source = load(tmp_path)
    assert source.modalities["s"].shape == (3, 2)
    assert source.train.inputs["s"][1].tolist() == [[7, 0], [8, 0], [1, 0]]
    assert source.train.present is not None
    assert source.train.present["photo"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([1.5, 2.5], "column 'v' holds double; expected paths of files or lists of numbers"),
        ([["a"], ["b"]], "column 'v' holds list<"),
        ([[1.0, None], [1.0, 2.0]], "row 1, v: index [1]: nan is not a finite number"),
        ([[[1, 2], [3]], [[1, 2], [3, 4]]], "row 1, v: its steps have from 1 to 2 numbers"),
        ([[[1, 2], None], [[1, 2], [3, 4]]], "row 1, v: its steps have from 0 to 2 numbers"),
        ([[], [1]], "row 1, v: it holds an array of shape (0,)"),
        ([[1, 2], [1]], "v: it has"),
        ([None, None], "column 'v': it is empty"),
        (["a.npy", ""], "row 1, v 'a.npy': there is no such file"),
    ],
)
def test_wrong_parquet(tmp_path, cells, problem):
    parquet(tmp_path, v=cells, label=["x", "y"], split=["train", "test"])
    assert problem in refused(tmp_path)


def test_damaged_parquet(tmp_path):
    parquet(tmp_path, v=[[1], [2]], label=["x", "y"], split=["train", "test"])
    content = (tmp_path / "manifest.parquet").read_bytes()
    (tmp_path / "manifest.parquet").write_bytes(content[:-20])
    assert "manifest.parquet: " in refused(tmp_path)


def test_parquet_without_pyarrow(vectors, monkeypatch):
    (vectors / "manifest.csv").rename(vectors / "manifest.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LibraryError, match=r"needed for Parquet and Arrow files. To fix it:"):
        load(vectors)


# ----------------------------------------------------------------- saved by Hugging Face's datasets


def content(save: str) -> dict[str, object]:
    file = io.BytesIO()
    if save == "PNG":
        Image.new("RGB", (40, 30), (200, 0, 0)).save(file, "PNG")
    else:
        soundfile.write(file, np.sin(np.arange(4000) / 3), 8000, format=save)
    return {"bytes": file.getvalue(), "path": None}


def saved(root: Path, *, names: Sequence[str] = ("train", "test")) -> Path:
    """Five samples in each split, the second without image and sound."""
    hf = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    features = hf.Features(
        {
            "photo": hf.Image(),
            "sound": {"bytes": hf.Value("binary"), "path": hf.Value("string")},
            "v": hf.List(hf.Value("float32")),
            "imu": hf.Array2D((3, 2), "float32"),
            "text": hf.Value("string"),
            "words": hf.List(hf.Value("string")),
            "species": hf.ClassLabel(names=["wren", "robin", "tit"]),
        }
    )
    rows = [
        {
            "photo": None if i == 1 else content("PNG"),
            "sound": None if i == 1 else content("WAV"),
            "v": [i, 2.0],
            "imu": [[1, 2], [3, 4], [5, i]],
            "text": "hello",
            "words": ["hello"],
            "species": i % 3,
        }
        for i in range(5)
    ]
    split = hf.Dataset.from_list(rows, features=features).cast_column("sound", hf.Audio())
    hf.DatasetDict(dict.fromkeys(names, split)).save_to_disk(str(root))
    return root


def test_a_saved_data_set(tmp_path):
    source = load(saved(tmp_path))
    assert source.modalities == {
        "photo": Modality("image", (3, 32, 32)),
        "sound": Modality("audio", (1, 32, 63)),
        "v": Modality("vector", (2,)),
        "imu": Modality("series", (2, 3)),
    }
    assert source.class_names == ("wren", "robin", "tit")
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.train.present is not None
    assert source.train.present["photo"].tolist() == [True, False, True, True, True]
    assert source.train.inputs["v"][3].tolist() == [3, 2]
    assert source.train.inputs["imu"][4].tolist() == [[1, 3, 5], [2, 4, 4]]
    red = torch.tensor([200 / 255, 0, 0])
    assert torch.allclose(source.test.inputs["photo"][0].mean(dim=(1, 2)), red)
    assert source.train.inputs["sound"][0].std() > 0.9
    dataset, options = find_dataset("folder"), LoadOptions(path=str(tmp_path))
    assert dataset.modalities_of(options) == ("photo", "sound", "v", "imu")
    assert dataset.files is not None
    assert sum(Path(file).suffix == ".arrow" for file in dataset.files(options)) == 2


def test_a_saved_data_set_with_a_description(tmp_path):
    saved(tmp_path, names=("train", "test", "validation"))
    (tmp_path / "dataset.toml").write_text(
        'ignore = ["photo", "sound"]\n[columns]\nnode = "text"\n[modalities]\nimu = "sequence"'
    )
    source = load(tmp_path)
    assert [*source.modalities] == ["v", "imu"] and source.group_names == ("hello",)
    assert source.modalities["imu"] == Modality("sequence", (3, 3))
    assert len(source.train) == len(source.test) == 5


def encoded(root: Path, train: str, test: str, *, only: str = "") -> Path:
    """Labels such as ``"cat dog"`` as numbers, by the classes that each split has itself."""
    hf = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    splits = hf.DatasetDict()
    for name, labels in (("train", train.split()), ("test", test.split())):
        columns = {"v": [[float(k), 0.0] for k in range(len(labels))], "label": labels}
        split = hf.Dataset.from_dict(columns)
        if only in ("", name):
            split = split.class_encode_column("label")
        else:
            split = split.add_column("number", [*range(len(labels))]).remove_columns("label")
            split = split.rename_column("number", "label")
        splits[name] = split
    splits.save_to_disk(str(root))
    return root


def test_each_saved_split_is_read_by_the_names_of_its_own_classes(tmp_path):
    source = load(encoded(tmp_path, "dog bird cat cat", "dog cat dog"))
    assert source.class_names == ("bird", "cat", "dog")
    assert source.train.labels.tolist() == [2, 0, 1, 1]
    assert source.test.labels.tolist() == [2, 1, 2]


def test_saved_splits_whose_classes_cannot_be_matched(tmp_path):
    said = refused(encoded(tmp_path / "a", "dog cat", "dog cat emu"))
    assert "test[2]: its label 'emu' is none of cat, dog" in said
    said = refused(encoded(tmp_path / "b", "dog cat", "dog cat", only="train"))
    assert "test/dataset_info.json: column 'label' has no names of classes" in said


def test_a_single_saved_data_set_needs_a_column_of_splits(tmp_path):
    hf = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    columns = {"v": [[1.0], [2.0], [2.0]], "label": ["x", "y", "y"]}
    columns["split"] = ["train", "train", "test"]
    hf.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "a"))
    source = load(tmp_path / "a")
    assert source.train.inputs["v"].tolist() == [[1], [2]] and source.class_names == ("x", "y")
    del columns["split"]
    hf.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "b"))
    assert "there is no column 'split'" in refused(tmp_path / "b")


def test_saved_data_sets_that_are_wrong(tmp_path):
    saved(tmp_path / "a", names=("train", "validation"))
    assert "there is no split 'test', but 'train', 'validation'" in refused(tmp_path / "a")
    root = saved(tmp_path / "b")
    (root / "dataset.toml").write_text('classes = ["wren", "robin"]')
    assert "train[2]: its label 'tit' is none of wren, robin" in refused(root)
    (root / "dataset.toml").unlink()
    state = json.loads((root / "test" / "state.json").read_text())
    file = root / "test" / state["_data_files"][0]["filename"]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "test: " in refused(root)
    file.unlink()
    assert "test: " in refused(root) and "No such file" in refused(root)
    (root / "test" / "state.json").write_text("[]")
    assert "test/state.json: all of it: Input should be a valid dictionary" in refused(root)
    (root / "dataset_dict.json").write_text("{")
    assert "dataset_dict.json: " in refused(root)


def test_a_saved_image_that_is_damaged_is_named(tmp_path):
    hf = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    whole = content("PNG")
    broken = {"bytes": bytes(whole["bytes"])[:60], "path": None}  # type: ignore[arg-type]
    features = hf.Features({"photo": hf.Image(), "label": hf.ClassLabel(names=["x", "y"])})
    split = hf.Dataset.from_list(
        [{"photo": p, "label": i % 2} for i, p in enumerate([whole, broken])], features=features
    )
    hf.DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / "a"))
    assert "train[1], photo: the image cannot be read: image file is trunc" in refused(
        tmp_path / "a"
    )
