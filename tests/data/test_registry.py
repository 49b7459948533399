from importlib.metadata import EntryPoint

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.data import (
    DataError,
    LoadOptions,
    available_datasets,
    find_dataset,
    load_source,
    registry,
)


def test_the_built_in_data_sets_are_registered():
    assert {"av-digits", "cifar10", "digits", "mnist"} <= set(available_datasets())
    assert available_datasets() == sorted(available_datasets())


@pytest.mark.parametrize(
    ("name", "modalities", "needs_path", "natural_ids"),
    [
        ("digits", ("audio", "image"), False, False),
        ("av-digits", ("audio", "image"), True, True),
        ("mnist", ("image",), True, False),
        ("cifar10", ("image",), True, False),
    ],
)
def test_find(name, modalities, needs_path, natural_ids):
    dataset = find_dataset(name)
    assert dataset.name == name
    assert dataset.modalities == modalities
    assert (dataset.needs_path, dataset.natural_ids) == (needs_path, natural_ids)


def test_an_unknown_name_lists_the_allowed_ones():
    with pytest.raises(DataError, match=r"'imagenet'.*allowed: .*av-digits, .*digits"):
        find_dataset("imagenet")


def test_an_entry_point_must_be_a_dataset(monkeypatch):
    entry = EntryPoint("broken", "math:pi", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "installed", lambda group: {entry.name: entry})
    with pytest.raises(DataError, match=r"'broken' \(math:pi\) is a float"):
        find_dataset("broken")


@pytest.mark.parametrize("name", ["av-digits", "mnist", "cifar10"])
def test_a_missing_path_names_the_key(name):
    with pytest.raises(DataError, match=rf"data-path: .*'{name}'"):
        load_source(name, LoadOptions())


def test_a_source_is_loaded_once():
    assert load_source("digits", LoadOptions()) is load_source("digits", LoadOptions())
    assert load_source("digits", LoadOptions()) is not load_source("digits", LoadOptions(seed=1))


def test_hidden_images_leave_the_cached_full_source_untouched():
    """Digits have 8 rows: 3 of them at 0.375; sound and labels are those of the full source."""
    full = load_source("digits", LoadOptions())
    before = full.train.inputs["image"].clone()
    assert before[..., 3:, :].any()
    hidden = load_source("digits", LoadOptions(image_visible=0.375))
    for part, whole in ((hidden.train, full.train), (hidden.test, full.test)):
        image, original = part.inputs["image"], whole.inputs["image"]
        assert torch.equal(image[..., :3, :], original[..., :3, :])
        assert not image[..., 3:, :].any()
        assert torch.equal(part.inputs["audio"], whole.inputs["audio"])
        assert torch.equal(part.labels, whole.labels)
    assert load_source("digits", LoadOptions()) is full
    assert torch.equal(full.train.inputs["image"], before)
    assert load_source("digits", LoadOptions(image_visible=0.375)) is hidden


def test_what_is_visible_reaches_a_device():
    """Half of 8 rows, in training, validation and test; who gets which sample stays the same."""
    config = {**FAST, "num-nodes": 2, "method": "dpsgd", "modality-pattern": "audio+image"}
    half, whole = make_learner({**config, "image-visible": 0.5}), make_learner(config)
    for part in ("train_data", "validation_data", "test_data"):
        seen, full = getattr(half, part).inputs, getattr(whole, part).inputs
        assert torch.equal(seen["image"][..., :4, :], full["image"][..., :4, :])
        assert full["image"][..., 4:, :].any() and not seen["image"][..., 4:, :].any()
        assert torch.equal(seen["audio"], full["audio"])
