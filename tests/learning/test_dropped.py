"""Modalities that are missing at test time: which, the same for all, and accuracies by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from torch import Tensor
from torch.nn.functional import one_hot

from flwr_dmml.data import Partition, Samples
from flwr_dmml.learning.dropped import RATES, accuracy_by_rate, area, drop_at_test

A, B, C = "audio", "image", "radar"


def make(n: int, *names: str) -> Samples:
    return Samples({m: torch.arange(n * 1.0)[:, None] for m in names}, torch.zeros(n).long())


def table(samples: Samples) -> Tensor:
    assert samples.present is not None
    return torch.stack([*samples.present.values()])


def test_what_is_missing_is_missing_at_every_higher_rate_and_never_all() -> None:
    test, before = make(3000, A, B, C), torch.ones(3, 3000, dtype=torch.bool)
    for rate in (*RATES, 1.0):
        now = table(drop_at_test(test, rate, seed=1))
        assert now.any(dim=0).all() and not (now & ~before).any()
        expected = 1 - rate + rate**3 / 3
        assert (now.double().mean(dim=1) - expected).abs().max() < 4 * 0.5 / 3000**0.5
        before = now
    assert table(drop_at_test(test, 0.0, seed=1)).all()
    assert (table(drop_at_test(test, 1.0, seed=1)).sum(dim=0) == 1).all()
    assert table(drop_at_test(make(30, A), 1.0, seed=1)).all(), "one is never missing"


def test_masks_depend_on_the_seed_the_modality_and_the_place_of_a_sample() -> None:
    """A device that has some of the samples lacks the same of them."""
    test = make(400, A, B)
    whole = table(drop_at_test(test, 0.4, seed=1))
    assert not torch.equal(whole, table(drop_at_test(test, 0.4, seed=2)))
    assert not torch.equal(whole[0], whole[1])
    some = torch.tensor([3, 50, 51, 399])
    assert torch.equal(table(drop_at_test(test.subset(some), 0.4, seed=1)), whole[:, some])
    other = table(drop_at_test(make(400, B, A, C), 0.4, seed=1))
    assert not (other[:2].flip(0) & ~whole).any(), "a third one that is left saves no other"


def test_what_a_sample_lacks_already_stays_missing() -> None:
    has = {A: torch.tensor([True, False, True]), B: torch.tensor([True, True, False])}
    test = replace(make(3, A, B), present=has)
    assert torch.equal(table(drop_at_test(test, 0.0, seed=0)), table(test))
    left = table(drop_at_test(test, 1.0, seed=0))
    assert left[:, 1].tolist() == [False, True] and left[:, 2].tolist() == [True, False]


class FromAudio:
    """Is right where it has audio."""

    def __call__(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        n = len(next(iter(inputs.values())))
        return [one_hot(torch.full((n,), int(A not in own)), 2).float() for own in subsets]


def test_accuracies_by_hand() -> None:
    """Right where audio is left: the share of the samples whose mask says so."""
    test = make(500, A, B)
    part = Partition(0, (A, B), test, test, {}, 2, test)
    found = accuracy_by_rate(FromAudio(), part, seed=4)
    assert list(found) == list(RATES) and found[0.0] == 1
    for rate, share in found.items():
        assert share == float(table(drop_at_test(test, rate, seed=4))[0].double().mean())
    solo = Partition(0, (A,), make(5, A), make(5, A), {}, 2, make(5, A))
    assert set(accuracy_by_rate(FromAudio(), solo, seed=4).values()) == {1.0}


def test_the_area_by_hand() -> None:
    """.1 (.9 + .8) + .1 (.8 + .4) over .4; where rates are apart, each step by its width."""
    assert area({0.0: 0.9, 0.2: 0.8, 0.4: 0.4}) == pytest.approx(0.725)
    assert area({0.0: 1.0, 0.1: 0.5, 0.4: 0.5}) == pytest.approx(0.5625)
    for wrong in ({0.0: 1.0}, {0.2: 1.0, 0.0: 1.0}):
        with pytest.raises(ValueError, match="two or more that ascend"):
            area(wrong)


@pytest.mark.parametrize("fusion", ["trained", "entropy"])
def test_a_device_predicts_from_what_is_left(fusion: str) -> None:
    config: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
    learner = make_learner({**config, "method": "dpsgd", "test-fusion": fusion})
    metrics = learner.evaluate()
    found = accuracy_by_rate(learner.predicted, learner.partition, 0, (0.0, 0.6))
    assert found[0.0] == metrics["test.accuracy"]
    data = drop_at_test(learner.partition.test, 0.6, 0)
    right = 0
    for k in range(len(data)):
        one = {m: x[k : k + 1] for m, x in data.inputs.items() if data.present[m][k]}
        (logits,) = learner.predicted(one, [tuple(one)])
        right += int(logits.argmax()) == int(data.labels[k])
    assert found[0.6] == pytest.approx(right / len(data), abs=2 / len(data))
