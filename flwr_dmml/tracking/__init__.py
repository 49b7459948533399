"""Tracking of a run: records of every round, the run folder, tables."""

from .records import NodeResult, RoundRecord, Tracker
from .run_folder import RunFolder
from .tables import devices_table, failures_table, final_table, render, verdict

__all__ = [
    "NodeResult",
    "RoundRecord",
    "RunFolder",
    "Tracker",
    "devices_table",
    "failures_table",
    "final_table",
    "render",
    "verdict",
]
