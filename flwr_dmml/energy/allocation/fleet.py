"""The fleet's allocation by a solver (:class:`FleetAllocator`)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base import libraries
from .problem import Allocation, FloatArray, Objective, RoundProblem, planned, require
from .shared_band import SharedBand, equal_split, planned_in, spend_band
from .water_filling import water_filling

if TYPE_CHECKING:
    from .programs import BandProgram, IntegerProgram

# Steps shorter than the default (0.99), with which it fails now and then; then still shorter ones.
ATTEMPTS: dict[str, list[dict[str, Any]]] = {
    "CLARABEL": [
        {"max_step_fraction": 0.9},
        {"max_step_fraction": 0.7, "tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6},
    ]
}


class FleetAllocator:
    """Solves a problem of a fixed size every round; the cvxpy problem is compiled only once.

    :meth:`shared_band` is for devices that share a radio band. :meth:`integer` gives to a solver
    what :func:`allocate` does exactly and much faster: a reference. If the solver fails, the plan
    comes from water-filling (of a band: from an equal split); its status is "fallback" and its
    notes say why. Compiling the problem with a band takes cvxpy 10 s and 4 GB for 1,000 devices,
    0.5 s for 300; solving it again takes 0.4 s.

    Parameters
    ----------
    num_nodes, num_modalities : int
        The size of every problem.
    objective : {"max-min", "proportional", "least-squares"}
        See :func:`objective_value`.
    integer_solver, conic_solver : str
        Solvers of cvxpy for the integer program and for the convex relaxation.
    integer_options, conic_options : mapping, optional
        Passed to ``cp.Problem.solve``.

    Raises
    ------
    LibraryError
        cvxpy is missing or does not load.

    Notes
    -----
    Source: this project.
    """

    def __init__(
        self,
        num_nodes: int,
        num_modalities: int,
        *,
        objective: Objective = "max-min",
        integer_solver: str = "HIGHS",
        conic_solver: str = "CLARABEL",
        integer_options: Mapping[str, Any] | None = None,
        conic_options: Mapping[str, Any] | None = None,
    ) -> None:
        libraries.require("cvxpy")
        from . import programs

        self._programs = programs
        self.shape = (num_nodes, num_modalities)
        self.objective: Objective = objective
        self._integer = (integer_solver, _attempts(integer_solver, integer_options))
        self._conic = (conic_solver, _attempts(conic_solver, conic_options))

    @cached_property
    def integer_program(self) -> "IntegerProgram":
        """The mixed-integer program, compiled at its first use."""
        return self._programs.IntegerProgram(*self.shape)

    @cached_property
    def band_program(self) -> "BandProgram":
        """The convex relaxation with a shared band, compiled at its first use."""
        return self._programs.BandProgram(*self.shape, self.objective)

    def integer(self, problem: RoundProblem) -> Allocation:
        """Return the plan of the mixed-integer program, for "max-min" and "proportional".

        Both have the same best plan when devices share nothing. A solver's own tolerances (by
        default 1e-4 of the objective for HiGHS) hold.

        Raises
        ------
        AllocationError
            The problem is of another size, or the objective is "least-squares" (not linear).
        """
        self._check(problem)
        linear = self.objective != "least-squares"
        require(linear, 'the integer program has no "least-squares"; allocate() solves it exactly')
        try:
            self.integer_program.fill(problem)
            self._programs.solve(self.integer_program.problem, *self._integer)
        except self._programs.SolverFailed as error:
            note = f"{self._integer[0]} failed ({error}): water-filling instead"
            plan = water_filling(problem, self.objective)
            return replace(plan, status="fallback", notes=[*plan.notes, note])
        tau = problem.fewest(problem.theta(self.integer_program.plan()))
        notes = []
        broken = problem.servable & ~problem.is_feasible(tau.astype(np.int64))
        if broken.any():  # a solver's tolerance
            tau = np.where(broken[:, None], water_filling(problem).tau, tau)
            notes = [f"{broken.sum()} devices by water-filling: the solver's plan cost too much"]
        return planned(problem, tau, self.objective, "exact", *notes)

    def shared_band(self, problem: RoundProblem, band: SharedBand) -> Allocation:
        """Return bandwidths and iterations together.

        The convex relaxation gives the shares of the band; :func:`allocate` is exact for them;
        what that leaves of the band is spent on further iterations; :func:`allocate` again. The
        result serves more devices than :func:`equal_split`, or as many at an objective that is as
        good or better: if not, the equal split is returned, and the notes say so.

        Raises
        ------
        AllocationError
            The problem or the band is of another size.
        """
        self._check(problem)
        sized = band.power_w.shape == self.shape[:1]
        require(sized, f"the band is for {len(band.power_w)} devices, not {self.shape[0]}")
        served, least_hz = band.served(problem)
        program, bound = self.band_program, None
        status, notes = "rounded", []
        try:
            program.fill(problem, band, served)
            if self._programs.solve(program.problem, *self._conic):
                bound = program.bound(problem)
            else:
                notes.append(f"{self._conic[0]} calls its solution inaccurate")
            wanted = program.shares_hz(band)
        except self._programs.SolverFailed as error:
            wanted = np.full(self.shape[0], band.total_hz / self.shape[0])
            status = "fallback"
            notes.append(f"{self._conic[0]} failed ({error}): water-filling from an equal split")
        shares = _use_all(wanted * served, least_hz, band.total_hz)
        plan = planned_in(problem, band, shares, self.objective)
        shares = _use_all(shares, spend_band(problem, band, plan, self.objective), band.total_hz)
        plan = planned_in(problem, band, shares, self.objective)
        equal = equal_split(problem, band, objective=self.objective)
        if self._rank(equal) > self._rank(plan):
            plan = equal
            notes.append("the plain equal split is better")
        return replace(plan, status=status, notes=notes, bound=bound)

    def _check(self, problem: RoundProblem) -> None:
        shape = problem.speed.shape
        require(shape == self.shape, f"the problem is {shape}, this allocator is for {self.shape}")

    def _rank(self, plan: Allocation) -> tuple[int, float]:
        sign = -1.0 if self.objective == "least-squares" else 1.0
        return -int(plan.parked.sum()), sign * plan.objective


def _attempts(solver: str, given: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    # COO is the fastest of cvxpy's compilers for many parameters
    common = {"canon_backend": "COO", **(given or {})}
    return [attempt | common for attempt in ATTEMPTS.get(solver, [{}])]


def _use_all(wanted_hz: FloatArray, least_hz: FloatArray, total_hz: float) -> FloatArray:
    """Return shares [node] >= least_hz that sum to total_hz, the rest shared as ``wanted_hz``."""
    beyond = np.maximum(wanted_hz - least_hz, 0.0)
    if beyond.sum() <= 0:
        return least_hz
    shares: FloatArray = (
        least_hz + beyond * ((1 - 1e-12) * total_hz - least_hz.sum()) / beyond.sum()
    )
    return shares
