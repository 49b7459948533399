"""A comparison of runs: the table of results, differences paired by seed, and both as records."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from .columns import (
    COLUMNS,
    DIFFERENCE,
    METRICS,
    SEEDS,
    USUAL,
    Column,
    decimals,
    find_columns,
    rounded,
)
from .doubts import doubts
from .grouping import Group, blocks_of, group_runs, rows_of
from .paired import Paired, standard_error
from .parts import Table
from .reading import ReportError, Run

BASELINES = ("dpsgd", "local")
"""Methods that are the baseline where nothing says otherwise, in this order."""


def compare_runs(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] = (),
    baseline: str = "",
    by: str = "",
    columns: Sequence[str] = USUAL,
    percent: bool = False,
    metric: str = "accuracy",
) -> tuple["Comparison", list[str]]:
    """Compare runs, those that differ in the seed only as one group.

    Parameters
    ----------
    runs : sequence of Run
        At least two, from :func:`.reading.read_runs`.
    labels : sequence of str
        Names of the rows in their order of appearance; empty names them by what they differ in.
    baseline : str
        What the others are paired with: a row's name, or a method that is one row only. Empty takes
        the method that a run names in ``compare-with``, else the first one there of
        :data:`BASELINES`, else the first row.
    by : str
        Setting that splits the table into blocks, such as "topology".
    columns : sequence of str
        See :func:`.columns.find_columns`.
    percent : bool
        Whether accuracies are shown in percent.
    metric : str
        A key of :data:`.columns.METRICS`: what differences are of.

    Returns
    -------
    tuple of Comparison and list of str
        The comparison, and warnings.

    Raises
    ------
    ReportError
        Nothing to compare, or no such baseline, setting, column or metric.
    """
    groups, warnings = group_runs(runs, labels, by)
    warnings += doubts(groups)
    if metric not in METRICS:
        raise ReportError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    for group in groups:
        for run, method in group.runs.values():
            if COLUMNS[metric].value(method) is None:
                raise ReportError(f"metric {metric}: {run.name} does not have it ({group.label})")
    row, why = _baseline(groups, baseline, runs)
    found = find_columns(columns, [method for group in groups for method in group.methods])
    comparison = Comparison(
        groups=sorted(groups, key=lambda group: group.row != row),
        baseline=row,
        why=why,
        by=by,
        columns=found,
        percent=percent,
        metric=COLUMNS[metric],
    )
    warnings += [
        f"{by} = {block}: no run of the baseline {row}, so nothing is paired there"
        for block in comparison.blocks
        if comparison.base_of(block) is None
    ]
    return comparison, warnings


def _baseline(groups: Sequence[Group], asked: str, runs: Sequence[Run]) -> tuple[str, str]:
    """Return the row that the others are paired with, and why it is that one."""
    rows = rows_of(groups)
    of_method: dict[str, list[str]] = {}
    for group in groups:
        if group.row not in of_method.setdefault(group.method, []):
            of_method[group.method].append(group.row)
    if asked in rows:
        return asked, "asked for"
    if asked:
        if len(named := of_method.get(asked, [])) == 1:
            return named[0], "asked for"
        which = "is several rows" if named else "is no row"
        raise ReportError(f"baseline = {asked!r}: {which}; choose one of {'; '.join(rows)}")
    for run in runs:
        if named := of_method.get(str(run.config.get("compare-with")), []):
            return named[0], "the method that compare-with names"
    for method in BASELINES:
        if named := of_method.get(method, []):
            return named[0], f"the method {method}, since no run names one in compare-with"
    return rows[0], "the first one, since no run names one in compare-with"


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side.

    Attributes
    ----------
    groups : list of Group
        Those of the baseline first.
    baseline, why : str
        The row that the others are paired with, and why it is that one.
    by : str
        Setting that the blocks are made by; empty where there is one block.
    columns : list of Column or str
        See :func:`.columns.find_columns`.
    percent : bool
        Whether accuracies are shown in percent.
    metric : Column
        What differences are of.
    """

    groups: list[Group]
    baseline: str
    why: str
    by: str
    columns: list[Column | str]
    percent: bool
    metric: Column

    @property
    def rows(self) -> list[str]:
        """The names of the rows, the baseline's first."""
        return rows_of(self.groups)

    @property
    def blocks(self) -> list[str]:
        """The names of the blocks; one that is empty without ``by``."""
        return blocks_of(self.groups)

    def group(self, row: str, block: str) -> Group | None:
        """Return the group at a place of the table; None where nothing was run."""
        return next((g for g in self.groups if (g.row, g.block) == (row, block)), None)

    def base_of(self, block: str) -> Group | None:
        """Return the baseline in a block."""
        return self.group(self.baseline, block)

    def difference(self, group: Group, column: Column) -> Paired | None:
        """Return a group minus the baseline of its block; None for the baseline itself."""
        base = self.base_of(group.block)
        return None if base is None or base is group else _paired(base, group, column)

    def best(self, block: str, column: Column) -> list[Group]:
        """Return the group with the best mean in a block, and those that are not told from it.

        Those are groups whose paired 95 % interval to it holds zero. Nobody is the best where all
        have the same.
        """
        means = [
            (fmean(values), group)
            for group in self.groups
            if group.block == block and (values := list(_values(group, column).values()))
        ]
        if len({mean for mean, _ in means}) < 2:
            return []
        top, best = (max if column.more else min)(means, key=lambda pair: pair[0])
        return [
            group
            for mean, group in means
            if mean == top or _not_told_apart(_paired(best, group, column))
        ]

    @cached_property
    def results(self) -> Table:
        """The table of results: a row for each name, the columns once for each block."""
        places = [(block, column) for block in self.blocks for column in self.columns]
        cells = [self._cells(block, column) for block, column in places]
        rows = [[row, *(of_column[row][0] for of_column in cells)] for row in self.rows]
        bold = {
            (i, j)
            for i, row in enumerate(self.rows)
            for j, of_column in enumerate(cells, start=1)
            if of_column[row][1]
        }
        spans = [(f"{self.by} = {block}", len(self.columns)) for block in self.blocks if block]
        titles = [c.title if isinstance(c, Column) else c for c in self.columns]
        head = ["", *titles * len(self.blocks)]
        return Table("results", self._caption(), head, rows, bold=frozenset(bold), spans=spans)

    def _cells(self, block: str, column: Column | str) -> dict[str, tuple[str, bool]]:
        """Return text of each row, and whether it is bold."""
        groups = {row: self.group(row, block) for row in self.rows}
        if column == SEEDS:
            return {row: (str(len(g.runs)) if g else "-", False) for row, g in groups.items()}
        if not isinstance(column, Column):
            pairs = {r: self.difference(g, self.metric) if g else None for r, g in groups.items()}
            gains = _Gains([pair for pair in pairs.values() if pair])
            return {row: (gains.cell(pair), False) for row, pair in pairs.items()}
        found = {row: list(_values(g, column).values()) if g else [] for row, g in groups.items()}
        errors = [standard_error(values) for values in found.values() if len(values) > 1]
        places = column.decimals(errors, self.percent)
        best = {group.row for group in self.best(block, column)}
        return {
            row: (_mean_and_spread(column, values, places, self.percent), row in best)
            for row, values in found.items()
        }

    @cached_property
    def differences(self) -> Table | None:
        """Every group against the baseline of its block; None where nothing can be paired."""
        rows = []
        for block in self.blocks:
            others = [(g, self.difference(g, self.metric)) for g in self.groups if g.block == block]
            pairs = [(group, pair) for group, pair in others if pair is not None]
            gains = _Gains([pair for _, pair in pairs])
            for group, pair in pairs:
                place = [group.row, block] if self.by else [group.row]
                p = "-" if pair.p is None else f"{pair.p:.2g}"
                seeds = str(len(pair.differences))
                rows.append(
                    [*place, gains.mean(pair), gains.interval(pair), p, seeds, pair.reading]
                )
        if not rows:
            return None
        head = ["", *([self.by] if self.by else []), "difference", "95 % interval", "p", "seeds"]
        caption = (
            f"Differences to {self.baseline} in the mean {METRICS[self.metric.name]}, in "
            "percentage points, paired by seed: interval of the paired t distribution, p of the "
            "two-sided sign-flip test"
        )
        return Table("differences", caption, [*head, "reading"], rows, numeric=False)

    @property
    def tests(self) -> int:
        """How many differences are tested for chance."""
        pairs = [self.difference(group, self.metric) for group in self.groups]
        return sum(pair is not None and pair.p is not None for pair in pairs)

    def _caption(self) -> str:
        named = {"dataset": "{}", "num-nodes": "{} devices", "num-server-rounds": "{} rounds"}
        values = {key: self.common(key) for key in named}
        setup = [named[key].format(value) for key, value in values.items() if value is not None]
        columns = [column for column in self.columns if isinstance(column, Column)]
        text = "Test accuracy at the end" + " in percent" * self.percent
        text += ", and costs of all devices" * any(not column.share for column in columns)
        text += f" ({', '.join(setup)})" if setup else ""
        seeds = {tuple(sorted(group.runs)) for group in self.groups}
        several = max(map(len, seeds)) > 1
        if several:
            which = f" {', '.join(map(str, min(seeds)))}" if len(seeds) == 1 else ""
            text += f": mean ± standard deviation over seeds{which}, with the digits that the "
            text += "standard error allows"
        else:
            text += ". One seed cannot tell a difference from chance"
        if any(self.best(block, column) for block in self.blocks for column in columns):
            text += ". Bold: the best of a column"
            text += ", and what a paired 95 % interval does not tell from it" * several
        if DIFFERENCE in self.columns:
            text += f". Difference: to {self.baseline} in the mean {METRICS[self.metric.name]}, in "
            text += "percentage points, paired by seed, with its 95 % interval"
        return text

    def common(self, key: str) -> Any:
        """Return the value of a setting that all groups share; None where they do not."""
        values = {json.dumps(group.settings.get(key), default=str) for group in self.groups}
        return self.groups[0].settings.get(key) if len(values) == 1 else None

    def records(self) -> list[dict[str, Any]]:
        """Return an entry for each group and column, in the unit of the table.

        ``values`` are the runs' by seed; ``difference``, ``low``, ``high`` and ``p`` those of the
        difference to the baseline; None for what there is not.
        """
        columns = [column for column in self.columns if isinstance(column, Column)]
        return [self._record(group, column) for group in self.groups for column in columns]

    def _record(self, group: Group, column: Column) -> dict[str, Any]:
        factor = column.factor(self.percent)
        values = {seed: value * factor for seed, value in _values(group, column).items()}
        mean_std = _mean_std(list(values.values()))
        pair = self.difference(group, column)
        low_high = pair.interval if pair else None
        unit = "" if not column.share else "%" if self.percent else "share"

        def scaled(value: float | None) -> float | None:
            return None if value is None else value * factor

        return {
            "row": group.row,
            "method": group.method,
            **({self.by: group.settings[self.by]} if self.by else {}),
            "column": column.name,
            "unit": unit,
            "seeds": len(values),
            "mean": mean_std[0],
            "std": mean_std[1],
            "best": group in self.best(group.block, column),
            "difference": scaled(pair.mean) if pair else None,
            "low": scaled(low_high[0]) if low_high else None,
            "high": scaled(low_high[1]) if low_high else None,
            "p": pair.p if pair else None,
            "values": values,
        }

    def to_csv(self) -> str:
        """Return the records as CSV, without the values of single seeds."""
        lines = [{k: v for k, v in record.items() if k != "values"} for record in self.records()]
        out = io.StringIO()
        writer = csv.DictWriter(out, lines[0].keys() if lines else ["row"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue()

    def to_json(self) -> str:
        """Return the records as JSON, with what they are paired with and which runs they are of."""
        groups = [
            {
                "row": group.row,
                "method": group.method,
                "settings": group.settings,
                "runs": {seed: run.name for seed, (run, _) in sorted(group.runs.items())},
            }
            for group in self.groups
        ]
        about = {"baseline": self.baseline, "by": self.by, "metric": self.metric.name}
        whole = about | {"groups": groups, "results": self.records()}
        return json.dumps(_finite(whole), indent=2, allow_nan=False, default=str) + "\n"


class _Gains:
    """Differences of a block as text: percentage points, with the digits that the noise allows."""

    def __init__(self, pairs: Sequence[Paired]) -> None:
        errors = [100 * standard_error(pair.values) for pair in pairs if len(pair.values) > 1]
        places = decimals(errors)
        self._places = 1 if places is None else min(places, 2)

    def _text(self, value: float) -> str:
        text = rounded(100 * value, self._places)
        return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else f"+{text}"

    def mean(self, pair: Paired) -> str:
        return "-" if pair.mean is None else self._text(pair.mean)

    def interval(self, pair: Paired) -> str:
        return "-" if pair.interval is None else " to ".join(map(self._text, pair.interval))

    def cell(self, pair: Paired | None) -> str:
        if pair is None or pair.interval is None:
            return "-" if pair is None else self.mean(pair)
        low, high = map(self._text, pair.interval)
        return f"{self.mean(pair)} [{low}, {high}]"


def _finite(value: Any) -> Any:
    """Return a value with null for numbers that do not exist."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _values(group: Group, column: Column) -> dict[int, float]:
    """Return the number of each seed's run that has it."""
    found = {seed: column.value(method) for seed, (_, method) in sorted(group.runs.items())}
    return {seed: value for seed, value in found.items() if value is not None}


def _paired(base: Group, other: Group, column: Column) -> Paired:
    return Paired.of(_values(base, column), _values(other, column))


def _not_told_apart(pair: Paired) -> bool:
    return pair.interval is not None and not pair.told_apart


def _mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation of a sample (n - 1), as far as there are any."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


def _mean_and_spread(
    column: Column, values: Sequence[float], places: int | None, percent: bool
) -> str:
    mean, deviation = _mean_std(values)
    if mean is None:
        return "-"
    text = column.text(mean, places, percent)
    return text if deviation is None else f"{text} ± {column.text(deviation, places, percent)}"
