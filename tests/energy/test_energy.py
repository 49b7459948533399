"""Energy: the cost of an iteration, budgets, and a ledger that balances."""

from math import fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.energy.ledger import (
    KINDS,
    Ledger,
    LedgerError,
    greedy,
    iteration_energy_j,
    iteration_time_s,
    pacing,
)

# Cost of an iteration


def test_an_iteration_by_hand() -> None:
    """By hand: c = 1e8 cycles, b = 32, f = 1 GHz, kappa = 1e-28.

    A cycle costs kappa f^2 = 1e-28 * 1e18 = 1e-10 J; 32 * 1e8 = 3.2e9 cycles cost 0.32 J and take
    3.2e9 / 1e9 = 3.2 s. With c = 1e4: 3.2e-5 J.
    """
    assert iteration_energy_j(1e8, 32, 1e9, 1e-28) == pytest.approx(0.32, rel=1e-12)
    assert iteration_time_s(1e8, 32, 1e9) == pytest.approx(3.2, rel=1e-12)
    assert iteration_energy_j(1e4, 32, 1e9, 1e-28) == pytest.approx(3.2e-5, rel=1e-12)


def test_energy_over_time_is_the_dynamic_power() -> None:
    """e / T = (kappa c b f^2) / (c b / f) = kappa f^3, whatever the work: [node, modality]."""
    cycles = np.array([[1e6, 3e7]])
    f, kappa = np.array([[1e9], [2e9]]), np.array([[1e-28], [2e-28]])
    power_w = iteration_energy_j(cycles, 8, f, kappa) / iteration_time_s(cycles, 8, f)
    np.testing.assert_allclose(power_w, [[0.1, 0.1], [1.6, 1.6]], rtol=1e-12)


# Budgets


def test_budgets_by_hand() -> None:
    """10 J, 1 J a round to send, 4 rounds: (10 - 4) / 4 = 1.5 J each; greedy 10 - 1 = 9 J.

    3 J do not pay for 4 rounds of sending: 0; greedily 2 J are left. 0.5 J pay for nothing.
    """
    remaining_j = [10.0, 3.0, 0.5]
    np.testing.assert_allclose(pacing(remaining_j, [1.0, 1.0, 1.0], 4), [1.5, 0, 0])
    np.testing.assert_allclose(greedy(remaining_j, [1.0, 1.0, 1.0]), [9, 2, 0])
    np.testing.assert_allclose(pacing([10.0], [1.0], 1), greedy([10.0], [1.0]))
    with pytest.raises(ValueError, match="at least 1 round"):
        pacing(remaining_j, 1.0, 0)


def test_pacing_with_other_radio_costs_to_come_by_hand() -> None:
    """10 J, 4 rounds, 2 J to send now and 1 J in each of the 3 later ones: (10 - 2 - 3) / 4 = 1.25.

    As dear as now later on: (10 - 8) / 4 = 0.5. Dearer by 2 J: 10 - 2 - 3 * 4 is a debt: 0. For
    nothing: (10 - 2) / 4 = 2. In the last round nothing is to come: 10 - 2.
    """
    np.testing.assert_allclose(pacing([10.0], [2.0], 4, expected_radio_j=[1.0]), [1.25])
    np.testing.assert_allclose(pacing([10.0], [2.0], 4), [0.5])
    later_j = [1.0, 4.0, 0.0]  # each node its own
    found = pacing([10.0] * 3, [2.0] * 3, 4, expected_radio_j=later_j)
    np.testing.assert_allclose(found, [1.25, 0, 2])
    np.testing.assert_allclose(pacing([10.0], [2.0], 1, expected_radio_j=[9.0]), [8])


def test_pacing_over_the_rounds_that_train_by_hand() -> None:
    """20 J, 5 rounds of 1 J to send leave 15 J: 3 for each of 5, 5 for each of 3, 15 for one.

    With 2 J now and 1.5 J later: 20 - 2 - 4 * 1.5 = 12, and 6 for each of 2.
    """
    budgets = [pacing([20.0], [1.0], 5, training_rounds=n) for n in (5, 3, 1)]
    np.testing.assert_allclose(budgets, [[3], [5], [15]])
    found = pacing([20.0], [2.0], 5, expected_radio_j=[1.5], training_rounds=2)
    np.testing.assert_allclose(found, [6])


@pytest.mark.parametrize("training_rounds", [0, -1])
def test_pacing_needs_a_round_that_trains(training_rounds: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pacing([10.0], [1.0], 4, training_rounds=training_rounds)


def test_pacing_by_every_second_round_lasts_to_the_end() -> None:
    """12 J, 6 rounds, 0.5 J to send in each, training in the 1st, 3rd and 5th: (12 - 3) / 3 = 3 J.

    They are spent in full, so that the last round sends with the last 0.5 J.
    """
    ledger = Ledger([12.0])
    for server_round in range(1, 7):
        training = [t for t in range(server_round, 7) if t % 2 == 1]
        budget_j = pacing(
            ledger.remaining_j, 0.5, 7 - server_round, training_rounds=max(1, len(training))
        )
        if server_round in training:
            assert budget_j == pytest.approx(3.0)
            ledger.charge("compute", budget_j)
        ledger.charge("radio", 0.5)
    assert ledger.remaining_j == pytest.approx(0, abs=1e-9)


@given(
    remaining_j=st.floats(0, 1e6),
    share=st.floats(0, 1),
    later_j=st.floats(0, 1e5),
    rounds=st.integers(1, 50),
    training=st.integers(1, 50),
)
def test_a_round_never_takes_what_this_rounds_sending_needs(
    remaining_j: float, share: float, later_j: float, rounds: int, training: int
) -> None:
    """Whatever is expected of later rounds, as long as the battery can pay for sending now."""
    radio_j = share * remaining_j
    budget_j = pacing(
        remaining_j, radio_j, rounds, expected_radio_j=later_j, training_rounds=training
    )
    assert 0 <= budget_j <= max(0.0, remaining_j - radio_j)
    assert budget_j <= greedy(remaining_j, radio_j)


def test_pacing_lasts_to_the_end() -> None:
    """Who spends the pacing budget and sends in every round ends with exactly nothing."""
    ledger = Ledger([12.0])
    for rounds_left in range(6, 0, -1):
        budget_j = pacing(ledger.remaining_j, 0.5, rounds_left)
        assert budget_j == pytest.approx(1.5)  # 12 / 6 - 0.5
        ledger.charge("compute", budget_j)
        ledger.charge("radio", 0.5)
    assert ledger.remaining_j == pytest.approx(0, abs=1e-9)


# Ledger

NODES = 3
JOULES = st.floats(0, 1e5, allow_subnormal=False)
FLEETS = st.lists(JOULES, min_size=NODES, max_size=NODES)
EVENTS = st.lists(st.tuples(st.sampled_from([*KINDS, "harvest", "drain"]), FLEETS), max_size=30)


def same(a: Ledger, b: Ledger) -> bool:
    first, second = a.state(), b.state()
    return all(np.array_equal(first[name], second[name]) for name in first | second)


@settings(deadline=None)
@given(initial_j=FLEETS, extra_j=JOULES, events=EVENTS)
def test_the_ledger_balances(
    initial_j: list[float], extra_j: float, events: list[tuple[str, list[float]]]
) -> None:
    """Against exact sums of what was booked; whatever is refused changes nothing."""
    capacity_j = np.array(initial_j) + extra_j
    ledger = Ledger(initial_j, capacity_j)
    booked: dict[str, list[np.ndarray]] = {name: [] for name in (*KINDS, "harvest")}
    for event, joules in events:
        before = Ledger.from_state(ledger.state())
        affordable = ledger.can_afford(joules)
        if event == "harvest":
            stored_j = ledger.harvest(joules)
            assert np.all((stored_j >= 0) & (stored_j <= joules))
            booked["harvest"].append(stored_j)
        elif event == "drain":  # everything that is left, to the bit
            booked["compute"].append(ledger.remaining_j)
            ledger.charge("compute", ledger.remaining_j)
            np.testing.assert_allclose(ledger.remaining_j, 0, atol=1e-9)
        elif affordable.all():
            ledger.charge(event, joules)  # type: ignore[arg-type]
            booked[event].append(np.array(joules))  # to 1e-9 J
        else:
            with pytest.raises(LedgerError, match=f"node {np.flatnonzero(~affordable)[0]} holds"):
                ledger.charge(event, joules)  # type: ignore[arg-type]
            assert same(ledger, before)
        assert np.all(ledger.remaining_j >= 0)
        assert np.all(ledger.remaining_j <= capacity_j + 1e-9)
        np.testing.assert_allclose(
            ledger.spent_j() + ledger.remaining_j,
            ledger.initial_j + ledger.harvested_j,
            rtol=0,
            atol=1e-9,
        )
    for node in range(NODES):
        for kind in KINDS:
            exact_j = fsum(joules[node] for joules in booked[kind])
            assert ledger.spent_j(kind)[node] == pytest.approx(exact_j, rel=0, abs=1e-9)
        exact_j = fsum(joules[node] for joules in booked["harvest"])
        assert ledger.harvested_j[node] == pytest.approx(exact_j, rel=0, abs=1e-9)
    assert same(Ledger.from_state(ledger.state()), ledger)


def test_a_ledger_by_hand() -> None:
    """10 J: 3 J of computing and 1 J of radio leave 6; of 7 J from the sun 4 fit."""
    ledger = Ledger([10.0, 5.0])
    ledger.charge("compute", [3.0, 0.0])
    ledger.charge("radio", 1.0)
    np.testing.assert_allclose(ledger.remaining_j, [6, 4])
    np.testing.assert_allclose(ledger.harvest([7.0, 0.5]), [4, 0.5])
    np.testing.assert_allclose(ledger.remaining_j, [10, 4.5])
    assert ledger.totals_j() == {"compute": 3.0, "radio": 2.0}
    np.testing.assert_allclose(ledger.spent_j(), [4, 1])
    assert ledger.can_afford([10.0, 4.6]).tolist() == [True, False]
    assert Ledger([1.0], np.inf).harvest(1e6).tolist() == [1e6]


def test_a_charge_that_one_node_cannot_pay_books_nothing() -> None:
    ledger = Ledger([10.0, 0.5])
    with pytest.raises(LedgerError, match=r"node 1 holds 0.5 J and cannot spend 0.8 J on radio"):
        ledger.charge("radio", 0.8)
    np.testing.assert_array_equal(ledger.remaining_j, [10, 0.5])


def test_rounding_is_forgiven() -> None:
    """0.1 + 0.2 is 5.6e-17 above 0.3: an empty battery, not a debt; 1e-8 J too much is too much."""
    ledger = Ledger([0.3])
    ledger.charge("compute", 0.1 + 0.2)
    assert ledger.remaining_j == 0
    assert ledger.spent_j() == 0.3
    with pytest.raises(LedgerError, match=r"node 0 holds 0\.0 J and cannot spend 1e-08 J"):
        ledger.charge("radio", 1e-8)


@settings(deadline=None)
@given(initial_j=st.floats(1e-3, 1e6), share=st.floats(0, 1), rounds=st.integers(1, 50))
def test_pacing_never_overdraws(initial_j: float, share: float, rounds: int) -> None:
    """Whatever sending costs, as long as the battery can pay for that."""
    ledger, radio_j = Ledger([initial_j]), share * initial_j / rounds
    for rounds_left in range(rounds, 0, -1):
        ledger.charge("compute", pacing(ledger.remaining_j, radio_j, rounds_left))
        ledger.charge("radio", radio_j)
    assert ledger.remaining_j == pytest.approx(0, abs=1e-7)


def test_a_ledger_hands_out_copies() -> None:
    initial_j = np.array([1.0, 2.0])
    ledger = Ledger(initial_j)
    initial_j[:] = 7
    for array in [*ledger.state().values(), ledger.initial_j, ledger.spent_j("radio")]:
        array[:] = 9
    np.testing.assert_array_equal(ledger.remaining_j, [1, 2])


@pytest.mark.parametrize("joules", [[1.0, -1.0], [0.0, np.nan], [0.0, np.inf]])
def test_impossible_joules_are_refused(joules: list[float]) -> None:
    ledger = Ledger([5.0, 5.0])
    for book in (lambda j: ledger.charge("compute", j), ledger.harvest, ledger.can_afford, Ledger):
        with pytest.raises(LedgerError, match="node 1"):
            book(joules)
    np.testing.assert_array_equal(ledger.remaining_j, [5, 5])


def test_impossible_ledgers_are_refused() -> None:
    with pytest.raises(LedgerError, match="one number a node"):
        Ledger(5.0)
    with pytest.raises(LedgerError, match="node 1 has a capacity below"):
        Ledger([5.0, 5.0], [6.0, 4.0])
    with pytest.raises(LedgerError, match="2, one a node"):
        Ledger([5.0, 5.0]).charge("compute", [1.0, 1.0, 1.0])
    with pytest.raises(LedgerError, match="unknown kind 'heat'; allowed: compute, radio"):
        Ledger([5.0]).charge("heat", 1.0)  # type: ignore[arg-type]
    state = Ledger([5.0]).state()
    with pytest.raises(LedgerError, match="missing: radio_j"):
        Ledger.from_state({name: state[name] for name in state if name != "radio_j"})
    with pytest.raises(LedgerError, match="node 0 has spent more"):
        Ledger.from_state({**state, "compute_j": [5.1]})


def test_a_huge_bill_is_paid_to_the_last_place():
    """1.4e15 J a round on mains power: sums of such numbers are a quarter of a joule apart."""
    ledger = Ledger([0.0, 0.0], np.inf)
    for t in range(1, 50):
        compute, radio = np.array([1.4e15 / 3 * t, 0.3]), np.array([0.1, 0.2])
        ledger.harvest(compute + radio)
        ledger.charge("compute", compute)
        ledger.charge("radio", radio)
    assert Ledger.from_state(ledger.state()).remaining_j[1] == pytest.approx(0, abs=1e-12)
    small = Ledger([1.0])
    assert small.can_afford([1.0 + 0.9e-9]) and not small.can_afford([1.0 + 1.1e-9])
