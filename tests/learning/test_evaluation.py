"""What devices measure: predictions from what samples have, and averages over the classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import e, isfinite, isnan
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FAST, make_learner, run_peers
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)
from torch import Tensor
from torch.nn.functional import one_hot

from flwr_dmml.clients import find_methods, hosting
from flwr_dmml.data import Modality, Partition, Samples, Source, load_source
from flwr_dmml.data import partition as partition_module
from flwr_dmml.data import public as public_module
from flwr_dmml.data.missing import draw_present
from flwr_dmml.data.options import LoadOptions
from flwr_dmml.learning.batch import BATCH
from flwr_dmml.learning.evaluation import (
    NOTHING,
    accuracy,
    accuracy_metrics,
    confusion,
    macro_f1,
    predictions,
    recall,
)
from flwr_dmml.learning.label_shares import LabelShares
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import find_parts, parse_settings

A, B, C = "audio", "image", "radar"
Subset = tuple[str, ...]
EQUAL = LabelShares(torch.tensor([5, 5]), "off")


# Averages over the classes


def test_averages_over_classes_by_hand() -> None:
    """Class 0: 3 of 4 found, 1 taken for 1. Class 1: both found. Class 2: taken for 3, a stranger.

    Class 4 appears nowhere. F1: 2*3/(4+3), 2*2/(2+3), 0, 0; recall: 3/4, 1, 0.
    """
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    found = torch.tensor([0, 0, 0, 1, 1, 1, 3])
    table = confusion(found, labels, 5)
    assert table.tolist() == [
        [3, 1, 0, 0, 0],
        [0, 2, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert macro_f1(table) == pytest.approx((6 / 7 + 4 / 5 + 0 + 0) / 4)
    shares = recall(table)
    assert shares[:3].tolist() == [0.75, 1.0, 0.0] and shares[3:].isnan().all()
    assert float(shares.nanmean()) == pytest.approx(1.75 / 3)
    assert accuracy(found, labels) == 5 / 7


def test_one_class_that_is_always_guessed() -> None:
    """9 of 10 are right, and yet: F1 is 18/19 of that class and 0 of the other, recall 1 and 0."""
    labels = torch.tensor([0] * 9 + [1])
    table = confusion(torch.zeros_like(labels), labels, 2)
    assert macro_f1(table) == pytest.approx(9 / 19)
    assert float(recall(table).nanmean()) == 0.5


def test_nothing_to_measure_is_nan() -> None:
    table = confusion(torch.tensor([NOTHING]), torch.tensor([1]), 3)
    assert int(table.sum()) == 0 and isnan(macro_f1(table))
    assert recall(table).isnan().all() and isnan(accuracy(torch.tensor([NOTHING]), torch.ones(1)))


@pytest.mark.filterwarnings("ignore:A single label")
@given(
    st.integers(1, 6).flatmap(
        lambda classes: st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
            min_size=1,
            max_size=40,
        )
    )
)
def test_the_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Six classes, of which any may be absent from the truth, the predictions or both."""
    truth, taken = np.array(pairs).T
    labels, found = torch.from_numpy(truth), torch.from_numpy(taken)
    table = confusion(found, labels, 6)
    assert table.tolist() == confusion_matrix(truth, taken, labels=range(6)).tolist()
    there = np.union1d(truth, taken)
    expected = f1_score(truth, taken, average="macro", labels=there, zero_division=0)
    assert macro_f1(table) == pytest.approx(expected)
    own = np.unique(truth)
    by_class = recall_score(truth, taken, average=None, labels=own, zero_division=0)
    assert recall(table)[own].tolist() == pytest.approx(by_class.tolist())
    assert float(recall(table).nanmean()) == pytest.approx(by_class.mean())
    if len(own) == len(there):  # it warns of the others, but leaves them out as well
        balanced = balanced_accuracy_score(truth, taken)
        assert float(recall(table).nanmean()) == pytest.approx(balanced)


# Samples that lack modalities, with a stub


class Stub:
    """Says 10 k + the number of modalities it sees, for the row with number k."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[Subset], int]] = []

    def __call__(self, inputs: Mapping[str, Tensor], subsets: Sequence[Subset]) -> list[Tensor]:
        numbers = next(iter(inputs.values()))[:, 0].long()
        self.asked.append((list(inputs), list(subsets), len(numbers)))
        assert all(m in inputs for subset in subsets for m in subset)
        return [one_hot(10 * numbers + len(subset)) for subset in subsets]


def numbered(names: Sequence[str], n: int, present: Mapping[str, Any] | None = None) -> Samples:
    rows = torch.arange(float(n))[:, None]
    has = present and {m: torch.as_tensor(present[m], dtype=torch.bool) for m in names}
    return Samples(dict.fromkeys(names, rows), torch.zeros(n, dtype=torch.int64), present=has)


HAS = {A: [1, 0, 1, 0], B: [1, 1, 0, 0], C: [1, 1, 0, 1]}
"""Rows with all, image and radar, audio, radar."""


def test_rows_are_predicted_from_what_they_have() -> None:
    stub, subsets = Stub(), [(A, B, C), (A,), (B, C), (A, B)]
    found = predictions(stub, numbered((A, B, C), 4, HAS), subsets)
    assert {subset: found[subset].tolist() for subset in subsets} == {
        (A, B, C): [3, 12, 21, 31],
        (A,): [1, NOTHING, 21, NOTHING],
        (B, C): [2, 12, NOTHING, 31],
        (A, B): [2, 11, 21, NOTHING],
    }
    asked = {tuple(names): set(subsets) for names, subsets, _ in stub.asked}
    assert asked == {  # nothing that is not there, nothing twice
        (A, B, C): {(A, B, C), (A,), (B, C), (A, B)},
        (A,): {(A,)},
        (B, C): {(B, C), (B,)},
        (C,): {(C,)},
    }
    assert all(len(subsets) == len(set(subsets)) for _, subsets, _ in stub.asked)


def test_complete_rows_are_predicted_in_order_and_in_parts() -> None:
    stub, n = Stub(), BATCH + 7
    found = predictions(stub, numbered((A, B), n), [(A, B), (B,)])
    assert stub.asked == [([A, B], [(A, B), (B,)], BATCH), ([A, B], [(A, B), (B,)], 7)]
    assert found[A, B].tolist() == [10 * k + 2 for k in range(n)]
    marked = numbered((A, B), n, {A: [1] * n, B: [1] * n})
    same = predictions(Stub(), marked, [(A, B), (B,)])
    assert all(torch.equal(same[subset], found[subset]) for subset in found)


class Right(Stub):
    """Is right (class 0) where the table of a subset has a 1 at the row, else wrong (1)."""

    def __init__(self, right: Mapping[Subset, list[int]]) -> None:
        super().__init__()
        self.right = right

    def __call__(self, inputs: Mapping[str, Tensor], subsets: Sequence[Subset]) -> list[Tensor]:
        rows = next(iter(inputs.values()))[:, 0].long()
        return [one_hot(1 - torch.tensor(self.right[subset])[rows], 2) for subset in subsets]


ONLY = {
    (A, B, C): [1, 0, 0, 0],
    (B, C): [1, 1, 0, 0],
    (A, C): [0, 0, 0, 0],
    (A, B): [0, 0, 0, 0],
    (A,): [0, 0, 1, 0],
    (B,): [0, 0, 0, 0],
    (C,): [0, 1, 0, 1],
}


def measure(names: Subset, has: Mapping[str, Any] | None, gone: Mapping[str, Any] | None = None,
            stub: Stub | None = None) -> dict[str, float]:  # fmt: skip
    test = numbered(names, 4, has)
    nothing = test.subset(torch.arange(0))
    drawn = gone and {m: torch.tensor(gone[m], dtype=torch.bool) for m in names}
    part = Partition(0, names, nothing, nothing, {}, 2, test, drawn)
    return accuracy_metrics(stub or Right(ONLY), part, test, nothing, EQUAL)


def test_shares_are_of_the_rows_that_have_something_by_hand() -> None:
    """By row all, B and C, A, C: what they have is right in all four, one of them from audio.

    From A: rows 0 and 2; from B: 0 and 1; from C: 0, 1 and 3. Without A: rows 0 (B, C: right), 1
    (right), 3 (C: right). Without B: 0 (A, C: wrong), 1 (C: right), 2 (A: right), 3 (right).
    Without C: 0 (wrong), 1 (B: wrong), 2 (A: right). Logits are 1 and 0.
    """
    metrics = measure((A, B, C), HAS)
    assert metrics == {
        "test.ece_uncalibrated": pytest.approx(1 - e / (e + 1)),
        "test.accuracy": 1.0,
        "test.accuracy_own_shares": 1.0,
        "test.accuracy.audio": 1 / 2,
        "test.accuracy.image": 0.0,
        "test.accuracy.radar": 2 / 3,
        "test.without.audio": 3 / 3,
        "test.without.image": 3 / 4,
        "test.without.radar": 1 / 3,
        "test.macro_f1": 1.0,
        "test.uar": 1.0,
    }


def test_what_is_drawn_to_be_missing_comes_on_top_by_hand() -> None:
    """Row 0 loses image (A, C: wrong); the others stay, whatever they lack already."""
    gone = {m: list(row) for m, row in HAS.items()}
    gone[B][0] = 0
    metrics = measure((A, B, C), HAS, gone)
    assert metrics["test.missing"] == 3 / 4 and metrics["test.accuracy"] == 1.0
    gone[B][0], gone[A][0] = 1, 0  # audio instead (B, C: right)
    assert measure((A, B, C), HAS, gone)["test.missing"] == 1.0


def test_a_modality_that_no_row_has_has_no_share() -> None:
    metrics = measure((A, B), {A: [1, 1, 1, 1], B: [0, 0, 0, 0]})
    assert set(metrics) == {
        "test.accuracy", "test.accuracy_own_shares", "test.accuracy.audio", "test.without.image",
        "test.macro_f1", "test.uar", "test.ece_uncalibrated",
    }  # fmt: skip
    assert metrics["test.accuracy"] == metrics["test.accuracy.audio"] == 1 / 4


def test_without_test_samples_nothing_is_said() -> None:
    part = Partition(0, (A,), *[numbered((A,), 0)] * 2, {}, 2, numbered((A,), 0))
    assert accuracy_metrics(Stub(), part, part.test, part.validation, EQUAL) == {}


# Real models on data that lack modalities from the start

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "num-server-rounds": 5,
    "modality-pattern": "audio+image,audio+image,audio",
    "validation-fraction": 0.25,
}


@pytest.fixture
def gappy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Source]]:
    """Make ``digits`` a data set of which three in five samples lack audio or image.

    Call it with what stands in the place of their inputs.
    """
    whole = load_source("digits", LoadOptions())

    def make(filling: float) -> Source:
        def lacking(samples: Samples, seed: int) -> Samples:
            present = draw_present(samples, 0.6, (A, B), np.random.default_rng(seed))
            inputs = {m: x.clone() for m, x in samples.inputs.items()}
            for m, has in present.items():
                inputs[m][~has] = filling
            return replace(samples, inputs=inputs, present=present)

        source = replace(whole, train=lacking(whole.train, 0), test=lacking(whole.test, 1))
        hosting.forget()
        for module in (partition_module, public_module):
            monkeypatch.setattr(module, "load_source", lambda name, given: source)
        return source

    yield make
    hosting.forget()


def test_a_device_is_measured_sample_by_sample(gappy: Callable[[float], Source]) -> None:
    gappy(0.0)
    learner = make_learner({**CONFIG, "method": "dpsgd", "missing.test-share": 0.2}, 1)
    learner.run_round(Plan(1, 20), {})
    metrics, test, drawn = learner.evaluate(), learner.test_data, learner.partition.test_present
    assert test.present is not None and drawn is not None
    right: dict[str, list[bool]] = {name: [] for name in metrics if name.startswith("test.")}
    found: list[int] = []
    with torch.no_grad():
        for i in range(len(test)):
            inputs = {m: x[i : i + 1] for m, x in test.inputs.items() if bool(test.present[m][i])}
            answers = {
                "test.accuracy": inputs,
                "test.missing": {m: x for m, x in inputs.items() if bool(drawn[m][i])},
                **{f"test.accuracy.{m}": {m: x} for m, x in inputs.items()},
                **{
                    f"test.without.{m}": {o: x for o, x in inputs.items() if o != m} for m in (A, B)
                },
            }
            for name, given_inputs in answers.items():
                if given_inputs:
                    answer = int(learner.model(given_inputs).argmax())
                    right[name].append(answer == int(test.labels[i]))
                    found += [answer] if name == "test.accuracy" else []
    for name, answers_right in right.items():
        if answers_right:
            assert metrics[name] == sum(answers_right) / len(answers_right), name
    assert len(right["test.accuracy"]) == len(right["test.missing"]) == len(test)
    assert 0 < len(right["test.accuracy.audio"]) < len(test)
    there = np.union1d(test.labels, found)
    expected = f1_score(test.labels, found, average="macro", labels=there, zero_division=0)
    assert metrics["test.macro_f1"] == pytest.approx(expected)
    assert metrics["test.uar"] == pytest.approx(balanced_accuracy_score(test.labels, found))


def every_number(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [x for part in inside for x in every_number(part)]
    return [value] if isinstance(value, float) else []


OPTIONS: dict[str, dict[str, Any]] = {
    "kd": {"kd.start": 0.0, "kd.exchange-every": 1},
    "idkd": {"idkd.start": 0.0, "idkd.exchange-every": 1},
    "modality-mirror": {"modality-mirror.margin": 0.0},
    "relaysgd": {"topology": "line"},
}


@pytest.mark.parametrize("method", sorted(find_methods()))
def test_every_method_reads_only_what_samples_have(
    gappy: Callable[[float], Source], method: str
) -> None:
    """Bit for bit the same, whatever stands in the place of what they lack."""
    config = {**CONFIG, "method": method, "batch-size": 6, **OPTIONS.get(method, {})}
    options = parse_settings(config, find_parts()).options
    runs: list[list[dict[str, Any]]] = []
    for filling in (0.0, 1e4):
        source = gappy(filling)
        peers = run_peers(config, num_rounds=5, evaluate_every=5, options=options[method])
        runs.append([record.to_json() for record in peers.records])
    assert runs[0] == runs[1]
    assert all(line["failed"] == {} and len(line["nodes"]) == 3 for line in runs[0])
    assert all(isfinite(x) for line in runs[0] for x in every_number(line))
    last = runs[0][-1]
    assert last["macro_f1"] is not None and 0 < last["uar"] <= 1
    alone = [set(node["accuracy_by_modality"]) for node in last["nodes"]]
    assert alone == [{A, B}, {A, B}, {A}]
    heard = int(source.test.present[A].sum())  # type: ignore[index]
    assert sum(peers.exchange.confusion) == 2 * len(source.test) + heard


def test_the_figures_of_a_run(gappy: Callable[[float], Source]) -> None:
    """The mean over devices of what each one measures; null where a round is not evaluated."""
    gappy(0.0)
    peers = run_peers({**CONFIG, "method": "dpsgd"}, num_rounds=2, evaluate_every=2)
    first, last = (record.to_json() for record in peers.records)
    assert first["macro_f1"] is first["uar"] is None
    assert all(node["macro_f1"] is node["uar"] is None for node in first["nodes"])
    for name in ("macro_f1", "uar"):
        assert last[name] == pytest.approx(np.mean([node[name] for node in last["nodes"]]))


def test_held_out_samples_are_measured_as_well() -> None:
    """F1 of class 0: 2*3/(4+3); of class 1, which is only guessed: 0."""
    source = {A: Modality("vector", (1,))}
    test = numbered((A,), 4)
    part = Partition(0, (A,), test, test, source, 2, test)
    metrics = accuracy_metrics(Right({(A,): [1, 1, 0, 1]}), part, test, test, EQUAL)
    assert metrics["test.accuracy"] == metrics["validation.accuracy"] == 3 / 4
    assert metrics["test.uar"] == 3 / 4 and metrics["test.macro_f1"] == pytest.approx(3 / 7)
