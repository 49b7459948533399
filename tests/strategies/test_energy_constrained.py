"""The energy of a round, planned without training: by hand, and what holds for every fleet.

A Raspberry Pi 4 does 4 x 1.8e9 = 7.2e9 FLOP a second at 3.4 W, so work is given in its seconds: one
of 0.05 s takes 0.17 J. Two of them 100 m apart lose 28 + 40 x 2 = 108 dB (d2d); 0.1 W over 1 MHz of
noise of 10^-20.4 W/Hz makes 10^(-1 - 10.8 + 20.4 - 6) = 10^2.6 of signal to noise, so 1 Mbit at
log2(1 + 10^2.6) = 8.64064 Mbit/s takes FAR_S = 0.115732 s and FAR_J = 0.0115732 J.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flwr_dmml.energy.costs import Work
from flwr_dmml.energy.options import AllocationOptions, EnergyOptions, WirelessOptions
from flwr_dmml.settings import Settings
from flwr_dmml.strategies.energy.energy_constrained import RULES, EnergyConstrained
from flwr_dmml.strategies.energy.round_budget import RoundBudget
from flwr_dmml.strategies.energy.shared_band import SharedBandConstrained

PI_FLOPS = 7.2e9
FAR_S = 1 / log2(1 + 10**2.6)
FAR_J = 0.1 * FAR_S
STILL = {"enabled": True, "fading": "none", "shadowing_db": 0.0}
BY_SPEED = ["max-min", "proportional", "least-squares"]


def work(joint_s: float | None = None, per_round_s: float = 0.0, **solo_s: float) -> Work:
    """Return work in a Pi's seconds; a joint iteration is as dear as the solo ones by default."""
    joint_s = sum(solo_s.values()) if joint_s is None else joint_s
    solo = {m: seconds * PI_FLOPS for m, seconds in solo_s.items()}
    return Work(joint_s * PI_FLOPS, solo, per_round_s * PI_FLOPS)


AUDIO = work(audio=0.05)  # 0.17 J
BOTH = work(joint_s=0.1, audio=0.05, image=0.0625)  # 0.34 J; 0.17 J and 0.2125 J


def make_settings(
    rule: str = "uniform",
    *,
    most: int = 10,
    energy: Mapping[str, Any] | None = None,
    wireless: Mapping[str, Any] | None = None,
    stagger: float = 0.0,
    seed: int = 0,
    **allocation: Any,
) -> Settings:
    return Settings(
        local_iterations=most,
        stagger=stagger,
        seed=seed,
        energy=EnergyOptions(**(energy or {})),
        wireless=WirelessOptions(**(wireless or {})),
        allocation=AllocationOptions(rule=rule, **allocation),
    )


def plan_rounds(
    energy: EnergyConstrained,
    works: Sequence[Work],
    graph: nx.Graph,
    num_rounds: int,
    *,
    bits: float = 1e6,
    speeds: Mapping[int, Mapping[str, float]] | None = None,
) -> list[RoundBudget]:
    """Plan a run in which everybody is there and sends ``bits`` in every round."""
    n = len(works)
    energy.begin(dict(enumerate(works)), n, num_rounds)
    sent = np.full(n, bits)
    return [energy.plan(t, graph, range(n), sent, speeds or {}) for t in range(1, num_rounds + 1)]


def counts(budgets: Sequence[RoundBudget], node: int = 0, modality: str = "audio") -> list[int]:
    """Return a device's iterations of a modality in every round, 0 where it stays out."""
    return [b.updates.get(node, {}).get(modality, 0) for b in budgets]


def alone(energy: EnergyConstrained, num_rounds: int, device: Work = AUDIO) -> list[RoundBudget]:
    """Plan a run of one device that has nobody to send to."""
    return plan_rounds(energy, [device], nx.empty_graph(1), num_rounds)


@pytest.fixture
def on_a_line(tmp_path: Path) -> str:
    """Positions of three devices: from 1 it is 50 m to device 0 and 100 m to device 2."""
    path = tmp_path / "at.txt"
    path.write_text("0 0\n50 0\n150 0\n")
    return str(path)


# By hand


def test_one_iteration_over_one_link_by_hand(tmp_path: Path) -> None:
    """Two devices 100 m apart, 1 J each, one round of one iteration.

    Both send in FAR_S = 0.115732 s with FAR_J = 0.0115732 J. Device 0 has two modalities: planned
    are their solo prices, 0.17 + 0.2125 = 0.3825 J, and billed is the joint iteration, 0.34 J in
    0.1 s. Device 1 has audio: 0.17 J in 0.05 s. Left are 1 - 0.34 - 0.0115732 = 0.6484268 J and
    1 - 0.17 - 0.0115732 = 0.8184268 J.
    """
    path = tmp_path / "at.txt"
    path.write_text("0 0\n100 0\n")
    given = make_settings(
        most=1, energy={"battery_j": 1.0}, wireless={**STILL, "positions": str(path)}
    )
    energy = EnergyConstrained(given)
    budget = plan_rounds(energy, [BOTH, AUDIO], nx.path_graph(2), 1)[0]
    assert budget.updates == {0: {"audio": 1, "image": 1}, 1: {"audio": 1}}
    assert budget.flat == {} and list(budget.graph.edges) == [(0, 1)]
    assert pytest.approx(0.115732, rel=1e-5) == FAR_S
    assert budget.radio_j == pytest.approx([0.0115732, 0.0115732], rel=1e-5)
    assert budget.compute_j == pytest.approx([0.34, 0.17], rel=1e-12)
    assert budget.seconds == pytest.approx([0.1 + FAR_S, 0.05 + FAR_S], rel=1e-12)
    assert budget.budget_j == pytest.approx([0.3825, 0.17], rel=1e-6)
    assert budget.battery_j == pytest.approx([0.6484268, 0.8184268], rel=1e-6)
    assert budget.sent_bits.tolist() == [1e6, 1e6]
    assert budget.notes == []


def test_two_paced_rounds_by_hand(tmp_path: Path) -> None:
    """5 J for two rounds: (5 - 2 FAR_J) / 2 = 2.488427 J, at 0.3825 J that is 6 of 10 iterations.

    Billed are 6 x 0.34 = 2.04 J, so 5 - 2.04 - 0.0115732 = 2.948427 J are left; less the sending
    2.936854 J, which pays for 7. Billed 2.38 J, left are 0.556854 J.
    """
    path = tmp_path / "at.txt"
    path.write_text("0 0\n0 100\n")
    given = make_settings(energy={"battery_j": 5.0}, wireless={**STILL, "positions": str(path)})
    budgets = plan_rounds(EnergyConstrained(given), [BOTH, BOTH], nx.path_graph(2), 2)
    assert [b.updates[0] for b in budgets] == [
        {"audio": 6, "image": 6},
        {"audio": 7, "image": 7},
    ]
    assert [b.budget_j[0] for b in budgets] == pytest.approx([2.488427, 2.936854], rel=1e-6)
    assert [b.compute_j[0] for b in budgets] == pytest.approx([2.04, 2.38], rel=1e-12)
    levels = [b.battery_j[0] for b in budgets if b.battery_j is not None]
    assert levels == pytest.approx([2.948427, 0.556854], rel=1e-6)


def test_solo_iterations_and_a_rounds_own_work_are_billed_by_hand() -> None:
    """On mains, stagger 0.5: 10 iterations are 5 joint and 5 + 5 solo ones, and the round's own.

    5 x 0.34 + 5 x (0.17 + 0.2125) + 0.068 = 3.6805 J; 5 x 0.1 + 5 x 0.1125 + 0.02 = 1.0825 s.
    """
    device = work(joint_s=0.1, per_round_s=0.02, audio=0.05, image=0.0625)
    budget = alone(EnergyConstrained(make_settings(stagger=0.5)), 1, device)[0]
    assert budget.compute_j == pytest.approx([3.6805], rel=1e-12)
    assert budget.seconds == pytest.approx([1.0825], rel=1e-12)


def test_a_rounds_own_work_comes_before_iterations_by_hand() -> None:
    """0.2 s and 0.68 J of its own: 2 J pay for (2 - 0.68) / 0.17 = 7.76, so 7 iterations, 1.87 J.

    In 0.5 s there is time for (0.5 - 0.2) / 0.05 = 6 of them: 1.7 J. With 1 J for fewer than two
    (min-iterations), and then the round's own work is not done either.
    """
    device = work(per_round_s=0.2, audio=0.05)
    for joules, latency_s, trained, spent_j in (
        (2.0, 0.0, 7, 1.87),
        (2.0, 0.5, 6, 1.7),
        (1.0, 0.0, 0, 0.0),
    ):
        given = make_settings(energy={"battery_j": joules}, latency_s=latency_s)
        budget = alone(EnergyConstrained(given), 1, device)[0]
        assert budget.updates[0] == {"audio": trained}
        assert budget.compute_j == pytest.approx([spent_j], rel=1e-12)


# Mains power


def test_on_mains_everybody_trains_all_there_is_and_joules_are_counted() -> None:
    """10 iterations are 1.7 J, 3.4 J and 10 x 0.3 s x 3.4 W = 10.2 J a round; there are two."""
    works = [AUDIO, BOTH, work(audio=0.05, image=0.05, radar=0.2)]
    energy = EnergyConstrained(make_settings(wireless=STILL))
    budgets = plan_rounds(energy, works, nx.complete_graph(3), 2)
    for budget in budgets:
        assert budget.updates == {
            0: {"audio": 10},
            1: {"audio": 10, "image": 10},
            2: {"audio": 10, "image": 10, "radar": 10},
        }
        assert budget.compute_j == pytest.approx([1.7, 3.4, 10.2], rel=1e-12)
        assert budget.battery_j is None and budget.flat == {}
        assert (budget.radio_j > 0).all()
    sent_j = sum(b.radio_j for b in budgets)
    np.testing.assert_allclose(energy.ledger.spent_j("compute"), [3.4, 6.8, 20.4])
    np.testing.assert_allclose(energy.ledger.spent_j("radio"), sent_j)
    np.testing.assert_allclose(energy.ledger.harvested_j, energy.ledger.spent_j())
    np.testing.assert_allclose(energy.ledger.remaining_j, 0, atol=1e-9)


def test_without_a_radio_sending_is_free() -> None:
    budget = plan_rounds(EnergyConstrained(make_settings()), [AUDIO] * 2, nx.path_graph(2), 1)[0]
    assert budget.radio_j.tolist() == [0, 0] and budget.sent_bits.tolist() == [1e6, 1e6]
    assert budget.seconds == pytest.approx([0.5, 0.5])


# What holds for every fleet

WORKS = [
    AUDIO,
    BOTH,
    work(joint_s=0.2, audio=0.05, image=0.05, radar=0.2),
    work(joint_s=0.2, per_round_s=0.05, audio=0.05, image=0.05),  # joint iterations are dearer
]


@st.composite
def fleets(draw: st.DrawFn, *, shared: bool = False) -> dict[str, Any]:
    """Draw settings, devices and links of a fleet of four."""
    battery = draw(st.sampled_from(["mains", "share", "joules"]))
    energy: dict[str, Any] = {
        "devices": draw(st.sampled_from(["raspberry-pi-4", "phone,jetson-nano"])),
        "clock_jitter": draw(st.sampled_from([0.0, 0.3])),
        "pacing": draw(st.booleans()),
        "harvesting_w": draw(st.sampled_from([0.0, 0.01, 5.0])),
    }
    if battery == "share":
        energy["battery_share"] = draw(st.floats(0.01, 1.5))
    if battery == "joules":
        energy["battery_j"] = draw(st.floats(1e-3, 60.0))
    wireless: dict[str, Any] = {}
    if shared or draw(st.booleans()):
        wireless = {
            "enabled": True,
            "fading": draw(st.sampled_from(["none", "rayleigh"])),
            "min_rate_bps": draw(st.sampled_from([0.0, 5e6])),
            "shared_band_hz": 4e6 if shared else 0.0,
        }
    links = list(nx.complete_graph(4).edges)
    rules = [*BY_SPEED, "uniform", "random"] if shared else list(RULES)
    return {
        "settings": make_settings(
            draw(st.sampled_from(rules)),
            most=draw(st.sampled_from([1, 6])),
            energy=energy,
            wireless=wireless,
            stagger=draw(st.sampled_from([0.0, 0.5])),
            seed=draw(st.integers(0, 99)),
            latency_s=draw(st.sampled_from([0.0, 0.4])),
            warm_up=1,
        ),
        "works": draw(st.lists(st.sampled_from(WORKS), min_size=4, max_size=4)),
        "edges": draw(st.lists(st.sampled_from(links), unique=True)),
        "absent": draw(st.lists(st.integers(0, 3), unique=True, max_size=2)),
        "speeds": draw(
            st.dictionaries(
                st.integers(0, 3),
                st.dictionaries(st.sampled_from(["audio", "image", "radar"]), st.floats(0, 9)),
            )
        ),
        "batteries_j": draw(st.none() | st.lists(st.floats(0, 20), min_size=4, max_size=4)),
    }


def check_every_round(kind: type[EnergyConstrained], fleet: Mapping[str, Any]) -> None:
    """Plan five rounds, devices missing in the second, and assert all that a plan must be."""
    settings: Settings = fleet["settings"]
    given_j = fleet["batteries_j"]
    energy = kind(settings, battery_j=None if given_j is None else np.array(given_j))
    energy.begin(dict(enumerate(fleet["works"])), 4, 5)
    graph = nx.empty_graph(4)
    graph.add_edges_from(fleet["edges"])
    compute_j, radio_j = np.zeros(4), np.zeros(4)
    for t in range(1, 6):
        present = set(range(4)) - (set(fleet["absent"]) if t == 2 else set())
        bits = np.full(4, 1e6 + t)
        budget = energy.plan(t, graph, present, bits, fleet["speeds"])
        compute_j += budget.compute_j
        radio_j += budget.radio_j

        ledger = energy.ledger
        gained_j = ledger.initial_j + ledger.harvested_j
        np.testing.assert_allclose(ledger.spent_j() + ledger.remaining_j, gained_j, 0, 1e-9)
        np.testing.assert_allclose(ledger.spent_j("compute"), compute_j, 0, 1e-9)
        np.testing.assert_allclose(ledger.spent_j("radio"), radio_j, 0, 1e-9)
        for spent_j in (budget.compute_j, budget.radio_j, ledger.remaining_j):
            assert (spent_j >= 0).all() and np.isfinite(spent_j).all()
        if settings.energy.on_mains and given_j is None:
            assert budget.battery_j is None
        else:
            np.testing.assert_array_equal(budget.battery_j, ledger.remaining_j)

        taking_part = set(budget.updates)
        assert taking_part | set(budget.flat) == present
        assert not taking_part & set(budget.flat)
        out = sorted(set(range(4)) - taking_part)
        for bill in (budget.compute_j, budget.radio_j, budget.seconds, budget.sent_bits):
            assert (bill[out] == 0).all()
        assert set(budget.graph) == set(range(4))
        assert all(graph.has_edge(*e) and set(e) <= taking_part for e in budget.graph.edges)
        trains = [k for k, u in budget.updates.items() if any(u.values())]
        own_j = energy.costs.per_round.energy_j[:, 0]
        most_j = (budget.budget_j + own_j) * (1 + 1e-11)
        assert (budget.compute_j[trains] <= most_j[trains]).all()
        limit_s = settings.allocation.latency_limit_s
        assert (budget.seconds[trains] <= limit_s * (1 + 1e-9)).all()
        for k, updates in budget.updates.items():
            assert set(updates) == set(fleet["works"][k].solo)
            least = min(2, settings.local_iterations)
            values = set(updates.values())
            assert values == {0} or least <= min(values)
            assert max(values) <= 2 * settings.local_iterations


@given(fleets())
@hypothesis_settings(max_examples=120, deadline=None)
def test_the_ledger_balances_and_plans_are_kept(fleet: dict[str, Any]) -> None:
    check_every_round(EnergyConstrained, fleet)


@pytest.mark.parametrize("battery", [{}, {"battery_j": 100.0}, {"battery_share": 0.5}])
def test_the_budget_covers_a_rounds_own_work(battery: dict[str, float]) -> None:
    """``RoundBudget.budget_j`` is the most that computing may cost: with the round's own 0.68 J."""
    device = work(per_round_s=0.2, audio=0.05)
    budget = alone(EnergyConstrained(make_settings(energy=battery)), 1, device)[0]
    assert budget.compute_j[0] > 0.68 + 2 * 0.17
    assert budget.compute_j[0] <= budget.budget_j[0] * (1 + 1e-6)


# Pacing


def test_an_even_share_every_round_by_hand() -> None:
    """7 iterations a round for 5 rounds: 35 x 0.17 = 5.95 J, 1.19 J each, and nothing is left."""
    energy = EnergyConstrained(make_settings(energy={"battery_j": 5.95}))
    budgets = alone(energy, 5)
    assert [b.budget_j[0] for b in budgets] == pytest.approx([1.19] * 5)
    assert counts(budgets) == [7] * 5
    assert energy.ledger.remaining_j == pytest.approx([0], abs=1e-9)


@given(st.integers(1, 12), st.floats(3, 9))
@hypothesis_settings(deadline=None)
def test_paced_rounds_are_even_and_leave_less_than_an_iteration(
    num_rounds: int, a_round: float
) -> None:
    """A battery of x = ``a_round`` iterations a round: each gets floor(x) or one more, later ones.

    A round that leaves a part u < 1 of an iteration gives u / r more to each of the r to come, so
    with X = R x - R floor(x) to spare in all, a round takes one more as soon as X / r >= 1, and so
    do all after it; what is left at the end is X - floor(X) < 1.
    """
    energy = EnergyConstrained(make_settings(energy={"battery_j": a_round * num_rounds * 0.17}))
    budgets = alone(energy, num_rounds)
    trained = counts(budgets)
    assert trained == sorted(trained)
    assert set(trained) <= {int(a_round), int(a_round) + 1}
    shares = [b.budget_j[0] / 0.17 for b in budgets]
    assert all(a_round - 1e-9 <= share < int(a_round) + 2 for share in shares)
    assert energy.ledger.remaining_j[0] < 0.17 * (1 + 1e-9)


def test_sending_is_kept_back_for_the_rounds_to_come(on_a_line: str) -> None:
    """4 rounds, 0.5 J: sending takes 4 FAR_J = 0.046293 J, and 0.453707 / 4 / 0.02 = 5.67: 5.

    Work of 0.02 J. Then 6, 6 and 5: 0.453707 / 0.02 = 22.69 iterations in all.
    """
    given = make_settings(energy={"battery_j": 0.5}, wireless={**STILL, "positions": on_a_line})
    energy = EnergyConstrained(given)
    works = [work(audio=0.02 / 3.4)] * 3
    budgets = plan_rounds(energy, works, nx.Graph([(1, 2), (0, 1)]), 4)
    assert sum(counts(budgets, node=2)) == 22
    assert counts(budgets, node=2)[0] == 5
    assert all(b.radio_j[2] == pytest.approx(FAR_J) and not b.flat for b in budgets)


def test_without_pacing_the_battery_is_spent_at_full_speed_first() -> None:
    """25.5 iterations of battery: 10, 10, 5, and half of one is left that trains nothing."""
    greedy = {"battery_j": 25.5 * 0.17, "pacing": False}
    energy = EnergyConstrained(make_settings(energy=greedy))
    assert counts(alone(energy, 5)) == [10, 10, 5, 0, 0]
    assert energy.ledger.remaining_j == pytest.approx([0.5 * 0.17])


def test_without_pacing_only_this_rounds_sending_is_kept_back(on_a_line: str) -> None:
    """0.5 J at 0.17 J an iteration: (0.5 - FAR_J) / 0.17 = 2.87, so 2, and 0.148427 J are left.

    They pay for sending in 12 more rounds (12 x FAR_J = 0.138878 J), and for no iterations.
    """
    given = make_settings(
        energy={"battery_j": 0.5, "pacing": False}, wireless={**STILL, "positions": on_a_line}
    )
    works = [AUDIO] * 3
    budgets = plan_rounds(EnergyConstrained(given), works, nx.path_graph(3), 15)
    assert counts(budgets, node=2) == [2] + [0] * 14
    assert [2 in b.flat for b in budgets] == [False] * 13 + [True] * 2


# More battery


@given(
    battery_j=st.floats(0, 12),
    more_j=st.floats(0, 3),
    num_rounds=st.integers(1, 8),
    pacing=st.booleans(),
    radio=st.booleans(),
)
@example(battery_j=1.69, more_j=0.01, num_rounds=1, pacing=True, radio=False)
@hypothesis_settings(deadline=None)
def test_more_battery_never_gives_less_work(
    battery_j: float, more_j: float, num_rounds: int, pacing: bool, radio: bool
) -> None:
    """Constant prices, no work of the round's own: each joule buys at least what it bought."""
    energy = {"battery_j": 1.0, "pacing": pacing}
    wireless = {**STILL, "positions": "grid"} if radio else {}
    given = make_settings(energy=energy, wireless=wireless)
    totals = []
    for joules in (battery_j, battery_j + more_j):
        constrained = EnergyConstrained(given, battery_j=np.array([joules, 5.0]))
        totals.append(
            sum(counts(plan_rounds(constrained, [AUDIO] * 2, nx.path_graph(2), num_rounds)))
        )
    assert totals[0] <= totals[1]


def test_half_a_battery_is_half_of_the_iterations() -> None:
    """share x R rounds x 10 iterations, exactly, where a joint iteration costs what solo ones do.

    The battery is 0.5 x R x 10 e, and with pacing less than one iteration's e is left of it.
    """
    for device in (AUDIO, work(audio=0.05, image=0.0625)):
        energy = EnergyConstrained(make_settings(energy={"battery_share": 0.5}))
        assert sum(counts(alone(energy, 7, device))) == 7 * 10 // 2


def test_half_a_battery_is_a_little_more_where_joint_iterations_are_cheaper() -> None:
    """The battery holds half of what is planned, p = 0.3825 J each; billed are q = 0.34 J.

    So it pays for between half and half p / q of the 7 x 10 iterations: from 35 to 39.375.
    """
    energy = EnergyConstrained(make_settings(energy={"battery_share": 0.5}))
    assert 35 <= sum(counts(alone(energy, 7, BOTH))) <= 35 * 0.3825 / 0.34


@pytest.mark.parametrize("seed", range(3))
def test_half_a_battery_is_half_of_the_iterations_beside_a_fading_radio(seed: int) -> None:
    """A run of at most ten rounds puts its very channels in the battery: sending takes just that.

    0.5 x 8 x 10 = 40 iterations are left, to one: the last budget may end within one of them. The
    floor of every budget, and an estimate of sending that is off on the way, only shift iterations
    between rounds.
    """
    given = make_settings(
        energy={"battery_share": 0.5}, wireless={"enabled": True, "positions": "grid"}, seed=seed
    )
    budgets = plan_rounds(EnergyConstrained(given), [AUDIO] * 4, nx.cycle_graph(4), 8)
    assert sum(b.radio_j.sum() for b in budgets) > 0.1
    for node in range(4):
        assert 39 <= sum(counts(budgets, node)) <= 40


# Rules


def test_a_modality_of_twice_the_speed_gets_half_the_iterations() -> None:
    """max-iterations = 24 for the slow one, progress 24: 24 / 1, 24 / 2, 24 / 4, 24 / 8."""
    given = make_settings("max-min", most=24, max_iterations=24, max_ratio=10.0, warm_up=0)
    device = work(audio=0.05, image=0.05)
    trained = []
    for faster in (1.0, 2.0, 4.0, 8.0):
        speeds = {0: {"audio": 1e-3, "image": faster * 1e-3}}
        energy = EnergyConstrained(given)
        budget = plan_rounds(energy, [device], nx.empty_graph(1), 1, speeds=speeds)[0]
        trained.append(budget.updates[0])
    assert [t["image"] for t in trained] == [24, 12, 6, 3]
    assert {t["audio"] for t in trained} == {24}


@given(st.floats(1, 8), st.floats(5, 40))
@hypothesis_settings(deadline=None)
def test_under_a_battery_progress_is_equal_to_an_iteration(faster: float, joules: float) -> None:
    """Speeds 1 and V: neither is ahead of the other by more than one of its own iterations."""
    given = make_settings(
        "max-min", most=50, energy={"battery_j": joules}, max_ratio=10.0, warm_up=0
    )
    budget = plan_rounds(
        EnergyConstrained(given),
        [work(audio=0.05, image=0.05)],
        nx.empty_graph(1),
        1,
        speeds={0: {"audio": 1.0, "image": faster}},
    )[0]
    updates = budget.updates[0]
    assume(updates["image"] > 2)  # min-iterations
    ahead = faster * updates["image"] - updates["audio"]
    assert -1 - 1e-9 <= ahead <= faster * (1 + 1e-9)


def test_a_cap_on_the_ratio_keeps_a_fast_modality_from_starving() -> None:
    """100 times as fast counts as 4 times: 24 / 4 = 6 iterations."""
    given = make_settings("max-min", most=24, max_iterations=24, max_ratio=4.0, warm_up=0)
    speeds = {0: {"audio": 0.01, "image": 1.0}}
    device = work(audio=0.05, image=0.05)
    energy = EnergyConstrained(given)
    budget = plan_rounds(energy, [device], nx.empty_graph(1), 1, speeds=speeds)[0]
    assert budget.updates[0] == {"audio": 24, "image": 6}


UNEVEN = work(audio=0.05, image=0.15)  # what a rule by price could tell apart


@pytest.mark.parametrize("rule", BY_SPEED)
def test_warm_up_rounds_are_uniform(rule: str) -> None:
    given = make_settings(rule, warm_up=2)
    speeds = {0: {"audio": 1.0, "image": 2.0}}
    energy = EnergyConstrained(given)
    budgets = plan_rounds(energy, [UNEVEN], nx.empty_graph(1), 3, speeds=speeds)
    assert [b.updates[0] for b in budgets[:2]] == [{"audio": 10, "image": 10}] * 2
    assert budgets[2].updates[0]["audio"] > budgets[2].updates[0]["image"]


@pytest.mark.parametrize("rule", BY_SPEED)
@pytest.mark.parametrize("known", [{}, {"audio": 1.0}, {"audio": 1.0, "image": 0.0}])
def test_unknown_speeds_are_uniform(rule: str, known: dict[str, float]) -> None:
    energy = EnergyConstrained(make_settings(rule, warm_up=0))
    budget = plan_rounds(energy, [UNEVEN], nx.empty_graph(1), 1, speeds={0: known})[0]
    assert budget.updates[0] == {"audio": 10, "image": 10}


@pytest.mark.parametrize("rule", BY_SPEED)
def test_exponent_0_is_uniform(rule: str) -> None:
    energy = EnergyConstrained(make_settings(rule, warm_up=0, exponent=0.0))
    speeds = {0: {"audio": 1.0, "image": 5.0}}
    budget = plan_rounds(energy, [UNEVEN], nx.empty_graph(1), 1, speeds=speeds)[0]
    assert budget.updates[0] == {"audio": 10, "image": 10}


def test_exponent_2_squares_the_ratio() -> None:
    """Speeds 1 and 2 count as 1 and 4: 24 and 6 iterations."""
    given = make_settings(
        "max-min", most=24, max_iterations=24, max_ratio=9.0, warm_up=0, exponent=2.0
    )
    speeds = {0: {"audio": 1.0, "image": 2.0}}
    device = work(audio=0.05, image=0.05)
    energy = EnergyConstrained(given)
    budget = plan_rounds(energy, [device], nx.empty_graph(1), 1, speeds=speeds)[0]
    assert budget.updates[0] == {"audio": 24, "image": 6}


def test_speeds_of_modalities_that_a_device_lacks_do_not_matter() -> None:
    """Its neighbours' image is twice as fast; a device with audio alone trains all it can."""
    energy = EnergyConstrained(make_settings("max-min", warm_up=0))
    speeds = {0: {"audio": 1.0, "image": 2.0}}
    budget = plan_rounds(energy, [AUDIO, BOTH], nx.path_graph(2), 1, speeds=speeds)[0]
    assert budget.updates == {0: {"audio": 10}, 1: {"audio": 10, "image": 10}}


def random_rounds(seed: int, joules: float, **kwargs: Any) -> list[dict[int, dict[str, int]]]:
    given = make_settings(
        "random", most=20, energy={"battery_j": joules}, seed=seed, max_ratio=2.5, warm_up=1
    )
    device = work(audio=0.05, image=0.05)
    graph = kwargs.pop("graph", nx.empty_graph(3))
    budgets = plan_rounds(EnergyConstrained(given), [device] * 3, graph, 6, **kwargs)
    return [b.updates for b in budgets]


def test_the_random_rule_stays_within_max_ratio() -> None:
    """Speeds in [1, 2.5): theta / V, rounded up, differs by that ratio and one iteration."""
    drawn = [u for t in random_rounds(0, 300.0) for u in t.values()]
    assert all(max(u.values()) <= 2.5 * min(u.values()) + 1 for u in drawn)
    assert max(max(u.values()) / min(u.values()) for u in drawn) > 1.5


def test_the_random_rule_depends_on_seed_and_round_only() -> None:
    """Measured speeds, links and payloads change nothing; another seed or round does."""
    rounds = random_rounds(0, 300.0)
    speeds = {0: {"audio": 1.0, "image": 9.0}}
    assert rounds == random_rounds(0, 300.0, speeds=speeds, graph=nx.complete_graph(3), bits=7.0)
    assert rounds != random_rounds(1, 300.0)
    assert all(a != b for a, b in pairwise(rounds))


def test_sync_only_trains_every_so_many_rounds() -> None:
    energy = EnergyConstrained(make_settings("sync-only", train_every=3))
    budgets = plan_rounds(energy, [AUDIO, AUDIO], nx.path_graph(2), 7)
    assert counts(budgets) == [10, 0, 0, 10, 0, 0, 10]
    assert all(list(b.graph.edges) == [(0, 1)] for b in budgets)  # and exchanges in every round


def test_sync_only_spends_the_whole_battery_in_the_rounds_that_train(on_a_line: str) -> None:
    """15 iterations and seven times sending, for rounds 1, 4 and 7 to train: 5 iterations each."""
    given = make_settings(
        "sync-only",
        train_every=3,
        energy={"battery_j": 15 * 0.17 + 7 * FAR_J},
        wireless={**STILL, "positions": on_a_line},
    )
    energy = EnergyConstrained(given)
    budgets = plan_rounds(energy, [AUDIO] * 3, nx.path_graph(3), 7)
    assert counts(budgets, node=2) == [5, 0, 0, 5, 0, 0, 5]
    assert energy.ledger.remaining_j[2] == pytest.approx(0, abs=1e-9)
    assert all(not b.flat for b in budgets)


def test_latency_bounds_computing_and_sending_by_hand(on_a_line: str) -> None:
    """(0.5 - FAR_S) / 0.05 = 7.69: 7 iterations at 100 m; at 50 m 1 Mbit takes 0.07913 s: 8.

    With 0.2 s it is 1.69 at 100 m, fewer than min-iterations: device 2 is parked, and sends.
    """
    for limit_s, trained in ((0.5, [8, 7, 7]), (0.2, [2, 0, 0])):
        given = make_settings(wireless={**STILL, "positions": on_a_line}, latency_s=limit_s)
        budget = plan_rounds(EnergyConstrained(given), [AUDIO] * 3, nx.path_graph(3), 1)[0]
        assert [u["audio"] for u in budget.updates.values()] == trained
        assert (budget.seconds <= limit_s).all()
        assert budget.radio_j[2] == pytest.approx(FAR_J)


# Who takes part


def test_a_device_that_cannot_pay_for_sending_is_out_and_its_neighbours_pay_less(
    on_a_line: str,
) -> None:
    """Device 2 holds 0.01 J, less than FAR_J = 0.0115732 J. Device 1 then sends 50 m far only.

    That loses 28 + 40 log10(50) = 95.9588 dB: 10^(13.4 - 9.59588) = 6369.7 of signal to noise,
    log2(6370.7) = 12.63724 Mbit/s, 0.0791312 s for 1 Mbit and 0.00791312 J.
    """
    given = make_settings(energy={"battery_j": 1.0}, wireless={**STILL, "positions": on_a_line})
    everybody, without = (
        plan_rounds(
            EnergyConstrained(given, battery_j=np.array([1.0, 1.0, last_j])),
            [AUDIO] * 3,
            nx.path_graph(3),
            1,
        )[0]
        for last_j in (1.0, 0.01)
    )
    assert everybody.flat == {}
    assert everybody.radio_j == pytest.approx([0.00791312, FAR_J, FAR_J], rel=1e-6)
    assert without.flat == {2: "its battery holds 0.01 J, sending takes 0.0116 J"}
    assert list(without.graph.edges) == [(0, 1)] and set(without.graph) == {0, 1, 2}
    assert without.radio_j == pytest.approx([0.00791312, 0.00791312, 0], rel=1e-6)
    assert (without.radio_j <= everybody.radio_j).all()
    assert set(without.updates) == {0, 1} and without.sent_bits.tolist() == [1e6, 1e6, 0]
    assert without.compute_j[2] == without.seconds[2] == 0
    assert without.battery_j is not None and without.battery_j[2] == 0.01


@given(st.lists(st.floats(0, 0.1), min_size=6, max_size=6), st.integers(0, 50))
@hypothesis_settings(deadline=None)
def test_who_goes_on_never_pays_more_without_the_others(joules: list[float], seed: int) -> None:
    """And can pay: nobody who sends ends below 0, nobody leaves who could pay for all links."""
    wireless = {"enabled": True}
    graph = nx.complete_graph(6)
    mains = EnergyConstrained(make_settings(wireless=wireless, seed=seed))
    all_links = plan_rounds(mains, [AUDIO] * 6, graph, 1)[0]
    short = EnergyConstrained(
        make_settings(energy={"battery_j": 1.0}, wireless=wireless, seed=seed),
        battery_j=np.array(joules),
    )
    budget = plan_rounds(short, [AUDIO] * 6, graph, 1)[0]
    assert (budget.radio_j <= all_links.radio_j * (1 + 1e-12)).all()
    assert (budget.radio_j <= np.array(joules) + 1e-9).all()
    assert all(all_links.radio_j[k] > joules[k] for k in budget.flat)


def test_a_harvesting_device_comes_back(on_a_line: str) -> None:
    """Device 2 starts with 0.02 J, and sends for FAR_J = 0.011573 J; 4 mW refill it.

    Round 1 takes 0.5 + FAR_S s: 0.02 - 0.011573 + 0.004 x 0.615732 = 0.010890 J are too little for
    round 2. That one takes 0.5 + 0.079132 s, which makes 0.013206 J, enough for round 3, after
    which 0.004096 J are left. It is parked when it takes part: it holds too little for training.
    """
    given = make_settings(
        energy={"battery_j": 1.0, "harvesting_w": 0.004},
        wireless={**STILL, "positions": on_a_line},
    )
    energy = EnergyConstrained(given, battery_j=np.array([50.0, 50.0, 0.02]))
    budgets = plan_rounds(energy, [AUDIO] * 3, nx.path_graph(3), 4)
    levels = [b.battery_j[2] for b in budgets if b.battery_j is not None]
    assert levels[:3] == pytest.approx([0.010890, 0.013206, 0.004096], abs=2e-6)
    assert [list(b.flat) for b in budgets] == [[], [2], [], [2]]
    assert [b.graph.has_edge(1, 2) for b in budgets] == [True, False, True, False]
    assert budgets[2].updates[2] == {"audio": 0}


def test_a_battery_never_holds_more_than_at_the_start() -> None:
    energy = EnergyConstrained(make_settings(energy={"battery_j": 2.0, "harvesting_w": 100.0}))
    budgets = alone(energy, 3)
    assert all(b.battery_j == pytest.approx([2.0]) for b in budgets)
    assert energy.ledger.harvested_j == pytest.approx(energy.ledger.spent_j())


def test_a_link_in_outage_is_not_in_the_graph_and_its_device_goes_on(on_a_line: str) -> None:
    """100 m carry 8.64 Mbit/s, 50 m 12.6: with 10 asked for, device 2 is alone for the round."""
    given = make_settings(
        energy={"battery_j": 1.0},
        wireless={**STILL, "positions": on_a_line, "min_rate_bps": 1e7},
    )
    budget = plan_rounds(EnergyConstrained(given), [AUDIO] * 3, nx.path_graph(3), 1)[0]
    assert list(budget.graph.edges) == [(0, 1)] and budget.flat == {}
    assert budget.updates[2] == {"audio": 5}  # 1 J / 0.17 J
    assert budget.radio_j[2] == budget.sent_bits[2] == 0


def test_a_parked_device_still_sends(on_a_line: str) -> None:
    """0.3 J pay for sending and for one iteration of 0.17 J, fewer than min-iterations = 2."""
    given = make_settings(energy={"battery_j": 1.0}, wireless={**STILL, "positions": on_a_line})
    energy = EnergyConstrained(given, battery_j=np.array([1.0, 1.0, 0.3]))
    budget = plan_rounds(energy, [AUDIO, BOTH, BOTH], nx.path_graph(3), 1)[0]
    assert budget.updates[2] == {"audio": 0, "image": 0}
    assert budget.flat == {} and budget.graph.has_edge(1, 2)
    assert budget.compute_j[2] == 0 and budget.radio_j[2] == pytest.approx(FAR_J)
    assert budget.seconds[2] == pytest.approx(FAR_S) and budget.sent_bits[2] == 1e6


def test_who_is_not_there_costs_nothing_and_is_not_flat() -> None:
    energy = EnergyConstrained(make_settings(energy={"battery_j": 1.0}, wireless=STILL))
    energy.begin(dict.fromkeys(range(3), AUDIO), 3, 1)
    budget = energy.plan(1, nx.complete_graph(3), [0, 2], np.full(3, 1e6), {})
    assert set(budget.updates) == {0, 2} and budget.flat == {}
    assert list(budget.graph.edges) == [(0, 2)]
    assert budget.battery_j is not None and budget.battery_j[1] == 1.0


# A shared band


@given(fleets(shared=True))
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_with_a_shared_band_the_ledger_balances(fleet: dict[str, Any]) -> None:
    check_every_round(SharedBandConstrained, fleet)


def shared(energy: Mapping[str, Any], rule: str = "uniform", **allocation: Any) -> Settings:
    wireless = {**STILL, "positions": "grid", "shared_band_hz": 4e6}
    return make_settings(rule, energy=energy, wireless=wireless, **allocation)


@pytest.mark.parametrize("rule", ["uniform", *BY_SPEED])
def test_in_a_shared_band_sending_and_computing_stay_within_the_battery(rule: str) -> None:
    """6 J are 1.5 J a round: for 8 iterations of audio, or 3 of both, and for sending."""
    energy = SharedBandConstrained(shared({"battery_j": 6.0}, rule, warm_up=0))
    speeds = {k: {"audio": 1.0, "image": 2.0} for k in range(4)}
    works = [AUDIO, BOTH, BOTH, AUDIO]
    budgets = plan_rounds(energy, works, nx.cycle_graph(4), 4, bits=1.5e6, speeds=speeds)
    for budget in budgets:
        assert set(budget.updates) == {0, 1, 2, 3} and not budget.notes
        assert (budget.radio_j > 0).all()
        spent_j = budget.compute_j + budget.radio_j
        assert (spent_j <= budget.budget_j * (1 + 1e-9)).all()
    assert (energy.ledger.spent_j() <= 6.0 + 1e-9).all()
    assert (energy.ledger.spent_j("compute") > 4.0).all(), "most of it is for training"
    if rule == "max-min":
        assert sum(counts(budgets, 1, "audio")) > sum(counts(budgets, 1, "image"))


def test_on_mains_a_shared_band_trains_all_there_is() -> None:
    energy = SharedBandConstrained(shared({}))
    budget = plan_rounds(energy, [AUDIO, BOTH, BOTH, AUDIO], nx.cycle_graph(4), 1)[0]
    assert counts([budget]) == [10] and budget.updates[1] == {"audio": 10, "image": 10}
    assert budget.battery_j is None and (budget.radio_j > 0).all()


def test_in_a_shared_band_who_cannot_train_is_flat_and_sends_nothing() -> None:
    """0.3 J: sending, and less than two iterations of 0.17 J. The ring's other links stay."""
    energy = SharedBandConstrained(
        shared({"battery_j": 5.0}), battery_j=np.array([5.0, 0.3, 5.0, 5.0])
    )
    budgets = plan_rounds(energy, [AUDIO] * 4, nx.cycle_graph(4), 2)
    for budget in budgets:
        assert list(budget.flat) == [1]
        assert "do not pay for sending and the fewest iterations" in budget.flat[1]
        assert set(budget.updates) == {0, 2, 3}
        assert sorted(budget.graph.edges) == [(0, 3), (2, 3)]
        assert budget.radio_j[1] == budget.seconds[1] == budget.sent_bits[1] == 0
        assert (budget.radio_j[[0, 2, 3]] > 0).all()
    assert energy.ledger.remaining_j[1] == 0.3


def test_in_a_shared_band_who_has_nobody_left_to_hear_it_pays_for_no_sending() -> None:
    """Two links, 0-1 and 2-3. Device 1 is flat, so nobody listens to device 0."""
    energy = SharedBandConstrained(
        shared({"battery_j": 5.0}), battery_j=np.array([5.0, 0.3, 5.0, 5.0])
    )
    budget = plan_rounds(energy, [AUDIO] * 4, nx.Graph([(0, 1), (2, 3)]), 1)[0]
    assert list(budget.flat) == [1] and budget.sent_bits[0] == 0
    assert budget.updates[0]["audio"] == 10
    assert budget.radio_j[0] == 0
