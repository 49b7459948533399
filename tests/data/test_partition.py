import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from flwr_dmml.base.libraries import LibraryError
from flwr_dmml.base.seeding import numpy_generator
from flwr_dmml.data import (
    DataError,
    LoadOptions,
    Modality,
    PartitionOptions,
    Samples,
    Source,
    load_partition,
    load_source,
    partition_indices,
    split_validation,
)

LABELS = torch.arange(10).repeat(120)  # 1,200 samples, 120 of each class
GROUPS = torch.arange(1200) // 200 * 10  # natural ids 0, 10, ..., 50, of 200 samples each
BASE = {"num_nodes": 12, "scheme": "dirichlet", "alpha": 0.5, "samples_per_node": 50, "seed": 0}


def divide(groups=GROUPS, **changes):
    return partition_indices(LABELS, groups, **(BASE | changes))


def skew(parts) -> float:
    """The share of a node's commonest class, averaged over nodes: from 0.1 up to 1."""
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))


@pytest.mark.parametrize("scheme", ["dirichlet", "iid"])
@pytest.mark.parametrize(("samples_per_node", "size"), [(50, 50), (100, 100), (0, 100)])
def test_nodes_are_disjoint_and_of_equal_size(scheme, samples_per_node, size):
    parts = divide(scheme=scheme, samples_per_node=samples_per_node)
    assert [len(part) for part in parts] == [size] * 12
    everything = np.concatenate(parts)
    assert everything.dtype == np.int64
    assert len(np.unique(everything)) == 12 * size
    assert everything.min() >= 0 and everything.max() < 1200


@pytest.mark.parametrize("scheme", ["dirichlet", "iid"])
def test_what_does_not_divide_is_left_over(scheme):
    """1,200 samples over 7 nodes: 171 each, 3 left."""
    assert [len(part) for part in divide(scheme=scheme, num_nodes=7, samples_per_node=0)] == [
        171
    ] * 7


@pytest.mark.parametrize("scheme", ["dirichlet", "iid", "natural"])
def test_the_seed_decides(scheme):
    changes = {"scheme": scheme, "num_nodes": 4}
    first, again, other = divide(**changes), divide(**changes), divide(**changes, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_another_process_divides_alike():
    code = (
        "import torch; from flwr_dmml.data import partition_indices as p\n"
        "print([part.tolist() for part in p(torch.arange(10).repeat(120), None, num_nodes=3,"
        "scheme='dirichlet', alpha=0.5, samples_per_node=20, seed=7)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [part.tolist() for part in divide(num_nodes=3, samples_per_node=20, seed=7)]
    assert run.stdout.strip() == str(here)
    assert run.stderr == ""


def test_neither_the_global_generators_nor_the_terminal_are_touched(capfd):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for scheme in ("dirichlet", "iid", "natural"):
        divide(scheme=scheme, num_nodes=4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert capfd.readouterr() == ("", "")


def test_a_smaller_alpha_is_more_skewed():
    """A uniform draw of 50 has about 9 or 10 of its commonest class: 0.18 to 0.2."""
    skews = [np.mean([skew(divide(alpha=a, seed=s)) for s in range(3)]) for a in (100, 1, 0.3, 0.1)]
    assert skews == sorted(skews)
    assert skews[0] < 0.22 and skews[-1] > 0.6
    assert skew(divide(scheme="iid")) < 0.22


def test_labels_with_gaps_can_be_divided():
    labels = LABELS * 3 + 2
    parts = partition_indices(labels, None, **BASE)
    assert all(np.array_equal(a, b) for a, b in zip(parts, divide(), strict=True))


def test_natural_ids_are_dealt_in_turn():
    """Ids 0, 10, ..., 50 over 4 nodes: 0 and 40, 10 and 50, 20, 30."""
    parts = divide(scheme="natural", num_nodes=4, samples_per_node=0)
    ids = [sorted(set(GROUPS[part].tolist())) for part in parts]
    assert ids == [[0, 40], [10, 50], [20], [30]]
    assert [len(part) for part in parts] == [400, 400, 200, 200]
    assert len(np.unique(np.concatenate(parts))) == 1200


def test_natural_ids_with_a_set_size():
    parts = divide(scheme="natural", num_nodes=4, samples_per_node=150)
    assert [len(np.unique(part)) for part in parts] == [150] * 4
    assert set(GROUPS[parts[0]].tolist()) == {0, 40}


def test_natural_ids_are_divided_within():
    """Two devices for each of six ids, with halves of its samples, of different class shares."""
    parts = divide(scheme="natural-dirichlet", num_nodes=12, samples_per_node=0, alpha=0.3)
    assert [len(part) for part in parts] == [100] * 12
    assert len(np.unique(np.concatenate(parts))) == 1200
    for k in range(6):
        assert set(GROUPS[np.concatenate(parts[2 * k : 2 * k + 2])].tolist()) == {10 * k}
    shares = [torch.bincount(LABELS[part], minlength=10) / 100 for part in parts]
    assert float((shares[0] - shares[1]).abs().sum()) > 0.5
    few = divide(scheme="natural-dirichlet", num_nodes=12, samples_per_node=20, alpha=1.0)
    assert [len(part) for part in few] == [20] * 12
    for nodes, samples, told in (
        (9, 0, "no multiple of the 6 natural"),
        (12, 101, "smallest id has"),
    ):
        with pytest.raises(DataError, match=told):
            divide(scheme="natural-dirichlet", num_nodes=nodes, samples_per_node=samples)
    with pytest.raises(DataError, match="'natural-dirichlet' needs natural ids"):
        divide(scheme="natural-dirichlet", groups=None)


def test_what_is_ones_own_is_not_divided(monkeypatch: pytest.MonkeyPatch):
    """And needs no flwr-datasets, which a device does not have."""
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    parts = divide(scheme="own", num_nodes=3, samples_per_node=0)
    assert [sorted(part.tolist()) for part in parts] == [list(range(1200))] * 3
    assert parts[0].tolist() != parts[1].tolist()
    parts = divide(scheme="own", num_nodes=3, samples_per_node=700)
    assert [len(np.unique(part)) for part in parts] == [700] * 3
    with pytest.raises(DataError, match="1201 is more than the 1200 training samples that this"):
        divide(scheme="own", num_nodes=3, samples_per_node=1201)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_node": 101}, "samples-per-node: 12 .* 101 .* 1200 .* allowed: up to 100"),
        ({"scheme": "iid", "samples_per_node": 101}, "samples-per-node.* allowed: up to 100"),
        (
            {"num_nodes": 1201, "samples_per_node": 0},
            "num-nodes: 1201 nodes .* allowed: up to 1200",
        ),
        ({"num_nodes": 0}, "num-nodes is 0 .* at least 1 node"),
        ({"samples_per_node": -1}, "samples-per-node is -1; .* at least 0 samples"),
        ({"scheme": "random"}, "'random' is unknown; allowed: dirichlet, iid, natural"),
        ({"alpha": 0.0}, "alpha: 0.0 is not allowed; a number above 0 is"),
        ({"alpha": float("nan")}, "alpha: nan is not allowed"),
        ({"alpha": 1e-4, "samples_per_node": 100}, "raise alpha or lower samples-per-node"),
        ({"scheme": "natural", "groups": None}, "needs natural ids, this data set has none"),
        ({"scheme": "natural"}, "num-nodes: 12 nodes are more than the 6 natural ids .* up to 6"),
        (
            {"scheme": "natural", "num_nodes": 4, "samples_per_node": 201},
            "samples-per-node: 201 is more than the 200 .* allowed: up to 200",
        ),
    ],
)
def test_errors_say_what_is_allowed(changes, message):
    with pytest.raises(DataError, match=message):
        divide(**changes)


def test_without_flwr_datasets_it_says_what_mends_that(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    monkeypatch.delitem(sys.modules, "flwr_datasets.partitioner", raising=False)
    with pytest.raises(LibraryError, match=r"^flwr-datasets .* To fix it: pip install "):
        divide(scheme="natural", num_nodes=4)
    assert len(divide(scheme="dirichlet")) == len(divide(scheme="iid")) == 12


@pytest.mark.parametrize(
    ("count", "fraction", "validation"),
    [(10, 0.0, 0), (10, 0.2, 2), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (0, 0.0, 0)],
)
def test_validation_split(count, fraction, validation):
    indices = np.arange(count) * 7
    train, held_out = split_validation(indices, fraction, numpy_generator(0))
    assert len(held_out) == validation
    assert sorted([*train, *held_out]) == indices.tolist()


@pytest.mark.parametrize(
    ("count", "fraction", "message"),
    [(10, 1.0, "validation-fraction: 1.0"), (10, -0.1, "from 0 to below 1"), (1, 0.1, "1 samples")],
)
def test_validation_errors(count, fraction, message):
    with pytest.raises(DataError, match=message):
        split_validation(np.arange(count), fraction, numpy_generator(0))


def recorded(*classes: int, windows: int = 10, steps: int = 10, hop: int = 5) -> Source:
    """So many windows of each recording, which is of one class throughout."""
    rows = [
        (recording, k * hop, k * hop + steps)
        for recording in range(len(classes))
        for k in range(windows)
    ]
    labels = torch.tensor(classes).repeat_interleave(windows)
    samples = Samples({"v": torch.zeros(len(rows), 1, steps)}, labels)
    form = {"v": Modality("series", (1, steps))}
    return Source("made", form, 2, samples, samples, windows=torch.tensor(rows))


def overlap(source: Source, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which windows of ``one`` have a step in common with one of ``other``."""
    a, b = source.windows[one].numpy()[:, None], source.windows[other].numpy()
    same = a[..., 0] == b[:, 0]
    return (same & (a[..., 1] < b[:, 2]) & (b[:, 1] < a[..., 2])).any(axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hop", [1, 4, 5, 10])
@pytest.mark.parametrize("classes", [(0,), (0, 1), (0, 1, 1) * 4])
def test_what_is_held_out_shares_no_step_with_what_is_trained_on(classes, hop, seed):
    source = recorded(*classes, windows=30, hop=hop)
    indices = np.random.default_rng(seed).permutation(len(source.train))[: 25 * len(classes)]
    train, held_out = split_validation(indices, 0.2, numpy_generator(seed), source)
    assert len(held_out) == 5 * len(classes)
    assert not overlap(source, train, held_out).any()
    lost = np.setdiff1d(indices, [*train, *held_out])
    assert overlap(source, lost, held_out).all() and len(train) + len(lost) == 20 * len(classes)
    of = [np.bincount(source.train.labels[rows]) / len(rows) for rows in (indices, held_out)]
    assert of[1] == pytest.approx(of[0], abs=1 / len(held_out))
    again = split_validation(indices, 0.2, numpy_generator(seed), source)
    assert np.array_equal(train, again[0]) and np.array_equal(held_out, again[1])


def test_whole_recordings_are_held_out_where_they_go():
    source = recorded(*[0, 1] * 5)
    taken = set()
    for seed in range(10):
        train, held_out = split_validation(np.arange(100), 0.2, numpy_generator(seed), source)
        assert len(train) == 80
        taken.add(recordings := tuple(source.windows[held_out][:, 0].unique().tolist()))
        assert len(recordings) == 2
    assert len(taken) > 5


def test_windows_that_all_overlap_what_is_held_out_are_refused():
    with pytest.raises(DataError, match="of the 2 windows of a node none is left to train on"):
        split_validation(np.arange(2), 0.1, numpy_generator(0), recorded(0, windows=2))


def test_samples_that_are_no_windows_are_held_out_one_by_one():
    plain = replace(recorded(0, 1), windows=None)
    alone = split_validation(np.arange(20), 0.2, numpy_generator(0))
    given = split_validation(np.arange(20), 0.2, numpy_generator(0), plain)
    assert all(np.array_equal(a, b) for a, b in zip(alone, given, strict=True))
    drawn = numpy_generator(0).permutation(20)
    assert np.array_equal(np.concatenate(alone[::-1]), drawn)


OPTIONS = PartitionOptions(
    "digits",
    num_nodes=6,
    samples_per_node=100,
    validation_fraction=0.1,
    modality_pattern="audio,image,audio+image",
)


def images(samples) -> list[bytes]:
    return [image.numpy().tobytes() for image in samples.inputs["image"]]


def test_a_partition_has_the_modalities_and_samples_of_its_node():
    source = load_source("digits", LoadOptions())
    for node, owned in enumerate([("audio",), ("image",), ("audio", "image")] * 2):
        part = load_partition(OPTIONS, node)
        assert (part.partition_id, part.modalities) == (node, owned)
        assert (len(part.train), len(part.validation), len(part.test)) == (90, 10, 360)
        for samples in (part.train, part.validation, part.test):
            assert tuple(samples.inputs) == owned
        assert part.source_modalities == source.modalities
        assert part.num_classes == 10
        assert torch.equal(part.test.labels, source.test.labels)


def test_no_image_is_in_two_partitions():
    """The 1,797 images are all different, so an image is a sample."""
    seen = []
    for node in (1, 2, 4, 5):
        part = load_partition(OPTIONS, node)
        seen += images(part.train) + images(part.validation)
    assert len(seen) == len(set(seen)) == 400
    assert not set(seen) & set(images(load_partition(OPTIONS, 1).test))


def test_the_division_is_computed_once():
    first, again = load_partition(OPTIONS, 2), load_partition(OPTIONS, 2)
    assert torch.equal(first.train.inputs["audio"], again.train.inputs["audio"])
    assert first.test.inputs["audio"] is again.test.inputs["audio"]


def test_neither_the_noise_nor_the_load_seed_change_who_gets_what():
    for load in (LoadOptions(snr_db=-5.0), LoadOptions(seed=9)):
        changed = PartitionOptions(**(vars(OPTIONS) | {"load": load}))
        here, there = load_partition(OPTIONS, 2), load_partition(changed, 2)
        assert images(here.train) == images(there.train)
        assert not torch.equal(here.train.inputs["audio"], there.train.inputs["audio"])


def test_another_seed_gives_other_samples():
    changed = PartitionOptions(**(vars(OPTIONS) | {"seed": 1}))
    assert images(load_partition(OPTIONS, 2).train) != images(load_partition(changed, 2).train)


@pytest.mark.parametrize("partition_id", [-1, 6])
def test_the_partition_id_is_checked(partition_id):
    with pytest.raises(DataError, match=f"partition-id: {partition_id} .* from 0 to 5"):
        load_partition(OPTIONS, partition_id)
