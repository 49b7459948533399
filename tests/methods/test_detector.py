"""Scores of the out-of-distribution detector, and its threshold."""

from math import exp, inf, log, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.methods.detector import SCORES, Calibration, calibrate, energy, msp

# exp of the rows: (1, 1, 2) and (1, 8, 1).
LOGITS = torch.tensor([[0.0, 0.0, log(2)], [0.0, log(8), 0.0]])


def _calibrate(inside, outside):
    return calibrate(torch.tensor(inside), torch.tensor(outside))


def test_msp_by_hand():
    """2 / (1 + 1 + 2) and 8 / (1 + 8 + 1); halved logits of the second: 8^(1/2) / (2 + 8^(1/2))."""
    assert msp(LOGITS).tolist() == pytest.approx([0.5, 0.8])
    assert msp(LOGITS, 2.0).tolist()[1] == pytest.approx(8**0.5 / (2 + 8**0.5))


def test_energy_by_hand():
    """Log 4 and log 10; at T = 2 the second is 2 log(2 + 8^(1/2))."""
    assert energy(LOGITS).tolist() == pytest.approx([log(4), log(10)])
    assert energy(LOGITS, 2.0).tolist()[1] == pytest.approx(2 * log(2 + 8**0.5))


def test_temperature_flattens_msp_and_sharpens_it():
    cold, plain, hot = (msp(LOGITS, t) for t in (0.1, 1.0, 10.0))
    assert (cold > plain).all() and (plain > hot).all()
    assert msp(LOGITS, 1e4).tolist() == pytest.approx([1 / 3, 1 / 3], abs=1e-3)


def test_a_low_temperature_brings_energy_to_the_largest_logit():
    assert energy(LOGITS, 0.01).tolist() == pytest.approx([log(2), log(8)], abs=1e-6)


def test_energy_sees_the_size_of_logits_and_msp_does_not():
    assert energy(LOGITS + 3).tolist() == pytest.approx([log(4) + 3, log(10) + 3])
    assert msp(LOGITS + 3).tolist() == pytest.approx([0.5, 0.8])


def test_the_scores_have_names():
    assert sorted(SCORES) == ["energy", "msp"]
    assert SCORES["msp"] is msp and SCORES["energy"] is energy


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("temperature", [0.0, -1.0, nan])
def test_a_temperature_that_is_not_above_zero_is_refused(name, temperature):
    with pytest.raises(ValueError, match="temperature"):
        SCORES[name](LOGITS, temperature)


def test_scores_stay_finite_for_large_logits():
    large = torch.tensor([[1000.0, -1000.0]])
    assert msp(large).tolist() == [1.0]
    assert energy(large).tolist() == [1000.0]


def test_half_precision_logits_are_scored_in_float32():
    """Logit gaps of 9 and 10: 1 - e^-9 and 1 - e^-10 are both 1 in float16."""
    scores = msp(torch.tensor([[9.0, 0.0], [10.0, 0.0]], dtype=torch.float16))
    assert (1 - scores).tolist() == pytest.approx([exp(-9), exp(-10)], rel=1e-2)


@pytest.mark.parametrize(
    ("inside", "outside", "threshold", "auroc"),
    [
        # TPR - FPR from the top: 0.9: 1/3; 0.8: 2/3; 0.7: 2/3 - 1/3; 0.6: 1 - 1/3; then down.
        # 0.8 and 0.6 share the largest, the higher wins. Pairs won: 3 + 3 + 2 of 9.
        ([0.9, 0.8, 0.6], [0.7, 0.3, 0.1], 0.8, 8 / 9),
        # 0.9: 1/3 - 0; 0.7: 1 - 1/3. The outside 0.7 ties with two inside: they stay together.
        # Pairs: 0.9 wins 3, each 0.7 wins 2 and ties once: (3 + 2.5 + 2.5) / 9.
        ([0.9, 0.7, 0.7], [0.7, 0.3, 0.1], 0.7, 8 / 9),
        # 1.0, saturated: 3/4 - 1/4; 0.5: 1 - 1/4; 0.2: 0. Pairs: 3 * (0.5 + 3) + (0 + 3) of 16.
        ([1.0, 1.0, 1.0, 0.5], [1.0, 0.2, 0.2, 0.2], 0.5, 13.5 / 16),
        # Perfectly apart: J = 1 at the lowest inside score.
        ([0.9, 0.8], [0.3, 0.1], 0.8, 1.0),
        # Unequal sizes: 3.0: 1/2; 2.0: 1/2 - 1/4; 1.0: 1 - 1/4. Pairs: 4 + 3 of 8.
        ([3.0, 1.0], [2.0, 0.0, 0.0, -1.0], 1.0, 7 / 8),
        # J is 1/5 at 0.9 and again at 0.6 (4/5 - 3/5 rounds to above 0.2): the higher wins.
        # Pairs: 0.9 wins 5, each of three 0.6 wins 2 and ties with 3, 0.1 wins none.
        ([0.9, 0.6, 0.6, 0.6, 0.1], [0.6, 0.6, 0.6, 0.2, 0.2], 0.9, (5 + 3 * 3.5) / 25),
    ],
)
def test_threshold_and_auroc_by_hand(inside, outside, threshold, auroc):
    found = _calibrate(inside, outside)
    assert found.threshold == pytest.approx(threshold)
    assert found.auroc == pytest.approx(auroc)


@pytest.mark.parametrize(
    ("inside", "outside", "auroc"),
    [
        ([0.3, 0.1], [0.9, 0.8], 0.0),  # reversed
        ([0.5, 0.5], [0.5, 0.5], 0.5),  # all tied
        ([1.0, 0.2], [1.0, 0.2], 0.5),  # the same scores
    ],
)
def test_where_nothing_separates_nothing_is_let_in(inside, outside, auroc):
    assert _calibrate(inside, outside) == Calibration(inf, auroc)
    scores = torch.tensor(inside + outside)
    assert not (scores >= inf).any()


def test_the_threshold_itself_counts_as_inside_in_float32():
    """0.8 is not a float64 of the same value: the threshold must still let its own sample in."""
    inside, outside = torch.tensor([0.9, 0.8]), torch.tensor([0.3, 0.1])
    threshold = calibrate(inside, outside).threshold
    assert (inside >= threshold).all()
    scores = torch.cat([inside, outside])
    assert (scores.double() >= threshold).tolist() == [True, True, False, False]


def test_scores_that_carry_a_gradient_can_be_calibrated():
    scores = msp(LOGITS.clone().requires_grad_())
    assert calibrate(scores[1:], scores[:1]) == Calibration(scores[1].item(), 1.0)


@pytest.mark.parametrize("side", ["inside", "outside"])
@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([], "no {} scores"),
        ([0.5, nan], "{} scores are not all finite"),
        ([inf, 0.5], "{} scores are not all finite"),
        ([[0.5], [0.4]], r"{} scores have shape \[2, 1\]"),
    ],
)
def test_scores_that_cannot_be_calibrated_on_are_named(side, scores, problem):
    sides = {"inside": torch.tensor([0.5]), "outside": torch.tensor([0.4])}
    sides[side] = torch.tensor(scores)
    with pytest.raises(ValueError, match=problem.format(side)):
        calibrate(**sides)


# Few values, so that scores tie.
SIDE = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(SIDE, SIDE)
def test_no_threshold_is_better_and_auroc_is_the_share_of_pairs(inside, outside):
    """Against a search over every threshold and every pair."""
    found = _calibrate(inside, outside)

    def hits(threshold):  # J times both sizes: whole numbers, which compare exactly
        kept = sum(s >= threshold for s in inside)
        return kept * len(outside) - sum(s >= threshold for s in outside) * len(inside)

    candidates = [inf, *sorted({*inside, *outside}, reverse=True)]
    assert found.threshold == max(candidates, key=hits)  # max takes the first, the highest
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))
