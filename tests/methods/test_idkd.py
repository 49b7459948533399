"""KD and IDKD on one device: what it labels, and what it makes of its neighbours' labels.

Models give their input back (helpers_idkd): data are logits.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from helpers_idkd import LABEL_KEYS, echo, logs, message, sent, taught
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.clients import Idkd, Kd, QgDsgdmN
from flwr_dmml.data import PublicSet
from flwr_dmml.methods.detector import calibrate, msp
from flwr_dmml.methods.labelling import sent as figures_of_sent
from flwr_dmml.methods.labelling import taught as figures_of_taught
from flwr_dmml.methods.soft_labels import LABELS, SoftLabels
from flwr_dmml.payload.plan import Inbox, Payload, Plan
from flwr_dmml.transport.messages import unpack

LABEL = Plan(1, 1, phase="label")


def two(*values: float) -> list[list[float]]:
    """Return logits (z, 0) of two classes: the larger |z|, the surer."""
    return [[z, 0.0] for z in values]


def after(inbox: Inbox, server_round: int = 2) -> Plan:
    """Return the plan of a round that begins with these payloads."""
    return Plan(server_round, 1, neighbours=tuple(inbox), phase="fine-tune")


# What is labelled


def test_kd_labels_every_public_sample_with_its_softmax():
    """And in labelling rounds only."""
    rows = [[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.25, 0.5, 0.25]]
    learner = echo(Kd, {"a": logs(*rows)})
    for phase in ("", "train", "fine-tune"):
        outcome = learner.run_round(Plan(1, 1, phase=phase), {})
        assert sent(outcome.payload) == {} and "labels.sent" not in outcome.metrics
    learner.reset()
    outcome = learner.run_round(LABEL, {})
    found = sent(outcome.payload)
    assert list(found) == [0, 1, 2]
    assert list(found.values()) == [pytest.approx(row, rel=2**-10) for row in rows]
    assert outcome.metrics["labels.sent"] == 1.0


def test_labels_are_given_before_training():
    """The scale of the echo is 1 then: softmax(1, 0); own data that it gets right make it grow."""
    learner = echo(Kd, {"a": two(1.0)}, own={"a": two(3.0, -3.0)}, labels=[0, 1])
    found = sent(learner.run_round(Plan(1, 5, phase="label"), {}).payload)
    p = 1 / (1 + exp(-1))
    assert found == {0: pytest.approx([p, 1 - p], rel=2**-10)}
    assert float(learner.model.scale.detach()) > 1.01


ROC: dict[str, tuple[list[float], list[float], list[int]]] = {
    # J at 4: 1/4; 3.5: 0; 3: 1/4; 2.5: 0; 2: 1/4; 1: 1 - 1/2; 0.5: 1/4; 0.2: 0. So t = 1.
    "in between": ([4, 3, 2, 1], [0.5, 3.5, 0.2, 2.5], [1, 3]),
    # J at 4: 1/4; 3.5: 0; 3: 1/4; 1: 1 - 1/2; 0.5: 1/4. So t = 1, and the public 1 is in.
    "on the line": ([4, 3, 1, 1], [0.5, 3.5, 0.2, 1], [1, 3]),
    # J at 4: 1/4; 3.5: 0; 3: 1/4; 2: 3/4 - 1/4; 1: 1 - 1/2. The higher of both: t = 2.
    "two best": ([4, 3, 2, 1], [0.5, 3.5, 0.2, 1], [1]),
    # J is 1 at 5: no public sample is as sure as any held-out one.
    "apart": ([7, 6, 5, 8], [1, 2, 3, 4], []),
    # J is 0 at infinity and at 1, and below 0 in between.
    "the wrong way": ([1, 2, 3, 4], [5, 6, 7, 8], []),
    # J is 0 at infinity and at 2.
    "all the same": ([2, 2, 2, 2], [2, 2, 2, 2], []),
}
"""Held-out and public logits, and who is let in."""


@pytest.mark.parametrize("case", ROC)
@pytest.mark.parametrize("score", ["msp", "energy"])
def test_the_threshold_by_hand(case: str, score: str):
    """Both scores of (z, 0) grow with z >= 0. As many public samples as held-out: all are drawn."""
    held_out, public, expected = ROC[case]
    learner = echo(
        Idkd, {"a": two(*public)}, held_out={"a": two(*held_out)}, options={"score": score}
    )
    outcome = learner.run_round(LABEL, {})
    assert list(sent(outcome.payload)) == expected
    assert outcome.metrics["labels.sent"] == len(expected) / 4


@pytest.mark.parametrize(("score", "expected"), [("msp", []), ("energy", [0])])
def test_the_score_is_the_one_of_the_option(score: str, expected: list[int]):
    """(z, z) has an MSP of 1/2, the lowest there is, and the energy score z + log 2.

    MSP: both other public samples are surer than all held-out ones, nobody is in. Energy: J at 6:
    1/3; 5.5: 0; 5: 1/3; 4: 1 - 1/3, so all from 4 + log 2 on are in.
    """
    public = {"a": [[5.5, 5.5], [0.0, -3.0], [0.0, -4.0]]}
    held_out = {"a": [[6.0, 6.0], [5.0, 5.0], [4.0, 4.0]]}
    learner = echo(Idkd, public, held_out=held_out, options={"score": score})
    assert list(sent(learner.run_round(LABEL, {}).payload)) == expected


def test_held_out_samples_calibrate_from_what_they_have():
    """As "in between", with a fifth held-out sample that has the other modality, b, alone."""
    held_out, public, expected = ROC["in between"]
    data = {"a": two(*held_out, 9.0), "b": two(*[0.0] * 5)}
    own = {"a": two(0.0, 0.0), "b": two(0.0, 0.0)}
    learner = echo(Idkd, {"a": two(*public)}, own=own, held_out=data)
    has = {m: torch.arange(5) != (4 if m == "a" else 0) for m in data}
    learner.validation_data = replace(learner.validation_data, present=has)
    assert list(sent(learner.run_round(LABEL, {}).payload)) == expected
    has["a"][:] = False
    assert learner.run_round(LABEL, {}).metrics["labels.sent"] == 0.0


def test_as_many_random_public_samples_as_held_out_ones_calibrate_anew_in_every_round():
    values = [0.3 * k for k in range(20)]
    learner = echo(Idkd, {"a": two(*values)}, held_out={"a": two(5.0, 2.0, 1.0)})
    scores, held_out = msp(torch.tensor(two(*values))), msp(torch.tensor(two(5.0, 2.0, 1.0)))
    seen = set()
    for t in range(1, 7):
        learner.reset()
        chosen = list(sent(learner.run_round(Plan(t, 1, phase="label"), {}).payload))
        drawn = torch.randperm(20, generator=learner.rng("calibration"))[:3]
        threshold = calibrate(held_out, scores[drawn]).threshold
        assert chosen == [k for k in range(20) if float(scores[k]) >= threshold]
        seen.add(tuple(chosen))
    assert len(seen) > 1


def test_a_device_whose_detector_lets_nobody_in_trains_as_without_labels():
    """Nothing is sent, in no round; bit for bit it is QG-DSGDm-N."""
    data = {"own": {"a": two(1.0, -2.0, 0.5)}, "held_out": {"a": two(0.1, 0.2)}}
    learner, plain = (echo(kind, {"a": two(5.0, 6.0, 7.0)}, **data) for kind in (Idkd, QgDsgdmN))
    for t, phase in enumerate(("train", "label", "fine-tune", "label", "fine-tune"), start=1):
        outcome = learner.run_round(Plan(t, 3, phase=phase), {})
        expected = plain.run_round(Plan(t, 3), {})
        assert not LABEL_KEYS & set(outcome.payload)
        assert all(torch.equal(outcome.payload[k], v) for k, v in expected.payload.items())
        assert outcome.metrics["train.loss"] == expected.metrics["train.loss"]
        assert outcome.metrics.get("labels.sent") == (0.0 if phase == "label" else None)
        assert not any(batch.others for batch in learner.batches(3))
    assert outcome.metrics["labels.used"] == 0.0 and taught(learner) == {}


def test_a_parked_device_labels_nothing_but_takes_what_comes():
    learner = echo(Kd, {"a": logs([0.5, 0.5])})
    outcome = learner.run_round(Plan(1, 1, phase="label", by_modality={"a": 0}), {})
    assert sent(outcome.payload) == {} and "labels.sent" not in outcome.metrics
    inbox = {1: message({0: [0.25, 0.75]})}
    plan = Plan(2, 1, neighbours=(1,), by_modality={"a": 0})
    assert learner.run_round(plan, inbox).metrics["labels.used"] == 1.0
    assert taught(learner) == {0: [0.25, 0.75]}


# The average


OWN_LABELS = logs([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], *[[1 / 3, 1 / 3, 1 / 3]] * 3)


def test_the_average_of_own_and_received_labels_by_hand():
    """Own labels for 0 and 1; 1 sends 1 and 2; 2 sends 1, 2 and 3; 3 sends none; nobody sends 4.

    1: ((1/4 + 3/4 + 1/2) / 3, (1/4 + 1/4 + 0) / 3, (1/2 + 0 + 1/2) / 3). 2: (1, 0, 0) and (0, 1,
    0), by 2 and not by 4. 0 and 3 have one sender each.
    """
    learner = echo(Kd, {"a": OWN_LABELS}, chosen=[0, 1])
    payload = learner.run_round(LABEL, {}).payload
    assert list(sent(payload)) == [0, 1] and taught(learner) is None
    inbox = {
        1: message({1: [0.75, 0.25, 0.0], 2: [1.0, 0.0, 0.0]}),
        2: message({1: [0.5, 0.0, 0.5], 2: [0.0, 1.0, 0.0], 3: [0.0, 0.25, 0.75]}),
        3: Payload(),
    }
    outcome = learner.run_round(after(inbox), inbox)
    assert outcome.rejected == [] and outcome.metrics["labels.used"] == 4 / 5
    labels = taught(learner)
    assert labels == {
        0: pytest.approx([0.5, 0.25, 0.25], abs=1e-3),
        1: pytest.approx([1 / 2, 1 / 6, 1 / 3], abs=1e-3),
        2: [0.5, 0.5, 0.0],
        3: [0.0, 0.25, 0.75],
    }
    inbox = {1: Payload(), 3: Payload()}
    outcome = learner.run_round(after(inbox, 3), inbox)
    assert taught(learner) == labels, "labels stay until new ones come"
    assert not any(name.startswith("labels.") for name in outcome.metrics)


def test_own_labels_count_once_and_new_labels_replace_the_old():
    """The own label of round 1 is averaged in round 2 with none, in round 4 that of round 3."""
    learner = echo(Kd, {"a": logs([0.5, 0.5], [0.5, 0.5])}, chosen=[0])
    learner.run_round(LABEL, {})
    learner.run_round(after({}), {})
    assert taught(learner) == {0: [0.5, 0.5]}
    learner.run_round(Plan(3, 1, phase="label"), {})
    inbox = {4: message({1: [0.0, 1.0]})}
    learner.run_round(after(inbox, 4), inbox)
    assert taught(learner) == {0: [0.5, 0.5], 1: [0.0, 1.0]}
    inbox = {4: message({1: [1.0, 0.0]})}  # a neighbour that labels while this device does not
    learner.run_round(after(inbox, 5), inbox)
    assert taught(learner) == {1: [1.0, 0.0]}, "no own label is left over"


def test_labels_in_every_round():
    """A labelling round that begins with the labels of the one before: both are kept apart."""
    learner = echo(Kd, {"a": logs([0.5, 0.5], [0.5, 0.5])})
    first = learner.run_round(LABEL, {})
    inbox = {1: message({0: [1.0, 0.0]})}
    second = learner.run_round(Plan(2, 1, neighbours=(1,), phase="label"), inbox)
    assert taught(learner) == {0: [0.75, 0.25], 1: [0.5, 0.5]}
    assert sent(first.payload) == sent(second.payload) == {0: [0.5, 0.5], 1: [0.5, 0.5]}
    assert {"labels.sent", "labels.used"} <= set(second.metrics)


PUBLIC = 6
ROW = st.lists(st.floats(-20, 20), min_size=3, max_size=3).map(
    lambda row: torch.tensor(row).softmax(dim=0).tolist()
)
LABELLED = st.dictionaries(st.integers(0, PUBLIC - 1), ROW).map(lambda d: dict(sorted(d.items())))
AVERAGING = echo(Kd, {"a": [[0.0, 0.0, 0.0]] * PUBLIC})


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(1, 9), LABELLED, max_size=4), st.none() | LABELLED)
def test_no_combination_of_senders_gives_a_label_that_is_none(
    senders: dict[int, dict[int, list[float]]], own: dict[int, list[float]] | None
):
    """Rows sum to 1, there is one for every sample that was sent, and none for any other."""
    AVERAGING.reset()
    if own is not None:
        rows = torch.tensor(list(own.values())).reshape(len(own), 3)
        index = torch.tensor(list(own), dtype=torch.int64)
        AVERAGING._keep("own", SoftLabels.of(index, rows))
    inbox = {j: message(rows) if rows else Payload() for j, rows in senders.items()}
    AVERAGING.after_mixing(after(inbox), inbox)
    there = {i for rows in [*senders.values(), own or {}] for i in rows}
    labels = taught(AVERAGING)
    assert sorted(labels or {}) == sorted(there)
    assert all(sum(row) == pytest.approx(1.0, abs=2e-3) for row in (labels or {}).values())
    for batch in AVERAGING.batches(4):
        public = getattr(batch, "public", None)
        assert public is None or bool(((public.labels.sum(dim=1) - 1).abs() < 2e-3).all())


# Bad labels


def entries(index: Sequence[int], rows: Sequence[Sequence[float]]) -> Payload:
    """Return labels as a peer may send them: not checked."""
    return {
        LABELS + "index": torch.tensor(index, dtype=torch.int32),
        LABELS + "labels": torch.tensor(rows, dtype=torch.float16),
    }


def without(payload: Mapping[str, torch.Tensor], name: str) -> Payload:
    return {key: value for key, value in payload.items() if key != LABELS + name}


def unreadable(name: str) -> Payload:
    """Return good labels whose array of this name came as noise."""
    record = ArrayRecord()
    for key, value in GOOD.items():
        stream = io.BytesIO()
        np.save(stream, value.numpy())
        broken = key == LABELS + name
        data = bytes(range(200)) if broken else stream.getvalue()
        record[key] = Array(str(value.numpy().dtype), tuple(value.shape), "numpy.ndarray", data)
    return unpack(record)


GOOD = entries([1, 2], [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
BAD: dict[str, tuple[Payload, str]] = {
    "fewer classes": (entries([1], [[0.5, 0.5]]), "of 2 classes, not 3"),
    "more classes": (entries([1], [[0.5, 0.5, 0.0, 0.0]]), "of 4 classes, not 3"),
    "index too high": (entries([5], [[1.0, 0.0, 0.0]]), "index 5 is out of range"),
    "index below 0": (entries([-1], [[1.0, 0.0, 0.0]]), "index -1 is out of range"),
    "NaN": (entries([1], [[float("nan"), 0.5, 0.5]]), "NaN"),
    "infinite": (entries([1], [[float("inf"), 0.0, 0.0]]), "sum to inf"),
    "all zero": (entries([1], [[0.0, 0.0, 0.0]]), "sum to 0"),
    "twice": (entries([1, 1], [[1.0, 0.0, 0.0]] * 2), "strictly increasing"),
    "no labels": (without(GOOD, "labels"), r"not ['index']"),
    "no index": (without(GOOD, "index"), r"not ['labels']"),
    "more arrays": (GOOD | {LABELS + "more": torch.zeros(1)}, "'more'"),
    "unreadable labels": (unreadable("labels"), "not torch.int32 and torch.float32"),
    "unreadable index": (unreadable("index"), "not torch.float32 and torch.float16"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_cost_only_that_contribution(case: str):
    """It is named; the own labels, the other neighbour's and the round go on."""
    payload, words = BAD[case]
    learner = echo(Kd, {"a": OWN_LABELS}, chosen=[0])
    learner.run_round(LABEL, {})
    inbox = {7: payload, 2: message({3: [0.0, 0.25, 0.75]})}
    outcome = learner.run_round(after(inbox), inbox)
    (line,) = outcome.rejected
    assert line.startswith("7: soft labels: ") and words in line
    assert taught(learner) == {0: pytest.approx([0.5, 0.25, 0.25], abs=1e-3), 3: [0, 0.25, 0.75]}
    assert np.isfinite(outcome.metrics["train.loss"])


def test_where_all_labels_are_bad_the_old_ones_stay():
    learner = echo(Kd, {"a": OWN_LABELS})
    inbox = {1: GOOD}
    learner.run_round(after(inbox), inbox)
    inbox = {1: BAD["NaN"][0], 2: BAD["no index"][0]}
    assert len(learner.run_round(after(inbox, 3), inbox).rejected) == 2
    assert taught(learner) == {1: [0.5, 0.5, 0.0], 2: [0.0, 0.0, 1.0]}


# Figures


def public_set(inside: Sequence[bool], truth: Sequence[int] | None = None) -> PublicSet:
    inputs = {"a": torch.zeros(len(inside), 2)}
    return PublicSet(
        inputs, torch.tensor(list(inside)), None if truth is None else torch.tensor(list(truth))
    )


def test_shares_of_what_is_labelled_by_hand():
    """0, 2 and 3 of five: 3/5; 2 of the 3 that are inside; 1 of the 2 others."""
    chosen = torch.tensor([0, 2, 3])
    assert figures_of_sent(chosen, public_set([True] * 5)) == {"labels.sent": 0.6}
    mixed = public_set([True, True, True, False, False])
    assert figures_of_sent(chosen, mixed) == {
        "labels.sent": 0.6,
        "labels.kept": pytest.approx(2 / 3),
        "labels.admitted": 0.5,
    }
    nobody = figures_of_sent(torch.tensor([], dtype=torch.int64), mixed)
    assert set(nobody.values()) == {0.0}


def test_what_labels_even_out_by_hand():
    """Own classes 3 : 1, so 1/4 from even. Labels add (1/2, 1/2), (0, 1) and (1/4, 3/4).

    3.75 : 3.25 of 7 is (3.75 - 3.5) / 7 = 1/28 from even. The labels say 0 (the first of equals), 1
    and 1; the truth is 0, 0 and not known: 1 of 2 is right.
    """
    labels = SoftLabels.of(
        torch.tensor([0, 2, 3]), torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
    )
    own = torch.tensor([0, 0, 1, 0])
    figures = figures_of_taught(labels, public_set([True] * 5), own)
    assert figures == {
        "labels.used": 0.6,
        "labels.skew-before": pytest.approx(1 / 4),
        "labels.skew": pytest.approx(1 / 28),
    }
    known = public_set([True, True, True, False, False], [0, 1, 0, -1, -1])
    assert figures_of_taught(labels, known, own) == figures | {"labels.right": 0.5}
    outside = public_set([False, True, False, False, True], [-1, 1, -1, -1, 0])
    assert figures_of_taught(labels, outside, own) == figures


def test_the_detectors_figures_by_hand():
    """Inside 3, 2, 0.5, outside 1, 2: of 6 pairs 3 are in order and one is even, (3 + 1/2) / 6.

    Held out 4, 2, 2, 2, 1.5: J at 4: 1/5; 3: 0; 2: 4/5 - 3/5; 1.5: 1 - 3/5 = 2/5, the best. So 2
    of the 3 are kept, and the 2 of both others is admitted.
    """
    learner = echo(
        Idkd,
        {"a": two(3.0, 1.0, 2.0, 2.0, 0.5)},
        inside=[True, False, True, False, True],
        held_out={"a": two(4.0, 2.0, 2.0, 2.0, 1.5)},
    )
    metrics = learner.run_round(LABEL, {}).metrics
    assert {k: v for k, v in metrics.items() if k.startswith("labels.")} == {
        "labels.sent": 0.6,
        "labels.auroc": pytest.approx(3.5 / 6),
        "labels.kept": pytest.approx(2 / 3),
        "labels.admitted": 0.5,
    }
