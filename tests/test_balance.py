"""Training speeds, the balance metric and the schedule of joint and solo iterations."""

from collections import Counter
from math import isnan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.balance import SPEED_METRICS, LocalPhase, balance_metric, schedule


def _phase(before, after, *, start=(3.0, 4.0), iterations=2, gradient_ratio=0.5, path=4.0):
    vectors = [torch.tensor(v, dtype=torch.float32) for v in (start, before, after)]
    return LocalPhase(*vectors, iterations, gradient_ratio, path)


@pytest.mark.parametrize("name", SPEED_METRICS)
def test_before_the_first_round_a_speed_is_not_set(name):
    metric = SPEED_METRICS[name]
    assert isnan(metric.speed(metric.initial()))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # ||after - before|| = 2 and ||before|| = 5: 2 / (2 * 5) = 0.2; then ||.|| = 1 over
        # 1 iteration and a norm of 5: 0.2, so a second value of 0.2 keeps the average; see below
        # for one that moves it.
        ("relative", 0.2, 0.9 * 0.2 + 0.1 * 0.2),
        # displacement 2 over a path of 4: 0.5; then 1 over 1: 1.
        ("path", 0.5, 0.9 * 0.5 + 0.1 * 1.0),
        # ||after - start|| / ||start|| = 2 / 5 over 2 iterations; then 1 / 5 over 3.
        ("cumulative", 0.4 / 2, 0.2 / 3),
        # 0.5 over 2 iterations; then 0.5 + 0.7 over 3.
        ("conditional", 0.25, 1.2 / 3),
    ],
)
def test_speeds_by_hand(name, first, second):
    metric = SPEED_METRICS[name]
    state = metric.update(metric.initial(), _phase((3.0, 4.0), (3.0, 6.0)))
    assert metric.speed(state) == pytest.approx(first)
    later = _phase((3.0, 4.0), (4.0, 4.0), iterations=1, gradient_ratio=0.7, path=1.0)
    assert metric.speed(metric.update(state, later)) == pytest.approx(second)


def test_relative_speed_is_a_moving_average():
    """0.2, then 0: 0.9 * 0.2."""
    metric = SPEED_METRICS["relative"]
    state = metric.update(metric.initial(), _phase((3.0, 4.0), (3.0, 6.0)))
    state = metric.update(state, _phase((3.0, 4.0), (3.0, 4.0)))
    assert metric.speed(state) == pytest.approx(0.18)


def test_cosine_by_hand():
    """(3, 4) against (4, 3): cos = 24 / 25, so 0.04 over 2 iterations."""
    metric = SPEED_METRICS["cosine"]
    state = metric.update(metric.initial(), _phase((3.0, 4.0), (4.0, 3.0)))
    assert metric.speed(state) == pytest.approx(0.02)


@pytest.mark.parametrize("name", SPEED_METRICS)
def test_standing_still_is_speed_zero(name):
    metric = SPEED_METRICS[name]
    still = _phase((3.0, 4.0), (3.0, 4.0), gradient_ratio=0.0, path=0.0)
    assert metric.speed(metric.update(metric.initial(), still)) == pytest.approx(0.0, abs=1e-9)


def test_balance_by_hand():
    """Progress 2 * 5 = 10 against 1 * 4 = 4: 2.5; balanced at (2, 1) x (5, 10)."""
    assert balance_metric({"audio": 2.0, "image": 1.0}, {"audio": 5, "image": 4}) == 2.5
    assert balance_metric({"audio": 2.0, "image": 1.0}, {"audio": 5, "image": 10}) == 1.0
    assert balance_metric({"audio": 2.0}, {"audio": 5}) == 1.0
    assert balance_metric({"a": 2.0, "b": float("nan")}, {"a": 5, "b": 5}) == 1.0
    assert balance_metric({"a": 2.0, "b": 1.0}, {"a": 5, "b": 0}) == float("inf")


def test_schedule_by_hand():
    """10 and 6 iterations, half of the 6 common ones staggered: 3 joint, 7 and 3 solo."""
    steps = schedule({"audio": 10, "image": 6}, 0.5, torch.Generator().manual_seed(0))
    assert Counter(steps) == {("audio", "image"): 3, ("audio",): 7, ("image",): 3}


def test_schedule_is_seeded_and_shuffled():
    plans = [schedule({"a": 10, "b": 10}, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(plans[0]) == sorted(plans[2])


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 20), min_size=1),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_every_modality_gets_its_updates(iterations, stagger, seed):
    steps = schedule(iterations, stagger, torch.Generator().manual_seed(seed))
    done = Counter(m for step in steps for m in step)
    assert all(done[m] == count for m, count in iterations.items())
    assert all(step for step in steps)
    if stagger == 0:
        assert steps.count(tuple(iterations)) >= min(iterations.values())
