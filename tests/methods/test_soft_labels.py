"""Soft labels of a public set: what is sent, what is refused, and how they are averaged."""

from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.methods.soft_labels import SoftLabelError, SoftLabels, average, unpack

PUBLIC, CLASSES = 12, 3


def _labels(index, rows):
    return SoftLabels.of(torch.tensor(index), torch.tensor(rows))


def _message(index=(1, 4), labels=((0.5, 0.5, 0.0), (0.0, 0.0, 1.0)), **types):
    return {
        "index": torch.tensor(index, dtype=types.get("index_type", torch.int32)),
        "labels": torch.tensor(labels, dtype=types.get("labels_type", torch.float16)),
    }


@st.composite
def soft_labels(draw, public=PUBLIC, classes=CLASSES):
    """Softmax outputs of a random subset, from flat to saturated; the subset may be empty."""
    index = sorted(draw(st.sets(st.integers(0, public - 1))))
    row = st.lists(st.floats(-30, 30), min_size=classes, max_size=classes)
    logits = draw(st.lists(row, min_size=len(index), max_size=len(index)))
    flat = torch.tensor(logits, dtype=torch.float32).reshape(len(index), classes)
    return SoftLabels.of(torch.tensor(index, dtype=torch.int64), flat.softmax(dim=1))


def test_labels_are_stored_as_int32_and_float16():
    labels = _labels([0, 7], [[1.0, 0.0], [1 / 3, 2 / 3]])
    assert (labels.index.dtype, labels.labels.dtype) == (torch.int32, torch.float16)
    assert labels.index.tolist() == [0, 7]
    assert labels.labels.tolist()[1] == pytest.approx([1 / 3, 2 / 3], rel=2**-11)


def test_labels_carry_no_gradient():
    probabilities = torch.zeros(1, 2, requires_grad=True).softmax(dim=1)
    assert not SoftLabels.of(torch.tensor([0]), probabilities).labels.requires_grad


def test_a_row_of_many_classes_survives_rounding():
    """1,000 classes of 1 / 1,000 each: float16 moves every one by less than 2^-11 of itself."""
    labels = SoftLabels.of(torch.tensor([0]), torch.full((1, 1000), 1e-3))
    assert float(labels.labels.double().sum()) == pytest.approx(1.0, abs=2**-11)


@pytest.mark.parametrize(
    ("index", "rows", "problem"),
    [
        ([0.0], [[1.0, 0.0]], "index holds integers"),
        ([True], [[1.0, 0.0]], "index holds integers"),
        ([0], [[1, 0]], "floating point"),
        ([2**32 + 5], [[1.0, 0.0]], "above int32"),
        ([-(2**32) + 5], [[1.0, 0.0]], "below 0"),
        ([3, 3], [[1.0, 0.0], [1.0, 0.0]], "strictly increasing"),
        ([0, 1], [[1.0, 0.0]], "shape"),
        ([0], [[0.5, 0.25]], "sum to 0.75"),
    ],
)
def test_outputs_that_make_no_soft_labels_are_refused(index, rows, problem):
    with pytest.raises(SoftLabelError, match=problem):
        _labels(index, rows)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (_message(index_type=torch.int64), "index is int32"),
        (_message(labels_type=torch.float32), "labels float16"),
        (_message(index=[[1, 4]]), "shape"),
        (_message(labels=[0.5, 0.5]), "shape"),
        (_message(index=[1]), "shape"),
        (_message(index=[], labels=[[]]), "shape"),
        ({"index": torch.empty(0, dtype=torch.int32), "labels": torch.empty(0, 0).half()}, "shape"),
        (_message(labels=[[0.5, 0.5], [0.0, 1.0]]), "of 2 classes, not 3"),
        (_message(index=[1, PUBLIC]), "index 12 is out of range"),
        (_message(index=[-1, 4]), "index -1 is out of range"),
        (_message(index=[4, 1]), "strictly increasing"),
        (_message(index=[4, 4]), "strictly increasing"),
        (_message(labels=[[0.5, 0.5, nan], [0.0, 0.0, 1.0]]), "NaN"),
        (_message(labels=[[1.0, 0.5, -0.5], [0.0, 0.0, 1.0]]), "negative value, -0.5"),
        (_message(labels=[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]), "sample 4 sum to 0, not to 1"),
        (_message(labels=[[0.5, 0.5, 0.02], [0.0, 0.0, 1.0]]), "sample 1 sum to 1.02, not to 1"),
        (_message(labels=[[0.5, 0.48, 0.0], [0.0, 0.0, 1.0]]), "sample 1 sum to 0.98, not to 1"),
        (_message(labels=[[inf, 0.0, 0.0], [0.0, 0.0, 1.0]]), "sample 1 sum to inf, not to 1"),
        ({"index": torch.tensor([1], dtype=torch.int32)}, "not \\['index'\\]"),
        (_message() | {"more": torch.zeros(1)}, "not \\['index', 'labels', 'more'\\]"),
        ({}, "not \\[\\]"),
    ],
)
def test_what_a_peer_must_not_send_is_refused_by_name(message, problem):
    with pytest.raises(SoftLabelError, match=problem):
        unpack(message, PUBLIC, CLASSES)


@pytest.mark.parametrize("rest", [0.008, -0.008])
def test_a_row_within_one_hundredth_of_one_is_accepted(rest):
    labels = unpack(_message(index=[PUBLIC - 1], labels=[[0.5, 0.5 + rest, 0]]), PUBLIC, CLASSES)
    assert labels.index.tolist() == [11]


def test_an_empty_message_is_fine():
    empty = SoftLabels.of(torch.empty(0, dtype=torch.int64), torch.empty(0, CLASSES))
    received = unpack(empty.pack(), PUBLIC, CLASSES)
    assert (received.index.shape, received.labels.shape) == ((0,), (0, CLASSES))
    assert received.num_bytes == 0


@given(soft_labels())
def test_a_packed_message_comes_back(labels):
    received = unpack(labels.pack(), PUBLIC, CLASSES)
    assert received.index.equal(labels.index)
    assert received.labels.equal(labels.labels)


def test_bytes_by_hand():
    """Two samples of three classes: 2 * 4 for the index and 2 * 3 * 2 for the labels."""
    assert unpack(_message(), PUBLIC, CLASSES).num_bytes == 20


def test_average_by_hand():
    """Three nodes, overlapping subsets; samples 0 and 4 were sent by nobody.

    1: a only. 2: a, b and c, ((1 + 0 + 1/2) / 3, (0 + 1 + 0) / 3, (0 + 0 + 1/2) / 3).
    3: b and c, ((1/4 + 3/4) / 2, (1/2 + 1/4) / 2, (1/4 + 0) / 2).
    """
    a = _labels([1, 2], [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    b = _labels([2, 3], [[0.0, 1.0, 0.0], [0.25, 0.5, 0.25]])
    c = _labels([2, 3], [[0.5, 0.0, 0.5], [0.75, 0.25, 0.0]])
    mean = average([a, b, c], num_public=5, num_classes=3)
    assert mean.index.tolist() == [1, 2, 3]
    assert mean.labels[0].tolist() == [0.5, 0.25, 0.25]
    assert mean.labels[1].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6], rel=2**-11)
    assert mean.labels[2].tolist() == [0.5, 0.375, 0.125]


def test_a_node_that_sends_nothing_does_not_count():
    """Not (1/2, 1/2, 0) / 2."""
    sent = _labels([4], [[0.5, 0.5, 0.0]])
    nothing = SoftLabels.of(torch.empty(0, dtype=torch.int32), torch.empty(0, 3))
    mean = average([nothing, sent, nothing], PUBLIC, CLASSES)
    assert (mean.index.tolist(), mean.labels.tolist()) == ([4], [[0.5, 0.5, 0.0]])


def test_the_average_of_nothing_is_empty():
    nothing = SoftLabels.of(torch.empty(0, dtype=torch.int32), torch.empty(0, 3))
    for received in ([], [nothing], iter([nothing, nothing])):
        mean = average(received, PUBLIC, CLASSES)
        assert (mean.index.shape, mean.labels.shape) == ((0,), (0, CLASSES))


def test_the_average_takes_out_a_senders_rounding():
    """A row of 0.5 and 0.508 sums to 1.008 at a peer; the average of it alone sums to 1."""
    row = unpack(_message(index=[0], labels=[[0.5, 0.508, 0.0]]), PUBLIC, CLASSES)
    mean = average([row], PUBLIC, CLASSES)
    assert mean.labels[0].tolist() == pytest.approx([0.5 / 1.008, 0.508 / 1.008, 0.0], rel=2e-3)
    assert float(mean.labels.double().sum()) == pytest.approx(1.0, abs=2**-11)


@pytest.mark.parametrize(
    ("public", "classes", "problem"), [(4, 3, "index 4 is out of range"), (5, 2, "of 3 classes")]
)
def test_labels_of_another_public_set_are_not_averaged(public, classes, problem):
    with pytest.raises(SoftLabelError, match=problem):
        average([_labels([4], [[0.5, 0.5, 0.0]])], public, classes)


@given(st.lists(soft_labels(), max_size=5))
def test_an_average_covers_what_was_sent_and_has_no_all_zero_label(received):
    """Exactly the union, valid as a message, each label the mean of its senders'."""
    mean = average(received, PUBLIC, CLASSES)
    sent = {}
    for labels in received:
        for i, row in zip(labels.index.tolist(), labels.labels.tolist(), strict=True):
            sent.setdefault(i, []).append(row)
    assert mean.index.tolist() == sorted(sent)
    for i, row in zip(mean.index.tolist(), mean.labels.tolist(), strict=True):
        assert sum(row) == pytest.approx(1.0, abs=2**-10)
        plain = [sum(column) / len(sent[i]) for column in zip(*sent[i], strict=True)]
        assert row == pytest.approx(plain, abs=2**-10)
    assert unpack(mean.pack(), PUBLIC, CLASSES).num_bytes == 10 * len(sent)


@given(st.lists(soft_labels(), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_senders_makes_no_difference(received, random):
    shuffled = random.sample(received, len(received))
    one, other = (average(senders, PUBLIC, CLASSES) for senders in (received, shuffled))
    assert one.index.equal(other.index)
    assert one.labels.equal(other.labels)
