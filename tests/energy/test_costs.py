"""The price list: what a round's iterations are billed, and that plans never pay more than that."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flwr_dmml.energy.costs import FleetCosts, Work, split
from flwr_dmml.energy.devices import DeviceProfile
from flwr_dmml.learning.balance import schedule

UNIT = DeviceProfile(
    "unit", 1.0, 1.0, tx_power_w=0.1, battery_j=1e3, source="this test", flops_per_cycle=1.0
)
"""A FLOP costs 1 J and takes 1 s: one FLOP a cycle, kappa f^2 = 1 J a cycle, f = 1 cycle a second.
"""
OTHER = replace(UNIT, frequency_hz=2.0, kappa=3.0, flops_per_cycle=4.0)
"""A FLOP is 1/4 cycle of 3 * 2^2 = 12 J and 1/2 s: it costs 3 J and takes 1/8 s."""
BOTH = Work(joint=5.0, solo={"image": 2.0, "audio": 4.0}, per_round=7.0)
"""A joint iteration is cheaper than the two solo ones, 5 < 6."""


def updates(*rows: tuple[int, ...]) -> NDArray[np.int64]:
    """Return a fleet's encoder updates ``[node, modality]``."""
    return np.array(rows, np.int64)


# By hand


def test_prices_of_one_device_by_hand() -> None:
    """At 1 J and 1 s a FLOP the prices are the FLOPs; modalities are sorted: audio, image."""
    costs = FleetCosts.of([UNIT], {0: BOTH})
    assert costs.modalities == ("audio", "image")
    for prices in ("energy_j", "time_s"):
        np.testing.assert_allclose(getattr(costs.solo, prices), [[4, 2]])
        np.testing.assert_allclose(getattr(costs.joint, prices), [[5]])
        np.testing.assert_allclose(getattr(costs.per_round, prices), [[7]])


def test_prices_go_by_the_device() -> None:
    """The same work where a FLOP costs 3 J and takes 1/8 s."""
    costs = FleetCosts.of([UNIT, OTHER], {0: BOTH, 1: BOTH})
    np.testing.assert_allclose(costs.solo.energy_j, [[4, 2], [12, 6]])
    np.testing.assert_allclose(costs.solo.time_s, [[4, 2], [0.5, 0.25]])
    np.testing.assert_allclose(costs.joint.energy_j, [[5], [15]])
    np.testing.assert_allclose(costs.joint.time_s, [[5], [0.625]])
    np.testing.assert_allclose(costs.per_round.energy_j, [[7], [21]])
    np.testing.assert_allclose(costs.per_round.time_s, [[7], [0.875]])


@pytest.mark.parametrize(
    ("stagger", "flops"),
    [
        (0.0, 2 * 5 + 1 * 4 + 0 * 2 + 7),  # 2 joint, audio's third is solo: 21
        (0.5, 1 * 5 + 2 * 4 + 1 * 2 + 7),  # one of the 2 common ones is split: 22
        (1.0, 0 * 5 + 3 * 4 + 2 * 2 + 7),  # all solo: 23
    ],
)
def test_a_bill_by_hand(stagger: float, flops: float) -> None:
    """3 updates of audio and 2 of image, 2 of them common, and the round's own 7 FLOPs.

    UNIT pays 1 J and 1 s a FLOP, OTHER 3 J and 1/8 s.
    """
    costs = FleetCosts.of([UNIT, OTHER], {0: BOTH, 1: BOTH})
    joules, seconds = costs.bill(updates((3, 2), (3, 2)), stagger)
    np.testing.assert_allclose(joules, [flops, 3 * flops])
    np.testing.assert_allclose(seconds, [flops, flops / 8])


def test_planning_prices_are_those_of_solo_iterations() -> None:
    planning = FleetCosts.of([UNIT, OTHER], {0: BOTH, 1: BOTH}).planning
    np.testing.assert_allclose(planning.energy_j, [[4, 2], [12, 6]])
    np.testing.assert_allclose(planning.time_s, [[4, 2], [0.5, 0.25]])


def test_planning_prices_rise_where_joint_iterations_are_dearer() -> None:
    """A joint iteration of 9 against solo ones of 4 + 2 = 6: times 1.5, on that device alone.

    2 updates of each are then planned at 2 * (6 + 3) = 18, billed 2 * 9 = 18 when joint and
    2 * (4 + 2) = 12 when solo.
    """
    costs = FleetCosts.of([UNIT, UNIT], {0: replace(BOTH, joint=9.0, per_round=0.0), 1: BOTH})
    for prices in (costs.planning.energy_j, costs.planning.time_s):
        np.testing.assert_allclose(prices, [[6, 3], [4, 2]])
    tau = updates((2, 2), (0, 0))
    np.testing.assert_allclose(costs.bill(tau, 0.0), [[18, 0], [18, 0]])
    np.testing.assert_allclose(costs.bill(tau, 1.0), [[12, 0], [12, 0]])


def test_a_parked_device_pays_nothing_and_one_update_pays_the_round() -> None:
    """The second device trains image once: 2 + 7; the first does not even train its generator."""
    costs = FleetCosts.of([UNIT, UNIT], {0: BOTH, 1: BOTH})
    joules, seconds = costs.bill(updates((0, 0), (0, 1)), 0.5)
    assert joules.tolist() == seconds.tolist() == [0, 9]


def test_a_device_of_one_modality_has_nothing_to_stagger() -> None:
    """Its iterations are joint ones, of the same price: 3 * 4 = 12, image's 5 * 2 = 10."""
    work = {0: Work(4.0, {"audio": 4.0}), 1: Work(2.0, {"image": 2.0})}
    costs = FleetCosts.of([UNIT, UNIT], work)
    assert costs.owned.tolist() == [[True, False], [False, True]]
    for stagger in (0.0, 0.5, 1.0):
        joules, _ = costs.bill(updates((3, 0), (0, 5)), stagger)
        np.testing.assert_allclose(joules, [12, 10])


def test_modalities_of_a_device_in_the_order_of_the_axis() -> None:
    work = {
        0: Work(5.0, {"thermal": 1.0, "audio": 4.0}),
        2: Work(2.0, {"image": 2.0}),
    }
    costs = FleetCosts.of([UNIT, UNIT, UNIT], work)
    assert costs.modalities == ("audio", "image", "thermal")
    assert costs.modalities_of(0) == ["audio", "thermal"]
    assert costs.modalities_of(2) == ["image"]


def test_a_device_without_work_owns_nothing_and_has_no_prices() -> None:
    costs = FleetCosts.of([UNIT, UNIT], {1: BOTH})
    assert costs.owned.tolist() == [[False, False], [True, True]]
    assert costs.modalities_of(0) == []
    for part in (costs.solo, costs.joint, costs.per_round, costs.planning):
        assert not part.energy_j[0].any() and not part.time_s[0].any()
    np.testing.assert_allclose(costs.bill(updates((0, 0), (1, 1)), 0.0), [[0, 12], [0, 12]])


def test_a_fleet_without_any_work_is_billed_nothing() -> None:
    costs = FleetCosts.of([UNIT, UNIT], {})
    assert costs.modalities == () and costs.owned.shape == (2, 0)
    assert costs.planning.energy_j.shape == (2, 0)
    joules, seconds = costs.bill(np.zeros((2, 0), np.int64), 0.5)
    assert joules.tolist() == seconds.tolist() == [0, 0]


def test_split_by_hand() -> None:
    """Half of the 6 common iterations are split; of 5 it is 2.5, to the even 2; one is alone."""
    owned = np.array([[True, True], [True, True], [True, False], [False, False]])
    joint, solo = split(updates((10, 6), (5, 5), (7, 0), (0, 0)), owned, 0.5)
    assert joint.tolist() == [3, 3, 7, 0]
    assert solo.tolist() == [[7, 3], [2, 2], [0, 0], [0, 0]]


# What a phase adds

PHASED = replace(BOTH, in_phase={"train": 0.0, "label": 11.0, "draw": 13.0})
"""7 FLOPs of its own in every round, 11 more in those in which it labels."""


def test_what_a_phase_adds_by_hand() -> None:
    """UNIT: 7, labelling 18, drawing 20. OTHER pays 3 J and 1/8 s a FLOP and only labels."""
    work = {0: PHASED, 1: replace(BOTH, in_phase={"label": 11.0})}
    costs = FleetCosts.of([UNIT, OTHER], work)
    assert set(costs.in_phase) == {"train", "label", "draw"}
    for phase, joules, seconds in (
        ("", [7, 21], [7, 0.875]),
        ("train", [7, 21], [7, 0.875]),
        ("label", [18, 54], [18, 2.25]),
        ("draw", [20, 21], [20, 0.875]),
    ):
        own = costs.own_work(phase)
        np.testing.assert_allclose(own.energy_j[:, 0], joules)
        np.testing.assert_allclose(own.time_s[:, 0], seconds)
    np.testing.assert_allclose(costs.per_round.energy_j, [[7], [21]])


def test_a_bill_of_a_phase_by_hand() -> None:
    """2 joint and a solo iteration, 2 * 5 + 4 = 14, and 7 + 11. The parked device labels nothing.

    Planning prices are those of iterations: a phase does not change them.
    """
    costs = FleetCosts.of([UNIT, OTHER, UNIT], dict.fromkeys(range(3), PHASED))
    tau = updates((3, 2), (3, 2), (0, 0))
    np.testing.assert_allclose(costs.bill(tau, 0.0, "label"), [[32, 96, 0], [32, 4, 0]])
    np.testing.assert_allclose(costs.bill(tau, 0.0, "train"), [[21, 63, 0], [21, 2.625, 0]])
    np.testing.assert_allclose(costs.bill(tau, 0.0), costs.bill(tau, 0.0, "train"))
    plain = FleetCosts.of([UNIT, OTHER, UNIT], dict.fromkeys(range(3), BOTH))
    np.testing.assert_allclose(costs.planning.energy_j, plain.planning.energy_j)


def test_a_fleet_without_phases_has_no_more_prices() -> None:
    costs = FleetCosts.of([UNIT], {0: BOTH})
    assert costs.in_phase == {} and costs.own_work() is costs.per_round


def test_a_phase_that_nobody_has_counted_is_not_billed_as_nothing() -> None:
    costs = FleetCosts.of([UNIT], {0: PHASED})
    with pytest.raises(ValueError, match="no device has counted what it does in the phase 'lable'"):
        costs.bill(updates((3, 2)), 0.0, "lable")


# Whatever the fleet

STAGGER = st.floats(0, 1)
FLOPS = st.floats(0.1, 1e12)
DEVICE = st.builds(
    DeviceProfile,
    st.just("drawn"),
    frequency_hz=st.floats(1e8, 1e10),
    kappa=st.floats(1e-29, 1e-26),
    tx_power_w=st.just(0.1),
    battery_j=st.just(1.0),
    source=st.just("this test"),
    flops_per_cycle=st.floats(0.5, 16),
)


@st.composite
def works(draw: st.DrawFn, *, dearest: float = 3.0) -> Work:
    """A device's work; a joint iteration costs up to ``dearest`` times the sum of the solo ones."""
    solo = draw(st.dictionaries(st.sampled_from("abc"), FLOPS, min_size=1))
    joint = draw(st.floats(0.1, dearest)) * sum(solo.values())
    phases = draw(st.fixed_dictionaries({"label": st.just(0.0) | FLOPS}))
    return Work(joint, solo, draw(st.just(0.0) | FLOPS), phases)


@st.composite
def fleets(
    draw: st.DrawFn, *, dearest: float = 3.0
) -> tuple[list[DeviceProfile], dict[int, Work], NDArray[np.int64]]:
    """Up to four devices, the work of some of them, and updates of what they own."""
    fleet = draw(st.lists(DEVICE, min_size=1, max_size=4))
    nodes = st.integers(0, len(fleet) - 1)
    work = draw(st.dictionaries(nodes, works(dearest=dearest), min_size=1))
    owned = FleetCosts.of(fleet, work).owned
    counts = draw(st.lists(st.integers(0, 30), min_size=owned.size, max_size=owned.size))
    return fleet, work, np.where(owned, np.reshape(counts, owned.shape), 0)


@settings(deadline=None)
@given(fleets(), STAGGER)
def test_a_phase_adds_its_price_to_the_bill_of_those_who_train(
    drawn: tuple[list[DeviceProfile], dict[int, Work], NDArray[np.int64]], stagger: float
) -> None:
    fleet, work, tau = drawn
    costs = FleetCosts.of(fleet, work)
    for k, prices in enumerate(("energy_j", "time_s")):
        more = costs.bill(tau, stagger, "label")[k] - costs.bill(tau, stagger)[k]
        price = getattr(costs.in_phase["label"], prices)
        scale = costs.bill(tau, stagger, "label")[k]
        assert np.all(np.abs(more - tau.any(axis=1) * price[:, 0]) <= 1e-9 * scale)


@settings(deadline=None)
@given(fleets(), STAGGER)
def test_a_bill_never_exceeds_what_was_planned(
    drawn: tuple[list[DeviceProfile], dict[int, Work], NDArray[np.int64]], stagger: float
) -> None:
    """Planning price times updates, and the round's own work of those who train."""
    fleet, work, tau = drawn
    costs = FleetCosts.of(fleet, work)
    trains = tau.any(axis=1)
    for billed, prices in zip(costs.bill(tau, stagger), ("energy_j", "time_s"), strict=True):
        planned = (tau * getattr(costs.planning, prices)).sum(axis=1)
        planned += trains * getattr(costs.per_round, prices)[:, 0]
        assert np.all(billed <= planned * (1 + 1e-9))
        assert np.all((billed > 0) == trains)


@settings(deadline=None)
@given(fleets(), STAGGER, st.integers(0, 100))
def test_a_bill_is_the_price_of_the_schedule(
    drawn: tuple[list[DeviceProfile], dict[int, Work], NDArray[np.int64]],
    stagger: float,
    seed: int,
) -> None:
    """Add up the FLOPs of the steps that a device really makes: a step of all it has is joint.

    On a device of one modality that is its solo iteration, so both must cost the same there.
    """
    fleet, work, tau = drawn
    work = {
        k: Work(w.joint if len(w.solo) > 1 else sum(w.solo.values()), w.solo, w.per_round)
        for k, w in work.items()
    }
    costs = FleetCosts.of(fleet, work)
    joules, seconds = costs.bill(tau, stagger)
    for k, w in work.items():
        device, has = fleet[k], costs.modalities_of(k)
        counts = dict(zip(has, tau[k][costs.owned[k]].tolist(), strict=True))
        steps = schedule(counts, stagger, seed)
        flops = sum(w.joint if set(step) == set(has) else w.solo[step[0]] for step in steps)
        cycles = (flops + (w.per_round if steps else 0.0)) / device.flops_per_cycle
        assert joules[k] == pytest.approx(device.kappa * cycles * device.frequency_hz**2, rel=1e-9)
        assert seconds[k] == pytest.approx(cycles / device.frequency_hz, rel=1e-9)


@settings(deadline=None)
@given(fleets(dearest=1.0), st.lists(STAGGER, min_size=2, max_size=5))
def test_more_staggering_never_makes_a_bill_cheaper(
    drawn: tuple[list[DeviceProfile], dict[int, Work], NDArray[np.int64]], shares: list[float]
) -> None:
    """As long as a joint iteration costs no more than the solo ones that replace it."""
    fleet, work, tau = drawn
    costs = FleetCosts.of(fleet, work)
    bills = [costs.bill(tau, stagger) for stagger in sorted(shares)]
    for less, more in pairwise(bills):
        assert np.all(np.array(less) <= np.array(more) * (1 + 1e-9))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.none() | st.integers(0, 50), min_size=3, max_size=3), min_size=1),
    STAGGER,
)
def test_split_agrees_with_what_every_device_does(
    fleet: list[list[int | None]], stagger: float
) -> None:
    """None is a modality that a device lacks; some devices lack all."""
    owned = np.array([[count is not None for count in row] for row in fleet])
    joint, solo = split(updates(*(tuple(c or 0 for c in row) for row in fleet)), owned, stagger)
    for k, row in enumerate(fleet):
        counts = {str(m): count for m, count in enumerate(row) if count is not None}
        steps = Counter(schedule(counts, stagger, 0))
        alone = dict(zip(counts, solo[k][owned[k]].tolist(), strict=True))
        planned = Counter({(m,): count for m, count in alone.items()})
        planned[tuple(counts)] += int(joint[k])
        assert +steps == +planned
        assert not solo[k][~owned[k]].any()
