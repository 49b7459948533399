"""Training speeds, the balance metric, and joint and solo iterations."""

from collections import Counter
from math import inf, isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.energy.costs import split
from flwr_dmml.learning.balance import (
    SPEED_METRICS,
    LocalPhase,
    balance_metric,
    effective_speeds,
    schedule,
)


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


@pytest.mark.parametrize(
    ("exponent", "max_ratio", "expected"),
    [
        (1.0, 10.0, {"slow": 1.0, "fast": 4.0, "same": 1.0}),  # 0.2 is 4 times 0.05
        (0.5, 10.0, {"slow": 1.0, "fast": 2.0, "same": 1.0}),  # sqrt 4
        (2.0, 20.0, {"slow": 1.0, "fast": 16.0, "same": 1.0}),
        (0.0, 10.0, {"slow": 1.0, "fast": 1.0, "same": 1.0}),
        (1.0, 3.0, {"slow": 1.0, "fast": 3.0, "same": 1.0}),  # capped
        (2.0, 3.0, {"slow": 1.0, "fast": 3.0, "same": 1.0}),  # after the power
        (0.5, 3.0, {"slow": 1.0, "fast": 2.0, "same": 1.0}),  # 4 is above the cap, its root not
        (2.0, 1.0, {"slow": 1.0, "fast": 1.0, "same": 1.0}),
    ],
)
def test_effective_speeds_by_hand(exponent, max_ratio, expected):
    speed = {"slow": 0.05, "fast": 0.2, "same": 0.05}
    found = effective_speeds(speed, exponent=exponent, max_ratio=max_ratio)
    assert found == pytest.approx(expected)


def test_effective_speeds_are_plain_ratios_up_to_three_by_default():
    found = effective_speeds({"a": 1.0, "b": 2.0, "c": 50.0})
    assert found == pytest.approx({"a": 1.0, "b": 2.0, "c": 3.0})


@pytest.mark.parametrize("unknown", [nan, 0.0, inf])
def test_one_speed_that_tells_nothing_makes_all_equal(unknown):
    found = effective_speeds({"a": 0.1, "b": unknown, "c": 0.4}, exponent=2.0, max_ratio=5.0)
    assert found == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_effective_speeds_of_a_single_modality_and_of_none():
    assert effective_speeds({"a": 0.37}) == {"a": 1.0}
    assert effective_speeds({}) == {}


SPEEDS = st.dictionaries(st.sampled_from("abcd"), st.floats(1e-6, 1e6), min_size=1)


@given(SPEEDS, st.floats(0, 4), st.floats(1, 100), st.floats(1e-3, 1e3))
def test_effective_speeds_keep_the_order_and_forget_the_unit(speed, exponent, max_ratio, unit):
    """In [1, max_ratio], the slowest 1, and the same in any unit of speed."""
    found = effective_speeds(speed, exponent=exponent, max_ratio=max_ratio)
    assert found[min(speed, key=speed.__getitem__)] == 1.0
    assert all(1.0 <= v <= max_ratio for v in found.values())
    assert all(found[a] <= found[b] for a in speed for b in speed if speed[a] <= speed[b])
    scaled = {m: v * unit for m, v in speed.items()}
    assert effective_speeds(scaled, exponent=exponent, max_ratio=max_ratio) == pytest.approx(found)


@given(st.floats(1e-6, 1e6), st.floats(1, 5), st.floats(0, 4))
def test_iterations_against_effective_speeds_balance_a_tempered_device(slowest, ratio, exponent):
    """Iterations of 1 / V_eff make V^exponent * tau equal: at 1 the balance metric is 1."""
    speed = {"a": slowest, "b": slowest * ratio}
    effective = effective_speeds(speed, exponent=exponent, max_ratio=1e6)
    iterations = {m: 100 / v for m, v in effective.items()}
    tempered = {m: v**exponent for m, v in speed.items()}
    assert balance_metric(tempered, iterations) == pytest.approx(1.0)


def joint_and_solo(iterations: dict[str, int], stagger: float) -> tuple[int, dict[str, int]]:
    tau = np.array([list(iterations.values())], np.int64)
    joint, solo = split(tau, np.ones_like(tau, np.bool_), stagger)
    return int(joint[0]), dict(zip(iterations, solo[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("iterations", "stagger", "joint", "solo"),
    [
        ({"a": 10, "b": 6}, 0.0, 6, {"a": 4, "b": 0}),
        ({"a": 10, "b": 6}, 0.5, 3, {"a": 7, "b": 3}),  # half of the 6 common ones
        ({"a": 10, "b": 6}, 1.0, 0, {"a": 10, "b": 6}),
        ({"a": 5, "b": 5}, 0.5, 3, {"a": 2, "b": 2}),  # 2.5 of 5, rounded to the even 2
        ({"a": 7, "b": 7}, 0.5, 3, {"a": 4, "b": 4}),  # 3.5 of 7, rounded to the even 4
        ({"a": 8, "b": 6, "c": 4}, 0.25, 3, {"a": 5, "b": 3, "c": 1}),
        ({"a": 9, "b": 0}, 0.5, 0, {"a": 9, "b": 0}),  # nothing in common
        ({"a": 9}, 1.0, 9, {"a": 0}),  # nothing to stagger
        ({"a": 0, "b": 0}, 0.5, 0, {"a": 0, "b": 0}),
        ({}, 0.5, 0, {}),
    ],
)
def test_joint_and_solo_by_hand(iterations, stagger, joint, solo):
    assert joint_and_solo(iterations, stagger) == (joint, solo)


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 50), min_size=1),
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_staggering_turns_joint_iterations_into_solo_ones(iterations, shares):
    """Every modality's sum stays; more staggering never leaves more joint; 1 leaves none."""
    less, more = (joint_and_solo(iterations, share) for share in sorted(shares))
    for joint, solo in (less, more):
        assert {m: joint + count for m, count in solo.items()} == iterations
        assert min(solo.values()) >= 0 <= joint
    assert more[0] <= less[0]
    if len(iterations) > 1:
        assert joint_and_solo(iterations, 1.0) == (0, iterations)


def test_schedule_by_hand():
    """10 and 6 iterations, half of the 6 common ones staggered: 3 joint, 7 and 3 solo."""
    steps = schedule({"audio": 10, "image": 6}, 0.5, seed=0)
    assert Counter(steps) == {("audio", "image"): 3, ("audio",): 7, ("image",): 3}


def test_schedule_is_seeded_and_shuffled():
    plans = [schedule({"a": 10, "b": 10}, 0.5, s) for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(plans[0]) == sorted(plans[2])


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 20), min_size=1),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_every_modality_gets_its_updates(iterations, stagger, seed):
    steps = schedule(iterations, stagger, seed)
    done = Counter(m for step in steps for m in step)
    assert all(done[m] == count for m, count in iterations.items())
    assert all(step for step in steps)
    joint, solo = joint_and_solo(iterations, stagger)
    assert len(steps) == joint + sum(solo.values())
    if len(iterations) > 1:
        assert steps.count(tuple(iterations)) == joint
