"""Epsilon by both accountants, the noise for an epsilon, and a device that is accounted for."""

import sys
from math import erf, exp, inf, log, pi, sqrt
from typing import Any

import numpy as np
import pytest
from helpers import FAST, make_learner

from flwr_dmml.base.libraries import LibraryError
from flwr_dmml.learning.spending import EPSILON, SPENT
from flwr_dmml.payload.plan import Plan
from flwr_dmml.privacy.accountant import Accountant, Ledger, epsilon_of, sigma_for, steps_within
from flwr_dmml.transport.messages import pack, unpack

BOTH: list[Accountant] = ["rdp", "pld"]
DP: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 3,
    "privacy.dp": "sample",
    "privacy.sigma": 1.0,
    "privacy.accountant": "pld",
}


def normal(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2


def exact_delta(sigma: float, steps: int, epsilon: float) -> float:
    """Of the Gaussian mechanism, every sample in every batch (Balle and Wang, 2018)."""
    mu = sqrt(steps) / sigma
    return normal(mu / 2 - epsilon / mu) - exp(epsilon) * normal(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("sigma", "steps", "delta"), [(10, 60, 1e-3), (4, 1, 1e-5), (1, 5, 1e-6)])
def test_every_sample_in_every_batch_is_the_gaussian_mechanism(
    sigma: float, steps: int, delta: float
):
    """RDP is no less than exact, and as its alpha / (2 sigma^2) says; PLD is exact."""
    found = epsilon_of([(sigma, 1.0, steps)], delta)
    assert 0 < exact_delta(sigma, steps, found) <= delta
    a = np.arange(1.01, 200, 0.01)
    dense = steps * a / (2 * sigma**2) + np.log((a - 1) / a) - (log(delta) + np.log(a)) / (a - 1)
    assert dense.min() - 1e-9 <= found <= dense.min() * 1.03
    tight = epsilon_of([(sigma, 1.0, steps)], delta, "pld")
    assert 0.99 * delta <= exact_delta(sigma, steps, tight) <= delta


@pytest.mark.parametrize(
    ("rate", "delta", "sigma", "rdp", "pld"),
    [
        (0.08, 2.5e-4, 1.0, 20.0321, 18.20),
        (0.08, 2.5e-4, 2.0, 6.4241, 5.805),
        (0.08, 2.5e-4, 4.0, 2.6332, 2.36),
        (32 / 4096, 1e-5, 0.6, 7.5897, 6.45),
        (32 / 4096, 1e-5, 1.0, 1.7890, 1.528),
        (32 / 4096, 1e-5, 2.0, 0.5776, 0.526),
    ],
)
def test_epsilon_is_that_of_dp_accounting(
    rate: float, delta: float, sigma: float, rdp: float, pld: float
):
    """After 1,200 steps. Its RDP tries fewer whole orders, and more between them."""
    found = epsilon_of([(sigma, rate, 1200)], delta)
    assert rdp - 1e-4 <= found <= rdp * 1.02
    assert epsilon_of([(sigma, rate, 1200)], delta, "pld") == pytest.approx(pld, rel=2e-3)


@pytest.mark.parametrize("by", BOTH)
def test_steps_add_up_in_any_parts(by: Accountant):
    whole = epsilon_of([(1.0, 0.08, 120)], 1e-3, by)
    assert epsilon_of([(1.0, 0.08, 100), (1.0, 0.08, 20)], 1e-3, by) == pytest.approx(whole)
    assert epsilon_of([], 1e-3, by) == 0 and epsilon_of([(0.0, 0.1, 1)], 1e-3, by) == inf
    one = epsilon_of([(1.0, 0.08, 1)], 1e-3, by)
    assert 0 < one < whole < epsilon_of([(1.0, 0.08, 120), (2.0, 0.1, 20)], 1e-3, by)


@pytest.mark.parametrize("by", BOTH)
def test_one_sampled_step_is_bounded(by: Accountant):
    """By its exact delta: the integral of max(P - e^eps Q, 0), in both directions."""
    sigma, rate, delta = 1.0, 0.1, 1e-4
    found = epsilon_of([(sigma, rate, 1)], delta, by)
    x = np.linspace(-15, 16, 400_001)
    off, on = (np.exp(-((x - at) ** 2) / (2 * sigma**2)) / (sigma * sqrt(2 * pi)) for at in (0, 1))
    mixed = (1 - rate) * off + rate * on
    exact = [
        np.trapezoid(np.maximum(p - exp(found) * q, 0), x) for p, q in ((mixed, off), (off, mixed))
    ]
    assert max(exact) <= delta
    assert by == "rdp" or max(exact) > 0.99 * delta
    assert 0 < found < epsilon_of([(sigma, 1.0, 1)], delta, by)


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("epsilon", [0.5, 4.0, 8.0])
def test_the_noise_for_an_epsilon(epsilon: float, by: Accountant):
    sigma = sigma_for(epsilon, 0.08, 1200, 2.5e-4, by)
    assert epsilon_of([(sigma, 0.08, 1200)], 2.5e-4, by) <= epsilon
    assert epsilon_of([(sigma - 2e-4, 0.08, 1200)], 2.5e-4, by) > epsilon
    assert by == "rdp" or sigma < 0.96 * sigma_for(epsilon, 0.08, 1200, 2.5e-4)
    assert steps_within(epsilon, sigma, 0.08, 2.5e-4, 1300, by) in range(1200, 1203)


def test_hardly_any_noise_needs_no_more_memory():
    """Losses of thousands, on a grid that is coarse there: never more than by RDP."""
    events = [(0.05, 0.08, 1200)]
    found = epsilon_of(events, 2.5e-4, "pld")
    assert 1_000 < found < 0.9 * epsilon_of(events, 2.5e-4)


# ---- a device ---------------------------------------------------------------------------------


def test_a_device_keeps_to_the_budget_by_the_tighter_bound():
    """It takes a round more than RDP would allow; what it tells is resumed exactly."""
    most = Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360) * 0.99
    assert Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360, "pld") < most
    learner, then = (make_learner({**DP, "privacy.epsilon": most}, 2) for _ in range(2))
    told = [learner.run_round(Plan(t, 2), {}).metrics for t in (1, 2)]
    assert [row[SPENT] for row in told] == [0, 0]
    then.load_state(unpack(pack(learner.state())))
    told = [one.run_round(Plan(3, 2), {}).metrics for one in (learner, then)]
    expected = Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360, "pld")
    assert [row[EPSILON] for row in told] == [expected] * 2


def test_the_noise_is_found_by_the_same_accountant():
    learner = make_learner({**DP, "privacy.sigma": 0.0, "privacy.epsilon": 5.0}, 2)
    how = learner.spending.how
    assert how is not None
    steps = learner.spending.planned_steps
    assert how.sigma == sigma_for(5.0, 16 / 36, steps, 1 / 360, "pld")
    assert how.epsilon(how.charged(Ledger(), steps)) <= 5.0
    assert steps <= how.steps_within(10 * steps) < 1.01 * steps + 1


def test_without_the_library_a_device_says_so_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(LibraryError, match=r"dp-accounting.*accountant = 'pld'.*pip install"):
        make_learner(DP, 2)
    assert make_learner({**DP, "privacy.accountant": "rdp"}, 2).spending.how is not None
