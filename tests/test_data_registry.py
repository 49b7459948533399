from importlib.metadata import EntryPoint

import pytest

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    available_datasets,
    find_dataset,
    load_source,
    registry,
)


def test_the_built_in_data_sets_are_registered():
    assert {"av-digits", "digits"} <= set(available_datasets())
    assert available_datasets() == sorted(available_datasets())


@pytest.mark.parametrize(
    ("name", "needs_path", "natural_ids"), [("digits", False, False), ("av-digits", True, True)]
)
def test_find(name, needs_path, natural_ids):
    dataset = find_dataset(name)
    assert dataset.name == name
    assert dataset.modalities == ("audio", "image")
    assert (dataset.needs_path, dataset.natural_ids) == (needs_path, natural_ids)


def test_an_unknown_name_lists_the_allowed_ones():
    with pytest.raises(DataError, match=r"'mnist'.*allowed: .*av-digits, .*digits"):
        find_dataset("mnist")


def test_an_entry_point_must_be_a_dataset(monkeypatch):
    entry = EntryPoint("broken", "math:pi", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    with pytest.raises(DataError, match=r"'broken' \(math:pi\) is a float"):
        find_dataset("broken")


def test_a_missing_path_names_the_key():
    with pytest.raises(DataError, match=r"data-path: .*'av-digits'"):
        load_source("av-digits", LoadOptions())


def test_a_source_is_loaded_once():
    assert load_source("digits", LoadOptions()) is load_source("digits", LoadOptions())
    assert load_source("digits", LoadOptions()) is not load_source("digits", LoadOptions(seed=1))
