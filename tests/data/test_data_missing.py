"""Samples that lack a modality: how many, which, and that nothing else changes."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flwr_dmml.base.seeding import numpy_generator
from flwr_dmml.data import Partition, PartitionOptions, Samples, load_partition, load_source
from flwr_dmml.data.missing import draw_present, drop, kept, lost_by, without
from flwr_dmml.data.options import MissingOptions
from flwr_dmml.data.partition import divide

NAMES = ("audio", "image", "radar")


def make(n: int, names: Iterable[str] = NAMES) -> Samples:
    """Return samples without a zero in any input; audio is [n, 2, 3], the others [n, 4]."""
    shapes = {"audio": (2, 3)}
    inputs = {
        m: 1 + torch.arange(n * 6.0).reshape(n, 2, 3)
        if m in shapes
        else 1 + torch.arange(n * 4.0).reshape(n, 4)
        for m in names
    }
    return Samples(inputs, torch.arange(n) % 10, groups=torch.arange(n))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(present: Any) -> torch.Tensor:
    """Return who has what, ``[n, modality]``."""
    return torch.stack(list(present.values()), dim=1)


# drop


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [
        (10, 0.5, 5),
        (10, 0.3, 3),
        (9, 0.5, 4),  # 4.5, half to even
        (11, 0.5, 6),  # 5.5
        (7, 0.1, 1),  # 0.7
        (40, 0.99, 40),  # 39.6
        (40, 1.0, 40),
        (1, 0.9, 1),
    ],
)
@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_exactly_so_many_lack_exactly_one(n, share, count, names):
    for seed in range(5):
        part = drop(make(n, names), share, names, rng(seed))
        assert part.present is not None and list(part.present) == list(names)
        has = table(part.present)
        assert has.dtype == torch.bool and has.shape == (n, len(names))
        lacking = (~has).sum(dim=1)
        assert int((lacking == 1).sum()) == count and int((lacking > 1).sum()) == 0
        assert bool(has.any(dim=1).all())


def test_what_is_missing_is_zero_and_the_rest_as_it_was():
    whole = make(20)
    part = drop(whole, 0.6, NAMES, rng())
    for m, x in part.inputs.items():
        has = part.present[m]
        assert 0 < int(has.sum()) < 20
        assert not x[~has].any()
        assert torch.equal(x[has], whole.inputs[m][has])
        assert x.shape == whole.inputs[m].shape and x.dtype == torch.float32
    assert part.labels is whole.labels and part.groups is whole.groups


def test_the_tensors_given_are_not_written_into():
    whole = make(20)
    before = {m: x.clone() for m, x in whole.inputs.items()}
    part = drop(whole, 0.9, ["audio", "radar"], rng())
    assert all(torch.equal(whole.inputs[m], x) for m, x in before.items())
    assert whole.present is None
    assert part.inputs["image"] is whole.inputs["image"]  # never missing: no copy


@pytest.mark.parametrize(
    ("names", "share", "may_miss"),
    [
        (NAMES, 0.0, NAMES),
        (NAMES, 0.02, NAMES),  # 0.4 samples
        (("audio",), 0.5, ("audio",)),
        (NAMES, 0.5, ()),
        (NAMES, 0.5, ("lidar",)),
        (("audio", "image"), 0.5, ("radar",)),
    ],
)
def test_where_nothing_can_be_missing_samples_come_back_unchanged(names, share, may_miss):
    whole = make(20, names)
    assert drop(whole, share, may_miss, rng()) is whole
    present = draw_present(whole, share, may_miss, rng())
    assert list(present) == list(names) and bool(table(present).all())


def test_no_samples_are_no_problem():
    empty = make(0)
    assert drop(empty, 0.5, NAMES, rng()) is empty


def test_only_those_named_are_missing_and_the_count_stays():
    part = drop(make(50), 0.5, ["lidar", "image"], rng())
    lacking = {m: int((~has).sum()) for m, has in part.present.items()}
    assert lacking == {"audio": 0, "image": 25, "radar": 0}


def test_modalities_and_samples_are_drawn_uniformly():
    """30,000 samples, 15,000 lack one of three: 5,000 each, standard deviation 58."""
    present = draw_present(make(30_000), 0.5, NAMES, rng())
    for has in present.values():
        assert abs(int((~has).sum()) - 5_000) < 5 * 58
    # 1,000 times 3 of 10 samples: each 300 times, standard deviation 14.5
    one, small = rng(3), make(10)
    times = sum((~table(draw_present(small, 0.3, NAMES, one))).any(dim=1) for _ in range(1000))
    assert bool(((times - 300).abs() < 5 * 14.5).all())


def test_the_generator_decides():
    first, again, other = (
        table(drop(make(60), 0.5, NAMES, rng(seed)).present) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_samples_that_lack_something_already_never_lack_more():
    """Rows 0 to 3 lack audio: of the 6 others 5 come to lack one."""
    whole = make(10)
    has_audio = torch.arange(10) >= 4
    present = {m: torch.ones(10, dtype=torch.bool) for m in NAMES} | {"audio": has_audio}
    before = has_audio.clone()
    part = drop(replace(whole, present=present), 0.5, NAMES, rng())
    lacking = (~table(part.present)).sum(dim=1)
    assert lacking[:4].tolist() == [1] * 4 and int(lacking[4:].sum()) == 5
    assert not part.present["audio"][:4].any()
    assert torch.equal(has_audio, before)
    nothing = replace(whole, present=present)
    assert drop(nothing, 0.0, NAMES, rng()) is nothing


def test_missing_survives_a_subset():
    part = drop(make(20), 0.5, NAMES, rng())
    rows = torch.tensor([3, 17, 0])
    assert torch.equal(table(part.subset(rows).present), table(part.present)[rows])


# load_partition

BASE = PartitionOptions(
    dataset="digits",
    num_nodes=6,
    samples_per_node=50,
    validation_fraction=0.2,
    modality_pattern="audio,image,audio+image",
)


def load(partition_id: int, seed: int = 0, **missing: Any) -> Partition:
    return load_partition(replace(BASE, seed=seed, missing=MissingOptions(**missing)), partition_id)


def test_by_default_nothing_is_missing():
    for node in range(3):
        part = load(node)
        assert part.train.present is part.validation.present is part.test.present is None
        assert part.test_present is None


def test_training_samples_of_devices_with_several_sensors_lack_some():
    """40 training samples: 20 lack one. Validation and test are complete."""
    plain, part = load(2), load(2, train_share=0.5)
    has = table(part.train.present)
    assert list(part.train.present) == ["audio", "image"]
    assert int((~has).sum()) == 20 and int((~has).any(dim=1).sum()) == 20
    assert 0 < int((~has)[:, 0].sum()) < 20
    for m, x in part.train.inputs.items():
        there = part.train.present[m]
        assert torch.equal(x[there], plain.train.inputs[m][there]) and not x[~there].any()
    for split in ("validation", "test"):
        whole, same = getattr(plain, split), getattr(part, split)
        assert same.present is None and torch.equal(whole.labels, same.labels)
        assert all(torch.equal(whole.inputs[m], same.inputs[m]) for m in whole.inputs)
    assert part.test_present is None


@pytest.mark.parametrize("node", [0, 1])
def test_a_device_with_one_sensor_never_lacks_it(node):
    plain, part = load(node), load(node, train_share=0.5, test_share=0.5)
    (m,) = part.modalities
    assert part.train.present is None
    assert torch.equal(part.train.inputs[m], plain.train.inputs[m])
    assert list(part.test_present) == [m] and bool(part.test_present[m].all())


def test_who_gets_which_sample_stays():
    plain, missing = BASE, replace(BASE, missing=MissingOptions(train_share=0.5, test_share=0.5))
    (before, owned), (after, same) = divide(plain), divide(missing)
    assert owned == same
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    for node in range(6):
        a, b = load_partition(plain, node), load_partition(missing, node)
        assert torch.equal(a.train.labels, b.train.labels)
        assert torch.equal(a.validation.labels, b.validation.labels)


def test_the_source_is_not_written_into():
    source = load_source("digits", BASE.load)
    before = {m: x.clone() for m, x in source.train.inputs.items()}
    after_test = {m: x.clone() for m, x in source.test.inputs.items()}
    part = load(2, train_share=0.9, test_share=0.9)
    assert load_source("digits", BASE.load) is source
    assert all(torch.equal(source.train.inputs[m], x) for m, x in before.items())
    assert all(torch.equal(source.test.inputs[m], x) for m, x in after_test.items())
    assert all(part.test.inputs[m] is source.test.inputs[m] for m in part.modalities)


def test_devices_draw_apart_and_the_seed_decides():
    def has(node: int, seed: int = 0) -> torch.Tensor:
        return table(load(node, seed, train_share=0.5).train.present)

    assert torch.equal(has(2), has(2))
    assert not torch.equal(has(2), has(5))
    assert not torch.equal(has(2), has(2, seed=1))


def test_a_devices_draw_is_that_of_its_own_generator():
    """Of run seed, purpose and partition id: no other device or setting has a say."""
    plain, part = load(5), load(5, train_share=0.5, test_share=0.3)
    own = numpy_generator(0, "missing", 5)
    expected = drop(plain.train, 0.5, ["audio", "image"], own)
    assert torch.equal(table(part.train.present), table(expected.present))
    assert torch.equal(part.train.inputs["audio"], expected.inputs["audio"])


def test_the_test_mask_is_the_same_on_devices_with_the_same_sensors():
    masks = [table(load(node, test_share=0.3).test_present) for node in (2, 5)]
    n = len(load(2).test)
    assert torch.equal(*masks)
    assert masks[0].shape == (n, 2)
    assert int((~masks[0]).any(dim=1).sum()) == int((~masks[0]).sum()) == round(0.3 * n)
    assert not torch.equal(masks[0], table(load(2, seed=1, test_share=0.3).test_present))


def test_at_test_time_only_training_is_complete():
    plain, part = load(2), load(2, test_share=1)
    assert part.train.present is None
    assert all(torch.equal(part.train.inputs[m], x) for m, x in plain.train.inputs.items())
    assert bool((table(part.test_present).sum(dim=1) == 1).all())  # of two, one is left
    assert part.test.present is None


def test_only_the_modality_named_is_missing():
    part = load(2, train_share=0.5, test_share=0.5, modalities="image")
    assert bool(part.train.present["audio"].all()) and bool(part.test_present["audio"].all())
    assert int((~part.train.present["image"]).sum()) == 20
    assert int((~part.test_present["image"]).sum()) == round(0.5 * len(part.test))


# a device that has lost modalities for good


def test_what_is_left_at_a_rate_by_hand():
    """What has the highest draw of a sample stays; what is gone at a rate is gone above it."""
    draws = torch.tensor([[0.1, 0.5, 0.3], [0.3, 0.1, 0.2], [0.2, 0.7, 2.0]])
    assert kept(draws, 0.0).all()
    assert kept(draws, 0.2).tolist() == [[False, True, True], [True, False, True], [True] * 3]
    assert kept(draws, 0.4).int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert kept(draws, 1.0).tolist() == [[False] * 3, [True, False, False], [False, True, True]]
    draws[1, 0] = -1.0  # is not there
    assert kept(draws, 1.0)[:, 0].tolist() == [False, False, True]


@pytest.mark.parametrize(("names", "rate"), [(NAMES, 0.6), (NAMES[:2], 0.8), (NAMES[:2], 0.2)])
def test_masks_are_nested_in_the_rate_and_as_frequent_as_said(names, rate):
    """A share ``r - r^M / M`` is missing: 4 deviations of 20,000 samples."""
    draws = torch.rand(len(names), 20_000, generator=torch.Generator().manual_seed(0))
    before = torch.ones_like(draws, dtype=torch.bool)
    for r in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        now = kept(draws, r)
        assert now.any(dim=0).all() and not (now & ~before).any()
        before = now
    share = float((~kept(draws, rate)).double().mean())
    assert abs(share - (rate - rate ** len(names) / len(names))) < 4 * 0.5 / 20_000**0.5


def test_devices_lose_modalities_one_by_one_and_never_the_last():
    """At rate 1/2 each of two is lost by 3/8; the draws of a device's modalities differ."""
    lost = [lost_by(k, NAMES[:2], NAMES, 0.5, seed=3) for k in range(2000)]
    assert lost == [lost_by(k, NAMES[:2], NAMES, 0.5, seed=3) for k in range(2000)]
    assert max(map(len, lost)) == 1
    for m in NAMES[:2]:
        assert abs(sum(m in own for own in lost) / 2000 - 3 / 8) < 4 * 0.5 / 2000**0.5
    assert all(len(lost_by(k, NAMES, NAMES, 1.0, seed=0)) == 2 for k in range(20))
    assert all(lost_by(k, NAMES, ["image"], 1.0, seed=0) == ["image"] for k in range(20))
    assert lost_by(0, NAMES[:1], NAMES, 1.0, seed=0) == lost_by(0, NAMES, NAMES, 0.0, seed=0) == []


def test_a_device_that_has_lost_a_modality_trains_without_and_is_tested_with_it():
    plain, part = load(2), load(2, device_rate=1.0)
    (gone,) = (m for m, has in part.train.present.items() if not has.any())
    (rest,) = {*part.modalities} - {gone}
    assert part.train.present[rest].all() and len(part.train) == len(plain.train) == 40
    assert not part.train.inputs[gone].any()
    assert torch.equal(part.train.inputs[rest], plain.train.inputs[rest])
    assert part.modalities == plain.modalities
    assert part.validation.present is part.test.present is part.test_present is None
    assert load(0, device_rate=1.0).train.present is None, "its only one"
    assert load(2, device_rate=1.0, modalities="radar").train.present is None
    both = load(2, device_rate=1.0, train_share=0.5)
    assert all(torch.equal(x, part.train.present[m]) for m, x in both.train.present.items())


def test_samples_with_nothing_else_are_left_out():
    samples = make(6, NAMES[:2])
    there = torch.tensor([True, False, True, True, False, True])
    partly = replace(samples, present={"audio": torch.ones(6, dtype=torch.bool), "image": there})
    left = without(partly, ["audio"])
    assert left.labels.tolist() == [0, 2, 3, 5] and left.present["image"].all()
    assert without(samples, []) is samples and bool(samples.inputs["audio"].all())
