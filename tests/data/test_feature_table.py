"""The reader of feature files on small folders in the layout that the docs describe."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_peers

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    PartitionOptions,
    find_dataset,
    load_partition,
    load_source,
)
from flwr_dmml.data.options import SeriesOptions

LABELS = """id,label,split,speaker
u1,joy,train,Ross
u2,anger,train,Monica

u3,joy,test,Ross
u4,anger,train,Joey
"""
AUDIO = "id,f0,f1\nu2,2,-2\nu1,1,-1\nu4,4.5,-4e0\n"
VIDEO = "id,a\nu1,1\nu2,2\nu1,1.5\nu3,3\nu2,2.25\nu2,2.5\n"
TEXT = np.array(
    [
        [[1, 1], [0, 0], [1, 3], [0, 0]],  # a step of zeros between two others is one
        [[2, 1], [2, 2], [2, 3], [2, 4]],
        [[3, 1], [0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0], [0, 0]],
    ]
)


def make(root, labels=LABELS, **files):
    """Make a folder: text of CSV files, arrays of NPY files."""
    (root / "labels.csv").write_text(labels, encoding="utf-8")
    for name, content in ({"audio": AUDIO, "video": VIDEO, "text": TEXT} | files).items():
        if isinstance(content, str):
            (root / f"{name}.csv").write_text(content, encoding="utf-8")
        elif content is not None:
            np.save(root / f"{name}.npy", content)
    return root


def options_of(root, steps=0) -> LoadOptions:
    return LoadOptions(path=str(root), series=SeriesOptions(steps=steps), cache=False)


def load(root, steps=0):
    return load_source("feature-table", options_of(root, steps))


def message_of(root) -> str:
    with pytest.raises(DataError) as caught:
        load(root)
    return str(caught.value)


def problems_of(root) -> list[str]:
    head, *lines = message_of(root).splitlines()
    assert head == f"data-path: '{root}' cannot be used:"
    return [line.strip() for line in lines]


# What is read


def test_vectors_sequences_and_what_is_lacking(tmp_path):
    source = load(make(tmp_path))
    kinds = {name: (m.kind, m.shape) for name, m in source.modalities.items()}
    assert kinds == {
        "audio": ("vector", (2,)),
        "text": ("sequence", (3, 4)),
        "video": ("sequence", (2, 3)),
    }
    assert list(kinds) == ["audio", "text", "video"]
    assert source.class_names == ("anger", "joy") and source.num_classes == 2
    assert source.group_names == ("Joey", "Monica", "Ross")
    train, test = source.train, source.test
    assert train.labels.tolist() == [1, 0, 0] and test.labels.tolist() == [1]
    assert train.groups.tolist() == [2, 1, 0] and test.groups.tolist() == [2]
    assert train.inputs["audio"].tolist() == [[1, -1], [2, -2], [4.5, -4]]
    assert train.inputs["video"].tolist() == [
        [[1, 1.5, 0], [1, 1, 0]],
        [[2, 2.25, 2.5], [1, 1, 1]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    assert train.inputs["text"][0].tolist() == [[1, 0, 1, 0], [1, 0, 3, 0], [1, 1, 1, 0]]
    assert train.inputs["text"][1].tolist() == [[2] * 4, [1, 2, 3, 4], [1] * 4]
    assert not train.inputs["text"][2].any()
    assert {name: has.tolist() for name, has in train.present.items()} == {
        "audio": [True, True, True],
        "text": [True, True, False],
        "video": [True, True, False],
    }
    assert test.present["audio"].tolist() == [False] and not test.inputs["audio"].any()
    assert test.inputs["text"].tolist() == [[[3, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]]
    assert all(x.dtype == torch.float32 for x in train.inputs.values())


@pytest.mark.parametrize("steps", [2, 6])
def test_sequences_are_cut_or_masked(tmp_path, steps):
    source = load(make(tmp_path), steps)
    assert source.modalities["video"].shape == (2, steps)
    assert source.modalities["text"].shape == (3, steps)
    assert source.modalities["audio"].shape == (2,)
    rows = source.train.inputs["video"]
    assert rows[1, 0].tolist() == [2, 2.25, 2.5, 0, 0, 0][:steps]
    assert rows[1, 1].tolist() == [1, 1, 1, 0, 0, 0][:steps]


def test_an_array_of_two_dimensions_holds_vectors(tmp_path):
    """A row of zeros alone is a missing one; of a CSV file it is not."""
    text = np.array([[1, 2], [0, 0], [3, 4], [5, 6]], dtype=np.int16)
    audio = "id,f\nu1,0\nu2,0\nu3,0\nu4,0\n"
    source = load(make(tmp_path, text=text, audio=audio))
    assert source.modalities["text"].kind == "vector"
    assert source.train.inputs["text"].tolist() == [[1, 2], [0, 0], [5, 6]]
    assert source.train.present["text"].tolist() == [True, False, True]
    assert source.train.present["audio"].all()


def test_where_nothing_is_lacking_nothing_is_said(tmp_path):
    source = load(make(tmp_path, audio=np.ones((4, 2)), text=None, video=None))
    assert source.train.present is None and source.test.present is None


def test_ids_are_optional_and_other_columns_are_not_read(tmp_path):
    labels = "label,utterance,id,split\n"
    labels += '10,"oh, my",u1,train\n9,"",u2,train\n-1,b,u4,train\n9,a,u3,test\n'
    source = load(make(tmp_path, labels, text=None))
    assert source.class_names == ("-1", "9", "10") and source.train.labels.tolist() == [2, 1, 0]
    assert source.group_names == () and source.train.groups is None
    options = PartitionOptions(
        "feature-table", 2, options_of(tmp_path), scheme="natural", modality_pattern="audio"
    )
    with pytest.raises(DataError, match="'natural' needs natural ids"):
        load_partition(options, 0)


def test_nodes_are_dealt_in_the_order_of_their_numbers(tmp_path):
    ids = [f"i{k}" for k in range(24)]
    labels = "id,label,split,node\n"
    labels += "".join(f"{i},{k % 2},train,{k // 2}\n" for k, i in enumerate(ids))
    make(tmp_path, f"{labels}last,0,test,0\n", audio=np.arange(1.0, 51).reshape(25, 2), text=None)
    (tmp_path / "video.csv").unlink()
    source = load(tmp_path)
    assert source.group_names == tuple(map(str, range(12)))
    options = PartitionOptions(
        "feature-table", 12, options_of(tmp_path), scheme="natural", modality_pattern="audio"
    )
    found = load_partition(options, 10).train.inputs["audio"].flatten().tolist()
    assert sorted(found) == [41, 42, 43, 44]


def test_the_pattern_auto_gives_what_the_samples_have(tmp_path):
    options = PartitionOptions(
        "feature-table", 3, options_of(make(tmp_path)), scheme="natural", modality_pattern="auto"
    )
    owned = [load_partition(options, node).modalities for node in range(3)]
    assert owned == [("audio",), ("audio", "text", "video"), ("audio", "text", "video")]


def test_the_folder_tells_the_modalities(tmp_path):
    dataset = find_dataset("feature-table")
    make(tmp_path)
    (tmp_path / "._audio.csv").write_bytes(b"\x00")
    (tmp_path / "readme.txt").write_text("features")
    assert dataset.modalities_of(options_of(tmp_path)) == ("audio", "text", "video")
    names = [Path(file).name for file in dataset.files(options_of(tmp_path))]
    assert names == ["labels.csv", "audio.csv", "text.npy", "video.csv"]


# What is refused


def test_an_empty_folder_says_what_is_expected(tmp_path):
    expected = f"data-path: '{tmp_path}' cannot be used: expected labels.csv with the columns id, "
    assert message_of(tmp_path).startswith(expected)
    (tmp_path / "labels.csv").write_text(LABELS)
    assert message_of(tmp_path).startswith(expected)


def test_files_that_cannot_be_modalities_are_refused(tmp_path):
    make(tmp_path, audio=np.ones((4, 2)))
    (tmp_path / "audio.csv").write_text(AUDIO)
    assert "has both audio.csv and audio.npy; keep one" in message_of(tmp_path)
    (tmp_path / "audio.npy").rename(tmp_path / "a+b.npy")
    assert "has a+b.npy: a modality cannot be named 'a+b'; allowed" in message_of(tmp_path)


def test_everything_wrong_is_named_at_once(tmp_path):
    make(
        tmp_path,
        LABELS.replace("u4,anger,train", "u4,anger,dev").replace("u3,joy,test", "u3,sad,test"),
        audio="id,f0,f1\nu1,1,2\nu2,1,nan\nu3,1\nu9,1,2\nu4,inf,2\nu4,x,2\n",
        video="name,a\nu1,1\n",
        text=TEXT[:3],
        gaze=np.where(TEXT == 4, np.nan, TEXT),
        pose=np.zeros((4, 2)),
        words=np.array([["a"]] * 4),
        flow=np.ones(4),
    )
    (tmp_path / "depth.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "heat.csv").write_text("id,a\n")
    (tmp_path / "taste.csv").write_bytes(b"id,a\nu1,\xff\n")
    array = "expected numbers [n, features] or [n, steps, features], not only zeros"
    wanted = [
        "labels.csv: no training row has the label 'sad'; training rows have 'anger', 'joy'; line",
        "audio.csv: line 3: f1 is 'nan', not a finite number (float32); line 4: 2 columns, ",
        "depth.npy: it is not a whole .npy file of numbers: ",
        f"flow.npy: it holds float64 (4,), {array}",
        "gaze.npy: row 2 has a number that is not finite (float32)",
        "heat.csv: it has no rows",
        f"pose.npy: it holds float64 (4, 2), {array}",
        "taste.csv: it is not in UTF-8 (",
        "text.npy: it has 3 rows, labels.csv has 4",
        "video.csv: its first line is 'name,a', expected id and the names of features",
        "words.npy: it holds <U1, expected real numbers",
    ]
    found = problems_of(tmp_path)
    assert len(found) == len(wanted)
    for line, expected in zip(found, wanted, strict=True):
        assert line.startswith(expected)
    assert found[0].endswith(" line 6: split 'dev', expected train or test (leave other rows out)")
    assert found[1].endswith("; line 5: id 'u9' is not in labels.csv; and 2 more lines")


def test_pickles_are_not_opened(tmp_path):
    make(tmp_path, text=np.array([{}] * 4, dtype=object))
    assert "text.npy: it is not a whole .npy file" in message_of(tmp_path)


def test_an_id_without_features_is_named(tmp_path):
    make(tmp_path, LABELS + "u5,joy,train,Ross\n", text=None)
    assert problems_of(tmp_path) == ["labels.csv: id 'u5' has no features of any modality"]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("", "its first line is '', expected the columns id, label, split and, if there are"),
        ("id,split\nu1,train\n", "its first line is 'id,split', expected the columns id, label"),
        ("id,label,split,node,speaker\n", "expected the columns id, label, split and, if there"),
        ("id,label,split,id\n", "its first line is 'id,label,split,id'"),
        ("id,label,split\nu1,a\nu2,a,train\n", "line 2: 2 columns, expected 3"),
        ("id,label,split\nu1,,train\nu2,a,test\n", "line 2: label ''"),
        ("id,label,split\nu1,a,train\nu1,a,test\n", "id 'u1' is there 2 times"),
        ("id,label,split\nu1,a,train\n", "no row has the split test"),
        ("id,label,split\nu1,a,test\n", "no row has the split train"),
    ],
)
def test_labels_that_cannot_be_are_named(tmp_path, labels, told):
    assert any(told in line for line in problems_of(make(tmp_path, labels)))


# Training


def test_devices_learn_it(tmp_path):
    """A vector and sequences of 3 to 6 steps, with the class in their mean; some are lacking."""
    rng = np.random.default_rng(0)
    labels = "id,label,split,speaker\n"
    audio, text = "id,f0,f1,f2\n", np.zeros((160, 6, 3))
    for k in range(160):
        mean = np.eye(3)[k % 3]
        labels += f"{k},{k % 3},{'test' if k >= 120 else 'train'},{k % 4}\n"
        if k % 8:
            audio += ",".join([str(k), *map(str, mean + 0.3 * rng.standard_normal(3))]) + "\n"
        if k % 8 != 1:
            text[k, : 3 + k % 4] = mean + 0.3 * rng.standard_normal((3 + k % 4, 3))
    make(tmp_path, labels, audio=audio, text=text)
    (tmp_path / "video.csv").unlink()
    peers = run_peers(
        {
            "dataset": "feature-table",
            "data-path": str(tmp_path),
            "num-nodes": 3,
            "partition": "natural",
            "modality-pattern": "audio,text,audio+text",
            "local-iterations": 10,
            "batch-size": 16,
        },
        num_rounds=5,
    )
    assert peers.records[-1].accuracy > 0.7
