"""Reports: one HTML page a run (``flwr-dmml report``), and comparisons of runs (``compare``)."""

from .comparison import Group, Verdict, compare_groups, group_runs
from .comparison_page import comparison_sections, results
from .page import render_page, write_page
from .reading import MethodRun, ReportError, Run, read_run, read_runs
from .run_sections import report_sections

__all__ = [
    "Group",
    "MethodRun",
    "ReportError",
    "Run",
    "Verdict",
    "compare_groups",
    "comparison_sections",
    "group_runs",
    "read_run",
    "read_runs",
    "render_page",
    "report_sections",
    "results",
    "write_page",
]
