"""Reports: one HTML page a run (``flwr-dmml report``), and comparisons of runs (``compare``)."""

from .comparison import Comparison, compare_runs
from .comparison_page import comparison_sections
from .grouping import Group, group_runs
from .page import render_page, write_page
from .reading import MethodRun, ReportError, Run, read_run, read_runs
from .run_sections import report_sections

__all__ = [
    "Comparison",
    "Group",
    "MethodRun",
    "ReportError",
    "Run",
    "compare_runs",
    "comparison_sections",
    "group_runs",
    "read_run",
    "read_runs",
    "render_page",
    "report_sections",
    "write_page",
]
