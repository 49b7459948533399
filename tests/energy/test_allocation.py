"""Allocation: hand-computed plans, brute force, solvers against each other, and what is refused."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from functools import partial
from itertools import product
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.energy.allocation import (
    OBJECTIVES,
    Allocation,
    AllocationError,
    FleetAllocator,
    Objective,
    RoundProblem,
    SharedBand,
    allocate,
    equal_split,
    fixed,
    objective_value,
    relaxed_theta,
    sync_only,
    uniform,
    water_filling,
)

ALLOCATORS: list[Callable[[RoundProblem], Allocation]] = [
    *(partial(allocate, objective=objective) for objective in OBJECTIVES),
    *(partial(water_filling, objective=objective) for objective in OBJECTIVES),
    uniform,
    fixed,
    partial(fixed, iterations=3),
    sync_only,
    partial(sync_only, server_round=2),
]


def random_problem(
    rng: np.random.Generator, nodes: int, modalities: int, *, tau_max: int = 8, latency: bool = True
) -> RoundProblem:
    """About half of the devices are short of energy or time; some cannot afford anything."""
    speed = 10 ** rng.uniform(-3, -2, (nodes, modalities))
    energy = rng.uniform(0.1, 2, (nodes, modalities))
    seconds = rng.uniform(0.1, 2, (nodes, modalities))
    owned = rng.random((nodes, modalities)) < 0.85
    full = (energy * owned).sum(axis=1) * tau_max
    slow = (seconds * owned).sum(axis=1) * tau_max * rng.uniform(0.2, 1.5, nodes)
    tau_min = rng.integers(0, 4, nodes)
    return RoundProblem.of(
        speed,
        energy,
        full * rng.uniform(0, 1, nodes),
        seconds=seconds,
        owned=owned,
        latency_s=np.where(rng.random(nodes) < 0.5, slow, np.inf) if latency else np.inf,
        tau_min=tau_min,
        tau_max=tau_min + rng.integers(0, tau_max, nodes),
    )


def brute_force(problem: RoundProblem, node: int, objective: Objective) -> float | None:
    """Return the best theta, or the least squared distance, of one device; None: nothing fits.

    Written apart from the package: loops, and the constraints as the docstring has them, with
    the relaxation of the balance constraint at tau_min.
    """
    ms = [m for m in range(problem.speed.shape[1]) if problem.owned[node, m]]
    v, e, s = (a[node, ms] for a in (problem.speed, problem.energy_j, problem.seconds))
    low, high = int(problem.tau_min[node]), int(problem.tau_max[node])
    best = None
    for tau in product(range(low, high + 1), repeat=len(ms)):
        n = np.array(tau)
        if not ms or e @ n > problem.budget_j[node] + 1e-12:
            continue
        if s @ n > problem.latency_s[node] + 1e-12:
            continue
        theta = min(v * n)
        if objective == "least-squares":
            value = -float(((v * n - high * min(v)) ** 2).sum())
        elif all(v * n <= theta + v + 1e-12) or all((v * n <= theta + v + 1e-12) | (n == low)):
            value = float(theta)
        else:
            continue
        best = value if best is None else max(best, value)
    return best


def test_by_hand() -> None:
    """By hand: V = (2, 1), tau_max = 10.

    Plenty of energy: the slow modality is at 10 x 1 = 10, the fast one is cut to 10 / 2 = 5. With
    E = 12 and e = 1: theta = 8 costs 4 + 8 = 12; theta = 9 costs ceil(4.5) + 9 = 14.
    """
    problem = RoundProblem.of([[2, 1], [2, 1]], 1.0, [np.inf, 12.0], tau_max=10)
    for allocator in (allocate, water_filling):
        plan = allocator(problem)
        assert plan.tau.tolist() == [[5, 10], [4, 8]]
        assert plan.theta.tolist() == [10, 8]
        assert (plan.objective, plan.status, plan.notes) == (18, "exact", [])
        assert not plan.parked.any()


def test_least_squares_by_hand() -> None:
    """V = (1, 1), tau_max = 4, e = (1, 3), E = 10: target 4 and 4.

    (4, 2) costs 10, and is 0 + 4 away; (3, 2) and (1, 3) are further. Max-min takes (2, 2).
    """
    problem = RoundProblem.of([[1, 1]], [[1, 3]], 10.0, tau_max=4)
    plan = allocate(problem, "least-squares")
    assert plan.tau.tolist() == [[4, 2]]
    assert plan.objective == 4
    assert allocate(problem).tau.tolist() == [[2, 2]]


def test_objectives_by_hand() -> None:
    """theta = (2, 0), theta* = 10: 0 counts as 1e-8 in the logarithm; (8, 8), (10, 10) away."""
    problem = RoundProblem.of([[2, 1], [1, 1]], 1.0, 1.0, tau_max=10)
    tau = np.array([[1, 2], [0, 0]])
    assert objective_value(problem, tau, "max-min") == 2
    assert objective_value(problem, tau, "proportional") == pytest.approx(np.log(2) + np.log(1e-8))
    assert objective_value(problem, tau, "least-squares") == 8**2 + 8**2 + 10**2 + 10**2


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("modalities", "nodes", "tau_max"), [(1, 60, 8), (2, 200, 8), (3, 150, 5)])
def test_equals_brute_force(
    objective: Objective, modalities: int, nodes: int, tau_max: int
) -> None:
    problem = random_problem(np.random.default_rng(7), nodes, modalities, tau_max=tau_max)
    plan = allocate(problem, objective)
    oracle = water_filling(problem, objective)
    parked = 0
    for k in range(nodes):
        best = brute_force(problem, k, objective)
        parked += best is None
        assert plan.parked[k] == (best is None)
        if best is None:
            assert not plan.tau[k].any() and plan.theta[k] == 0
        elif objective == "least-squares":
            away = problem.speed[k] * plan.tau[k] - problem.target[k]
            assert float((away**2)[problem.owned[k]].sum()) == pytest.approx(-best, abs=1e-15)
        else:
            assert plan.theta[k] == pytest.approx(best, rel=1e-8)
    assert 0 < parked < nodes / 2
    if objective == "least-squares":
        assert oracle.status == "approximate"
        assert plan.objective <= oracle.objective <= 1.05 * plan.objective
    else:
        assert np.array_equal(plan.tau, oracle.tau)  # water-filling is exact here


@pytest.mark.parametrize("objective", ["max-min", "proportional"])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_equals_the_integer_program(objective: Objective, modalities: int) -> None:
    allocator = FleetAllocator(
        8, modalities, objective=objective, integer_options={"mip_rel_gap": 0.0}
    )
    rng = np.random.default_rng(3)
    for _ in range(4):
        problem = random_problem(rng, 8, modalities)
        plan, best = allocator.integer(problem), allocate(problem, objective)
        assert plan.status == "exact"
        assert plan.objective == pytest.approx(best.objective, rel=1e-6)
        assert np.array_equal(plan.parked, best.parked)
        check(problem, plan)


def test_integer_program_keeps_the_balance_at_tau_min() -> None:
    """V = (10, 1), tau_min = 2, E = 4: only (2, 2) fits, though 20 > theta + V = 2 + 10."""
    problem = RoundProblem.of([[10, 1]], 1.0, 4.0, tau_min=2, tau_max=10)
    for plan in (allocate(problem), FleetAllocator(1, 2).integer(problem)):
        assert plan.tau.tolist() == [[2, 2]]
        assert problem.is_balanced(plan.tau).all()
    assert not problem.is_balanced(np.array([[3, 2]])).any()


def check(problem: RoundProblem, plan: Allocation) -> None:
    """Assert everything that a plan must be."""
    assert plan.tau.dtype == np.int64 and plan.tau.shape == problem.speed.shape
    tau, idle = plan.tau, ~plan.tau.any(axis=1)
    assert (tau[~problem.owned] == 0).all()
    owned = problem.owned & ~idle[:, None]
    assert (tau >= problem.tau_min[:, None])[owned].all()
    assert (tau <= problem.tau_max[:, None])[owned].all()
    for cost, limit in (
        (problem.energy_j, problem.budget_j),
        (problem.seconds, problem.latency_s),
    ):
        used = (cost * tau).sum(axis=1)
        assert (used <= limit * (1 + 1e-11))[~idle].all()
    assert problem.is_feasible(tau).all()
    assert idle[plan.parked].all()
    progress = np.where(problem.owned, problem.speed * tau, np.inf).min(axis=1)
    assert np.array_equal(plan.theta, np.where(np.isinf(progress), 0, progress))


@st.composite
def problems(draw: st.DrawFn) -> RoundProblem:
    nodes, modalities = draw(st.integers(1, 4)), draw(st.integers(1, 3))

    def array(values: st.SearchStrategy[Any], *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.reshape(draw(st.lists(values, min_size=size, max_size=size)), shape)

    low = array(st.integers(0, 3), nodes)
    return RoundProblem.of(
        array(st.floats(1e-6, 1e3), nodes, modalities),
        array(st.sampled_from([0.0, 0.1, 0.3]) | st.floats(0, 1e3), nodes, modalities),
        array(st.sampled_from([0.0, -1.0, 0.3, np.inf]) | st.floats(0, 1e3), nodes),
        seconds=array(st.sampled_from([0.0, 0.1]) | st.floats(0, 10), nodes, modalities),
        owned=array(st.booleans(), nodes, modalities),
        latency_s=array(st.sampled_from([np.inf, 0.3]) | st.floats(0, 100), nodes),
        tau_min=low,
        tau_max=low + array(st.integers(0, 9), nodes),
    )


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_plan_is_feasible(problem: RoundProblem) -> None:
    for allocator in ALLOCATORS:
        check(problem, allocator(problem))
    for allocator in (allocate, water_filling):
        plan = allocator(problem)
        assert problem.is_balanced(plan.tau).all()
        assert (plan.theta <= relaxed_theta(problem) * (1 + 1e-9)).all()
    assert np.array_equal(allocate(problem).parked, ~problem.servable)
    assert np.allclose(allocate(problem).theta, water_filling(problem).theta, rtol=1e-8)


@given(problems(), st.floats(1, 3))
@settings(max_examples=100, deadline=None)
def test_more_energy_is_never_worse(problem: RoundProblem, factor: float) -> None:
    richer = replace(problem, budget_j=np.abs(problem.budget_j) * factor)
    assert (allocate(richer).tau >= allocate(problem).tau).all()
    # a fast modality at tau_min may be further from the target than at 0, so not for the parked
    away = [
        np.where(problem.owned, problem.speed * plan.tau - problem.target[:, None], 0) ** 2
        for plan in (allocate(p, "least-squares") for p in (richer, problem))
    ]
    costs = [cost.sum(axis=1)[problem.servable] for cost in away]
    assert (costs[0] <= costs[1] * (1 + 1e-9)).all()


def test_never_worse_than_the_rounded_relaxation() -> None:
    problem = random_problem(np.random.default_rng(0), 300, 3)
    theta = relaxed_theta(problem)
    rounded = np.clip(np.floor(theta[:, None] / problem.speed), problem.lower, problem.upper)
    served = problem.servable
    assert problem.fits(rounded)[served].all()
    plan = allocate(problem)
    assert (plan.theta >= problem.theta(rounded))[served].all()
    assert (plan.theta > problem.theta(rounded))[served].any()


def test_doubling_a_speed_halves_its_iterations() -> None:
    """Energy is plenty and the second modality, at 20 iterations, the slowest: 20 / V, rounded up.

    V = 1.25 needs 16 iterations, V = 2.5 needs 8, V = 5 needs 4; V = 40 is kept at tau_min = 1.
    """
    speed = np.array([[v, 1.0] for v in (1.25, 2.5, 5.0, 10.0, 20.0, 40.0)])
    plan = allocate(RoundProblem.of(speed, 1.0, np.inf, tau_max=20))
    assert plan.tau.tolist() == [[16, 20], [8, 20], [4, 20], [2, 20], [1, 20], [1, 20]]


def test_scale_does_not_matter() -> None:
    """Joules as microjoules, speeds in other units: the same plan."""
    problem = random_problem(np.random.default_rng(2), 50, 3)
    other = replace(
        problem,
        speed=problem.speed * 2**20,
        energy_j=problem.energy_j * 2**-20,
        budget_j=problem.budget_j * 2**-20,
    )
    for objective in OBJECTIVES:
        assert np.array_equal(allocate(problem, objective).tau, allocate(other, objective).tau)


def test_who_cannot_pay_is_parked() -> None:
    """e = 1 for each of two modalities: tau_min = 2 costs 4 J, and 4 s of latency."""
    problem = RoundProblem.of(
        np.ones((5, 2)),
        1.0,
        [4.0, 3.9, 0.0, -1.0, 9.0],
        seconds=1.0,
        latency_s=[4.0, 9.0, 9.0, 9.0, 3.9],
        tau_min=2,
    )
    for allocator in ALLOCATORS[:6]:
        plan = allocator(problem)
        assert plan.parked.tolist() == [False, True, True, True, True]
        assert plan.tau.tolist() == [[2, 2]] + [[0, 0]] * 4
    assert fixed(problem, iterations=3).parked.all()


def test_zero_budget() -> None:
    """With tau_min = 0 nobody is parked: 0 iterations are allowed, and free ones are not dear."""
    problem = RoundProblem.of([[1, 1], [1, 1]], [[1, 1], [0, 0]], 0.0, tau_min=0, tau_max=5)
    for objective in OBJECTIVES:
        plan = allocate(problem, objective)
        assert plan.tau.tolist() == [[0, 0], [5, 5]]
        assert not plan.parked.any()
    assert allocate(replace(problem, tau_min=np.ones(2, int))).parked.tolist() == [True, False]


def test_one_modality_and_none() -> None:
    """One: as many as are affordable, 3.5 J / 1 J = 3. None: parked."""
    problem = RoundProblem.of(
        [[1, 1], [1, 1], [1, np.nan]], 1.0, 3.5, owned=[[True, False], [False, False], [1, 0]]
    )
    for allocator in (*ALLOCATORS[:7], FleetAllocator(3, 2).integer):
        plan = allocator(problem)
        assert plan.tau.tolist() == [[3, 0], [0, 0], [3, 0]]
        assert plan.parked.tolist() == [False, True, False]


def test_rules() -> None:
    problem = RoundProblem.of([[2, 1]], [[1.0, 2.0]], 13.0, tau_max=6)
    assert uniform(problem).tau.tolist() == [[4, 4]]  # 4 x 3 J
    assert fixed(problem, iterations=4).tau.tolist() == [[4, 4]]
    assert fixed(problem, iterations=9).parked.all()  # 6 is the most; 6 x 3 J is too much
    trains = [sync_only(problem, server_round=t, train_every=3).tau.any() for t in range(1, 8)]
    assert trains == [True, False, False, True, False, False, True]
    off = sync_only(problem, server_round=2)
    assert not off.parked.any() and "only exchange" in off.notes[0]


def test_max_min_beats_uniform_at_the_same_budget() -> None:
    problem = random_problem(np.random.default_rng(5), 200, 2)
    assert (allocate(problem).theta >= uniform(problem).theta).all()
    assert allocate(problem).objective > 1.02 * uniform(problem).objective


def test_many_modalities_and_iterations() -> None:
    """Max-min is exact for any size; least squares is water-filling beyond 10,000 points."""
    rng = np.random.default_rng(4)
    problem = RoundProblem.of(
        rng.uniform(1, 4, (20, 5)), rng.uniform(1, 2, (20, 5)), 2000.0, tau_max=500
    )
    plan = allocate(problem)
    assert np.array_equal(plan.tau, water_filling(problem).tau)
    assert (plan.theta > 0.97 * relaxed_theta(problem)).all()
    plan = allocate(problem, "least-squares")
    assert plan.status == "approximate"
    check(problem, plan)


# --- a shared band


def random_band(rng: np.random.Generator, nodes: int, bits: float = 1e8) -> SharedBand:
    return SharedBand.of(1.5e6 * nodes, 0.1, 10 ** rng.uniform(-12.5, -10, nodes), bits)


def test_rate_by_hand() -> None:
    """c = 0.1 W x 1.2e-13 / 4e-21 W/Hz = 3 MHz; in 1 MHz the rate is 1e6 log2(1 + 3) = 2 Mb/s.

    8 Mb take 4 s and 0.4 J; 10 J become 9.6 J, 5 s become 1 s. The limit for much bandwidth is
    c / ln 2 = 4.328 Mb/s.
    """
    band = SharedBand.of(1e6, 0.1, 1.2e-13, 8e6)
    one = np.array([1e6])
    assert band.rate_bps(one) == pytest.approx(2e6)
    assert band.rate_bps(one * 1e6) == pytest.approx(3e6 / np.log(2), rel=1e-5)
    problem = RoundProblem.of([[1.0]], 1.0, 10.0, latency_s=5.0)
    left = band.remaining(problem, one)
    assert (left.budget_j[0], left.latency_s[0]) == pytest.approx((9.6, 1.0))
    assert allocate(left).tau.tolist() == [[9]]
    # 9 iterations leave 1 J for sending, so 10 s, but the latency allows 5: 1.6 Mb/s
    least = band.least_hz(problem, np.array([[9]]))
    assert band.rate_bps(least) == pytest.approx(1.6e6)
    assert band.remaining(problem, np.zeros(1)).budget_j[0] == -np.inf


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shared_band(objective: Objective) -> None:
    """Feasible, and not worse than an equal split; compiled once for all rounds."""
    rng = np.random.default_rng(11)
    allocator = FleetAllocator(10, 2, objective=objective)
    compiled, better = [], 0
    for _ in range(8):
        problem, band = random_problem(rng, 10, 2, tau_max=20), random_band(rng, 10, 3e7)
        plan, equal = (
            allocator.shared_band(problem, band),
            equal_split(problem, band, objective=objective),
        )
        assert plan.status == "rounded", plan.notes
        assert plan.bandwidth_hz is not None
        assert plan.bandwidth_hz.sum() <= band.total_hz and (plan.bandwidth_hz >= 0).all()
        check(band.remaining(problem, plan.bandwidth_hz), plan)
        sign = -1 if objective == "least-squares" else 1
        ours, theirs = [(-p.parked.sum(), sign * p.objective) for p in (plan, equal)]
        assert ours >= theirs
        better += ours > theirs
        if plan.bound is not None:
            assert sign * plan.objective <= sign * plan.bound + 1e-4 * abs(plan.bound)
        compiled.append(allocator.band_program.problem._cache.param_prog)
    assert better >= 6
    assert allocator.band_program.problem.is_dcp(dpp=True)
    assert compiled[0] is not None and all(c is compiled[0] for c in compiled)


def test_shared_band_against_a_grid() -> None:
    """Two devices: not worse than the best of 200 splits, to 3 %."""
    rng = np.random.default_rng(12)
    allocator = FleetAllocator(2, 2)
    for _ in range(6):
        problem = random_problem(rng, 2, 2, tau_max=40, latency=False)
        band = random_band(rng, 2, 3e7)
        served, _ = band.served(problem)
        plan = allocator.shared_band(problem, band)
        grid = [
            allocate(band.remaining(problem, band.total_hz * np.array([part, 1 - part])))
            for part in np.linspace(0.002, 0.998, 200)
        ]
        best = max(p.objective for p in grid if p.parked.sum() == plan.parked.sum())
        assert plan.objective >= 0.97 * best
        assert plan.parked.sum() == (~served).sum() == min(p.parked.sum() for p in grid)


def test_too_narrow_a_band_parks_the_dearest() -> None:
    """Equal devices but for the gain; the band is enough for some: the best of them are served."""
    gain = 10.0 ** -np.arange(10.0, 14.0, 0.5)
    problem = RoundProblem.of(np.ones((8, 2)), 0.1, 2.0)
    plan = FleetAllocator(8, 2).shared_band(problem, SharedBand.of(2e5, 0.1, gain, 1e7))
    assert plan.bandwidth_hz is not None
    assert 2 <= (~plan.parked).sum() <= 7
    assert (
        not np.diff(plan.parked.astype(int)).any() or (np.diff(plan.parked.astype(int)) >= 0).all()
    )
    assert (plan.bandwidth_hz > 0).tolist() == (~plan.parked).tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shared_band_at_the_edges(objective: Objective) -> None:
    """Nothing to send, no energy, nothing owned, no iterations needed or allowed, free energy."""
    problem = RoundProblem.of(
        np.ones((7, 2)),
        [[1, 1], [1, 1], [1, 1], [10, 1], [1, 1], [0, 0], [1, 1]],
        [10.0, 0.0, 9.0, 5.0, 9.0, 9.0, np.inf],
        owned=[[1, 1], [1, 1], [0, 0], [1, 1], [1, 1], [1, 1], [1, 0]],
        tau_min=[1, 1, 1, 0, 0, 1, 1],
        tau_max=[9, 9, 9, 9, 0, 9, 9],
    )
    band = SharedBand.of(1e6, 0.1, 1e-11, [0, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6])
    plan = FleetAllocator(7, 2, objective=objective).shared_band(problem, band)
    assert plan.status == "rounded" and plan.bandwidth_hz is not None, plan.notes
    check(band.remaining(problem, plan.bandwidth_hz), plan)
    assert plan.parked.tolist() == [False, True, True, False, False, False, False]
    assert plan.tau[[0, 5, 6]].tolist() == [[5, 5], [9, 9], [9, 0]]


# --- solvers that fail, and the border


@pytest.mark.parametrize(
    "broken",
    [
        {"conic_options": {"max_iter": 1}, "integer_options": {"time_limit": 0.0}},
        {"conic_solver": "GUROBI", "integer_solver": "GUROBI"},
        {"conic_solver": "no such", "integer_solver": "no such"},
        {"conic_options": {"no_such": 1}, "integer_options": {"no_such": 1}},
    ],
    ids=["limit", "not installed", "unknown", "option"],
)
def test_a_failing_solver_falls_back(broken: dict[str, Any]) -> None:
    if "GUROBI" in cp.installed_solvers():
        pytest.skip("GUROBI is installed")
    rng = np.random.default_rng(13)
    problem, band = random_problem(rng, 40, 3, tau_max=20), random_band(rng, 40, 1e7)
    allocator = FleetAllocator(40, 3, **broken)
    plan = allocator.integer(problem)
    assert plan.status == "fallback"
    assert "failed" in plan.notes[-1] and "water-filling" in plan.notes[-1]
    assert np.array_equal(plan.tau, water_filling(problem).tau)
    check(problem, plan)
    plan = allocator.shared_band(problem, band)
    assert plan.status == "fallback" and plan.bandwidth_hz is not None
    assert "failed" in plan.notes[-1] and "water-filling" in plan.notes[-1]
    check(band.remaining(problem, plan.bandwidth_hz), plan)
    equal = equal_split(problem, band)
    assert (-plan.parked.sum(), plan.objective) >= (-equal.parked.sum(), equal.objective)
    assert plan.bound is None


def test_the_integer_program_is_compiled_once() -> None:
    allocator, rng = FleetAllocator(5, 2), np.random.default_rng(14)
    compiled = []
    for _ in range(3):
        allocator.integer(random_problem(rng, 5, 2))
        compiled.append(allocator.integer_program.problem._cache.param_prog)
    assert allocator.integer_program.problem.is_dcp(dpp=True)
    assert compiled[0] is not None and all(c is compiled[0] for c in compiled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": [1.0, 2.0]}, "speed must be"),
        ({"speed": [[0.0, 1.0]]}, "speed must be finite and > 0"),
        ({"speed": [[np.nan, 1.0]]}, "speed must be finite and > 0"),
        ({"energy_j": [[-1.0, 1.0]]}, "energy_j must be finite and >= 0"),
        ({"energy_j": [1.0, 1.0, 1.0]}, "energy_j must be numbers of shape"),
        ({"seconds": np.inf}, "seconds must be finite"),
        ({"budget_j": np.nan}, "budget_j must be a number"),
        ({"latency_s": [np.nan]}, "latency_s must be a number"),
        ({"budget_j": "much"}, "budget_j must be numbers"),
        ({"tau_min": 5, "tau_max": 4}, "tau_min <= tau_max"),
        ({"tau_min": -1}, "0 <= tau_min"),
        ({"tau_max": 2.5}, "integers"),
        ({"tau_max": np.inf}, "integers"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"speed": [[1.0, 2.0]], "energy_j": 1.0, "budget_j": 1.0}
    with pytest.raises(AllocationError, match=message):
        RoundProblem.of(**(good | change))


def test_refused_elsewhere() -> None:
    problem = RoundProblem.of([[1.0, 2.0]], 1.0, 9.0)
    with pytest.raises(FrozenInstanceError):
        problem.budget_j = np.ones(1)  # type: ignore[misc]
    with pytest.raises(AllocationError, match="allowed"):
        allocate(problem, "most")  # type: ignore[arg-type]
    with pytest.raises(AllocationError, match="this allocator is for"):
        FleetAllocator(2, 2).integer(problem)
    with pytest.raises(AllocationError, match="band is for"):
        FleetAllocator(1, 2).shared_band(problem, SharedBand.of(1e6, 0.1, [1e-11] * 2, 1e6))
    with pytest.raises(AllocationError, match="least-squares"):
        FleetAllocator(1, 2, objective="least-squares").integer(problem)
    with pytest.raises(AllocationError, match="total_hz"):
        SharedBand.of(0.0, 0.1, 1e-11, 1e6)
    with pytest.raises(AllocationError, match="payload_bits"):
        SharedBand.of(1e6, 0.1, 1e-11, -1.0)
    with pytest.raises(AllocationError, match="iterations"):
        fixed(problem, iterations=-1)
    with pytest.raises(AllocationError, match="train_every"):
        sync_only(problem, train_every=0)
