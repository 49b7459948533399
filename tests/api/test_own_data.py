"""Arrays in memory as a data set."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flwr_dmml.api.own_data import HELD_OUT, read_data
from flwr_dmml.data import DataError, Dataset
from flwr_dmml.data.options import LoadOptions
from flwr_dmml.data.samples import Source


def source_of(dataset: Dataset) -> Source:
    return dataset.load(LoadOptions())


def pair(modalities: dict[str, int], count: int = 10, seed: int = 0) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(size=(count, width)) for name, width in modalities.items()}
    return inputs, np.arange(count) % 2


def test_each_device_gets_its_own_samples_and_modalities() -> None:
    devices = [pair({"a": 3, "b": 2}), pair({"a": 3}, 5, 1), pair({"b": 2}, 15, 2)]
    own = read_data(devices)
    source = source_of(own.dataset)
    assert own.settings["num-nodes"] == 3 and own.settings["partition"] == "natural"
    train = source.train
    assert train.groups is not None and train.present is not None
    assert train.groups.bincount().tolist() == [8, 4, 12]  # a fifth is held out
    assert len(source.test) == 2 + 1 + 3
    for k, (inputs, labels) in enumerate(devices):
        rows = torch.nonzero(train.groups == k).flatten()
        for name in source.modalities:
            assert bool(train.present[name][rows].all()) == (name in inputs)
            for row in rows:
                given = train.inputs[name][row].numpy()
                if name in inputs:
                    (at,) = np.flatnonzero(np.isclose(inputs[name], given).all(axis=1))
                    assert labels[at] == train.labels[row]
                else:
                    assert not given.any()


def test_test_samples_that_are_given_are_the_test_and_nothing_is_held_out() -> None:
    test = pair({"a": 3}, 4, 9)
    source = source_of(read_data(pair({"a": 3}, 10), test).dataset)
    assert len(source.train) == 10
    assert np.allclose(source.test.inputs["a"].numpy(), test[0]["a"])


def test_what_is_held_out_is_the_same_every_time_and_the_share_that_is_said() -> None:
    given = [pair({"a": 3}, 50)]
    one, two = (source_of(read_data(given).dataset) for _ in range(2))
    assert torch.equal(one.test.inputs["a"], two.test.inputs["a"])
    assert len(one.test) == round(HELD_OUT * 50)


def test_other_numbers_are_another_data_set() -> None:
    inputs, labels = pair({"a": 3})
    changed = {"a": inputs["a"] + 1}
    names = {read_data((given, labels)).dataset.name for given in (inputs, changed, inputs)}
    assert len(names) == 2


def test_what_is_not_in_the_numbers_makes_another_data_set_as_well() -> None:
    """Who has which samples, what the classes are called, and who lacks what."""
    x, y = np.arange(200.0).reshape(100, 2), np.arange(100) % 2
    test = {"test": (x[:4], y[:4])}
    animals, findings = (np.array(names)[y] for names in (["cat", "dog"], ["healthy", "ill"]))
    named = (animals[:4], findings[:4])
    lacking = {"a": x, "b": np.zeros((100, 1))}
    names = [
        read_data([(x[:50], y[:50]), (x[50:], y[50:])], **test).dataset.name,
        read_data([(x[:90], y[:90]), (x[90:], y[90:])], **test).dataset.name,
        *(
            read_data((x, labels), (x[:4], few)).dataset.name
            for labels, few in zip((animals, findings), named, strict=True)
        ),
        *(
            read_data([(lacking, y), ({m: lacking[m] for m in kept}, y)]).dataset.name
            for kept in ("a", "ab")
        ),
    ]
    assert len({*names}) == len(names) == 6


@pytest.mark.parametrize(
    ("shape", "kind"), [((7,), "vector"), ((2, 7), "series"), ((3, 7, 7), "image")]
)
def test_the_shape_of_a_sample_says_what_it_is(shape: tuple[int, ...], kind: str) -> None:
    source = source_of(read_data((np.zeros((6, *shape)), list("ababab"))).dataset)
    assert source.modalities["input"].kind == kind
    assert source.modalities["input"].shape == shape
    assert source.class_names == ("a", "b")
    assert source_of(read_data((np.zeros((4, 2)), [b"a", b"b"] * 2)).dataset).class_names == (
        "a",
        "b",
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "an empty list"),
        ([1, 2], r"data\[0\]: must be a pair"),
        (({"a": np.zeros((4, 2))}, [0, 1]), "4 samples of a, 2 labels"),
        ((np.zeros(4), [0] * 4), "samples x features at least"),
        ((np.full((4, 2), np.nan), [0] * 4), "sample 0 has a number that is not finite"),
        ((np.zeros((4, 2)), [0.5, 1, 2, 3]), "real numbers; classes are whole numbers or text"),
        ((np.zeros((4, 2)), [[0]] * 4), "one label a sample"),
        ((np.array([["x", "y"]] * 4), [0] * 4), "not numbers"),
        (({"a+b": np.zeros((4, 2))}, [0] * 4), "cannot be named 'a\\+b'"),
        (({}, [0] * 4), "has no modality"),
        ([pair({"a": 2}), pair({"a": 3})], "one shape a modality"),
        ([pair({"a": 2}), (np.zeros((2, 2)), ["x", "y"])], "some labels are text and some"),
        ([pair({"a": 2}, 1)], "one sample; two are needed"),
        (([[1, 2], [3]], [0, 1]), "no array can be made of it"),
    ],
)
def test_what_cannot_be_data_is_refused_by_name(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_data(data)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pd.Series(["cat", "dog", None, "cat"], dtype=object), "sample 2 has no label: 'None' is"),
        (
            pd.Series(["cat", "dog", None, "cat"]),
            "sample 2 has no label: '(None|nan)' is a missing",
        ),
        (pd.Series([0, 1, np.nan, 1]), "sample 2 has no label: 'nan' is a missing value"),
        (pd.Series([0, 1, None, 1], dtype="Int64"), "sample 2 has no label: '(<NA>|nan)' is"),
        (pd.Series(["x", np.nan, "y", "y"], dtype="category"), "sample 1 has no label: 'nan' is"),
        (["cat", "dog", "cat", ""], r"sample 3 has no label \(give one"),
        ([b"cat", b"", b"cat", b"dog"], r"sample 1 has no label \(give"),
        ([0, 1, np.inf, 1], "real numbers; classes are whole numbers or text"),
    ],
)
def test_a_missing_label_is_no_class(labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_data((np.zeros((4, 2)), labels))


def test_labels_of_bytes_are_text() -> None:
    dataset = read_data((np.zeros((4, 2)), [b"cat", b"dog"] * 2)).dataset
    assert source_of(dataset).class_names == ("cat", "dog")


def test_a_test_label_that_no_training_sample_has_is_refused() -> None:
    with pytest.raises(DataError, match="no training sample has the label '7'"):
        read_data(pair({"a": 2}), ({"a": np.zeros((1, 2))}, [7]))
    with pytest.raises(DataError, match="needs a, samples of shape"):
        read_data(pair({"a": 2}), ({"b": np.zeros((1, 2))}, [1]))
