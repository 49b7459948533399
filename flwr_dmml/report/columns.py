"""Columns of a comparison: what stands in them, and how many digits the noise allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import floor, isfinite, log10
from statistics import fmean, median

from .reading import MethodRun, ReportError

Value = Callable[[MethodRun], float | None]


@dataclass(frozen=True)
class Column:
    """A number of a run at its end.

    Attributes
    ----------
    name : str
        As on the command line.
    title : str
        Its heading.
    value : callable
        From a run of a method to the number; None where it does not have it.
    share : bool
        Whether it is in [0, 1], as accuracies are: differences are in percentage points then.
    more : bool
        Whether more is better.
    """

    name: str
    title: str
    value: Value
    share: bool = True
    more: bool = True

    def factor(self, percent: bool) -> float:
        """Return what values are multiplied by to be shown."""
        return 100.0 if self.share and percent else 1.0

    def decimals(self, errors: Sequence[float], percent: bool) -> int | None:
        """Return the decimals to show of means with these standard errors; None for the usual."""
        found = decimals([error * self.factor(percent) for error in errors])
        if found is None or not self.share:
            return found
        return min(found, 2 if percent else 4)

    def text(self, value: float, places: int | None, percent: bool) -> str:
        """Return a value as text: with so many decimals, or as is usual for it."""
        shown = value * self.factor(percent)
        if places is not None:
            return rounded(shown, places)
        if not self.share:
            return f"{shown:.4g}"
        return f"{shown:.1f}" if percent else f"{shown:.3f}"


def decimals(errors: Sequence[float]) -> int | None:
    """Return the decimals that are more than noise; negative ones are digits before the point.

    Those up to the first digit of the standard error (the median of several), or up to its second
    where the first is a 1; None where no error is known or all are zero.
    """
    known = [error for error in errors if isfinite(error) and error > 0]
    if not known:
        return None
    error = median(known)
    place = floor(log10(error))
    return (error < 2 * 10.0**place) - place


def rounded(value: float, places: int) -> str:
    """Return a number rounded to decimals, or for negative ones to tens, hundreds, ...."""
    return f"{round(value, places) + 0.0:.{max(places, 0)}f}"


def _kilobytes(method: MethodRun) -> float:
    return fmean(line.bytes_sent for line in method.rounds) / 1e3


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("accuracy", "accuracy", lambda m: m.last.accuracy),
        Column("macro-f1", "macro-F1", lambda m: m.last.macro_f1),
        Column("uar", "UAR", lambda m: m.last.uar),
        Column("worst", "worst device", lambda m: m.last.min_accuracy),
        Column("best", "best device", lambda m: m.last.max_accuracy),
        Column("own-shares", "at own label shares", lambda m: m.last.accuracy_own_shares),
        Column("missing", "some inputs missing", lambda m: m.last.accuracy_missing),
        Column("joules", "joules", lambda m: m.rounds[-1].total_j, share=False, more=False),
        Column(
            "measured-joules",
            "joules measured",
            lambda m: m.rounds[-1].total_measured_j,
            share=False,
            more=False,
        ),
        Column("kb", "kB per device and round", _kilobytes, share=False, more=False),
        Column("mb", "MB sent", lambda m: m.megabytes[m.rounds[-1].round], share=False, more=False),
        Column(
            "seconds",
            "simulated s",
            lambda m: m.rounds[-1].total_simulated_s,
            share=False,
            more=False,
        ),
    )
}
"""Columns by name: test accuracies at the end, and costs of all devices and rounds."""

METRICS = {"accuracy": "accuracy", "macro-f1": "macro-F1", "uar": "unweighted average recall"}
"""Columns that differences are of: means over devices, and their names in words."""

SEEDS, DIFFERENCE = "seeds", "difference"
"""Columns that are no number of a run: how many seeds there are, and the gain on the baseline."""

USUAL = (SEEDS, "accuracy", "macro-f1", "worst", "sets", "modalities", "joules", "mb", "seconds")


FAMILIES: dict[str, tuple[str, str, Callable[[MethodRun], dict[str, float]]]] = {
    "sets": ("set", "devices with {}", lambda m: m.last.accuracy_by_set),
    "modalities": ("modality", "from {} alone", lambda m: m.last.accuracy_by_modality),
    "without": ("without", "without {}", lambda m: m.last.accuracy_without),
}
"""Names that stand for a column each of what the runs have: prefix of one, heading and values."""


def find_columns(names: Sequence[str], methods: Sequence[MethodRun]) -> list[Column | str]:
    """Return the columns of these names, families as what the runs have.

    Parameters
    ----------
    names : sequence of str
        Of :data:`COLUMNS` and :data:`FAMILIES`, ``set=audio+image`` and so on for one of a family,
        and :data:`SEEDS` and :data:`DIFFERENCE`, which stay names.
    methods : sequence of MethodRun
        The runs.

    Raises
    ------
    ReportError
        There is no such column.
    """
    found: list[Column | str] = []
    for name in names:
        if name in COLUMNS:
            found.append(COLUMNS[name])
        elif name in (SEEDS, DIFFERENCE):
            found.append(name)
        else:
            found += _of_family(name, methods)
    return found


def _of_family(name: str, methods: Sequence[MethodRun]) -> list[Column]:
    asked, _, key = name.partition("=")
    for family, (prefix, title, table) in FAMILIES.items():
        if asked not in (family, prefix):
            continue
        keys = sorted({k for method in methods for k in table(method)})
        if key and key not in keys:
            raise ReportError(f"column {name!r}: the runs have {', '.join(keys) or 'none'}")
        return [
            Column(f"{prefix}={k}", title.format(k), partial(_entry, table, k))
            for k in keys
            if key in ("", k)
        ]
    known = ", ".join([SEEDS, DIFFERENCE, *COLUMNS, *FAMILIES])
    one = ", ".join(f"{prefix}=..." for prefix, _, _ in FAMILIES.values())
    raise ReportError(f"no column {name!r}; there are {known}, and {one} for one of the last")


def _entry(
    table: Callable[[MethodRun], dict[str, float]], key: str, method: MethodRun
) -> float | None:
    return table(method).get(key)
