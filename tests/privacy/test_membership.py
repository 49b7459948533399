"""Success of attacks, from scores by hand."""

from math import log

import numpy as np
import pytest
import torch

from flwr_dmml.privacy.membership import confidence, exact_interval, success


def test_auc_by_hand():
    """Of 3 x 4 pairs the member is higher in 1 + 3 + 4 and equal in one: 8.5 / 12."""
    found = success(np.array([0.2, 0.7, 0.9]), np.array([0.1, 0.3, 0.7, 0.2]))
    assert (found.members, found.others) == (3, 4)
    # 0.2: above 0.1, equal to 0.2; 0.7: above 0.1, 0.3, 0.2, equal to 0.7; 0.9: above all
    assert found.auc.value == pytest.approx((1.5 + 3.5 + 4) / 12)
    assert 0 <= found.auc.low < found.auc.value < found.auc.high <= 1


def test_the_interval_of_auc_by_hand():
    """DeLong: the variances of each sample's share of pairs, 1.5, 3.5 and 4 of 4, and so on."""
    found = success(np.array([0.2, 0.7, 0.9]), np.array([0.1, 0.3, 0.7, 0.2]))
    of_members = np.var([1.5 / 4, 3.5 / 4, 1.0], ddof=1)
    of_others = np.var([1.0, 2 / 3, 0.5, 2.5 / 3], ddof=1)
    reach = 1.959964 * np.sqrt(of_members / 3 + of_others / 4)
    assert found.auc.low == pytest.approx(found.auc.value - reach)
    assert found.auc.high == min(1.0, found.auc.value + reach)


def test_true_positives_at_a_low_rate():
    """Of 200 others two may be above the threshold: it is the third highest, 197."""
    others = np.arange(200.0)
    found = success(np.array([196.0, 197.0, 197.5, 199.0]), others)
    assert found.true_positives.value == 2 / 4
    few = success(np.array([5.0, 1.0]), np.array([3.0, 2.0]))  # none may be: above the highest
    assert few.true_positives.value == 1 / 2


def test_exact_intervals():
    """Closed cases: none of n is (alpha / 2)^(1 / n) from 1; 5 of 10 from tables."""
    assert exact_interval(0, 10) == (0, pytest.approx(1 - 0.025**0.1))
    assert exact_interval(10, 10) == (pytest.approx(0.025**0.1), 1)
    assert exact_interval(5, 10) == (
        pytest.approx(0.1871, abs=1e-4),
        pytest.approx(0.8129, abs=1e-4),
    )


def test_a_guess_and_a_certainty():
    rng = np.random.default_rng(0)
    guess = success(rng.normal(size=4000), rng.normal(size=4000))
    assert guess.auc.low < 0.5 < guess.auc.high
    assert guess.true_positives.low < 0.01 < guess.true_positives.high + 0.01
    sure = success(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert sure.auc.value == sure.true_positives.value == 1


def test_confidence_is_the_log_odds_of_the_true_class():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])) + 3.0
    found = confidence(logits, torch.tensor([0, 1]))
    assert found == pytest.approx([log(0.7 / 0.3), log(0.25 / 0.75)], rel=1e-5)
    assert np.isfinite(confidence(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))).all()
