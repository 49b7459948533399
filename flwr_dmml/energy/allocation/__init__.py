"""Allocation: each device's iterations of each modality in a round, within energy and time."""

from .baselines import fixed, sync_only, uniform
from .exact import allocate
from .fleet import FleetAllocator
from .problem import (
    OBJECTIVES,
    Allocation,
    AllocationError,
    Objective,
    RoundProblem,
    objective_value,
)
from .shared_band import SharedBand, equal_split
from .water_filling import relaxed_theta, water_filling

__all__ = [
    "OBJECTIVES",
    "Allocation",
    "AllocationError",
    "FleetAllocator",
    "Objective",
    "RoundProblem",
    "SharedBand",
    "allocate",
    "equal_split",
    "fixed",
    "objective_value",
    "relaxed_theta",
    "sync_only",
    "uniform",
    "water_filling",
]
