"""The comparison of groups of runs: tables over seeds, curves on common axes, significance."""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from ..tracking.records import RoundRecord
from .comparison import METRICS, Group, compare_groups, mean_std
from .curves import COSTS, Band, Line, number, plot
from .parts import Figure, Section, Table, Text
from .reading import MethodRun
from .summary import settings

Value = Callable[[MethodRun], float | None]
COLUMNS: tuple[tuple[str, str, Value], ...] = (
    ("mean accuracy", ".3f", lambda m: m.last.accuracy),
    ("macro-F1", ".3f", lambda m: m.last.macro_f1),
    ("worst device", ".3f", lambda m: min(number(n.accuracy) for n in m.last.evaluated)),
    ("joules", ".4g", lambda m: m.rounds[-1].total_j),
    ("MB sent", ".4g", lambda m: m.megabytes[m.rounds[-1].round]),
    ("simulated s", ".4g", lambda m: m.rounds[-1].total_simulated_s),
)


def _over_seeds(group: Group, value: Value, form: str) -> str:
    found = mean_std([value(method) for method in group.methods])
    if found is None:
        return "-"
    mean, deviation = found
    return format(mean, form) + ("" if deviation is None else f" ± {format(deviation, form)}")


def results(groups: Sequence[Group]) -> Table:
    """Return final accuracies and costs of each group: mean and standard deviation over seeds."""
    sets = sorted({name for g in groups for m in g.methods for name in m.last.accuracy_by_set})
    alone = sorted(
        {name for g in groups for m in g.methods for name in m.last.accuracy_by_modality}
    )
    columns = [*COLUMNS[:3]]
    columns += [(f"devices with {s}", ".3f", _by_set(s)) for s in sets]
    columns += [(f"from {m} alone", ".3f", _by_modality(m)) for m in alone]
    columns += COLUMNS[3:]
    rows = [
        [g.label, str(len(g.runs)), *(_over_seeds(g, value, form) for _, form, value in columns)]
        for g in groups
    ]
    caption = "Test accuracy at the end, and costs of all devices: mean ± standard deviation"
    caption += " over seeds"
    return Table("results", caption, ["", "seeds", *(name for name, _, _ in columns)], rows)


def _by_set(name: str) -> Value:
    return lambda method: method.last.accuracy_by_set.get(name)


def _by_modality(name: str) -> Value:
    return lambda method: method.last.accuracy_by_modality.get(name)


def comparison_sections(groups: Sequence[Group], metric: str = "accuracy") -> list[Section]:
    """Return the sections of a comparison.

    Parameters
    ----------
    groups : sequence of Group
        From :func:`.comparison.group_runs`; the first one is what the others are tested against.
    metric : str
        A key of :data:`.comparison.METRICS`: what is tested.
    """
    figures = [_curve(groups, cost) for cost in COSTS]
    by_set = sorted({name for g in groups for m in g.methods for name in m.last.accuracy_by_set})
    alone = sorted(
        {name for g in groups for m in g.methods for name in m.last.accuracy_by_modality}
    )
    apart = [
        _key_curve(groups, f"set-{i}", f"Devices with {name}", _set_value(name))
        for i, name in enumerate(by_set)
    ] + [
        _key_curve(groups, f"modality-{i}", f"From {name} alone", _modality_value(name))
        for i, name in enumerate(alone)
    ]
    verdicts = [compare_groups(groups[0], other, metric).to_text() for other in groups[1:]]
    tested = Section(
        "significance",
        "Is it chance?",
        f"Differences of the mean {METRICS[metric]}, paired by seed. The sign-flip test asks how "
        "often chance alone, which may turn the sign of every difference, does as much.",
        [Text(_correction(METRICS[metric], len(verdicts)), verdicts)],
    )
    first, rest = settings(groups[0].settings)
    first.caption = f"Settings of {groups[0].label} that differ from the defaults"
    return [
        Section(
            "results-section",
            "Results",
            "A dash or a missing ± means that there is no such value, or one seed only.",
            [results(groups)],
        ),
        *([tested] if verdicts else []),
        Section(
            "curves",
            "Accuracy and what it cost",
            "Lines: means over seeds. Bands: one standard deviation over seeds to each side.",
            [figure for figure in figures if figure],
        ),
        Section(
            "sensors",
            "Accuracy by sensors",
            "On the same axis, so that figures compare.",
            [figure for figure in apart if figure],
        ),
        Section(
            "runs-section",
            "Runs and settings",
            "What the groups are made of. Their labels name the settings in which they differ.",
            [_runs(groups), first, rest],
        ),
    ]


def _correction(what: str, tests: int) -> str:
    first = f"Final mean {what} over devices, percentage points."
    if tests < 2:
        return first
    return (
        f"{first} These are {tests} tests; each p is its own, so compare it with 0.05 / {tests} = "
        f"{0.05 / tests:.2g} (Bonferroni)."
    )


def _runs(groups: Sequence[Group]) -> Table:
    rows = [
        [
            group.label,
            ", ".join(map(str, sorted(group.runs))),
            ", ".join(group.runs[seed][0].name for seed in sorted(group.runs)),
            "; ".join(group.incomplete) or "-",
        ]
        for group in groups
    ]
    return Table("runs", "Runs of each group", ["", "seeds", "runs", "left out"], rows, False)


def _curve(groups: Sequence[Group], cost: str) -> Figure | None:
    x_title, x_value = COSTS[cost]
    if not any(x_value(m, m.rounds[-1]) > 0 for g in groups for m in g.methods):
        return None
    parts: list[Line | Band] = []
    for i, group in enumerate(groups):
        parts += _seeds(group, i, x_value, lambda line: line.accuracy)
    caption = f"Test accuracy, mean over devices, over {x_title}."
    return plot(f"accuracy-{cost}", caption, parts, x_title=x_title, y_title="test accuracy")


def _key_curve(
    groups: Sequence[Group], name: str, title: str, value: Callable[[RoundRecord], float | None]
) -> Figure | None:
    parts: list[Line | Band] = []
    for i, group in enumerate(groups):
        parts += _seeds(group, i, COSTS["rounds"][1], value)
    axis = {"range": [0, 1.02]}
    caption = f"{title}: test accuracy."
    if not parts:
        return None
    return plot(name, caption, parts, x_title="round", y_title="test accuracy", y_axis=axis)


def _set_value(name: str) -> Callable[[RoundRecord], float | None]:
    return lambda line: line.accuracy_by_set.get(name)


def _modality_value(name: str) -> Callable[[RoundRecord], float | None]:
    return lambda line: line.accuracy_by_modality.get(name)


def _seeds(
    group: Group,
    index: int,
    x_value: Callable[[MethodRun, RoundRecord], float],
    y_value: Callable[[RoundRecord], float | None],
) -> list[Line | Band]:
    """Return a line and a band over the rounds in which every seed has a value."""
    tables = [
        {line.round: (x_value(m, line), number(y_value(line))) for line in m.evaluated}
        for m in group.methods
    ]
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    rounds = [r for r in rounds if all(np.isfinite(table[r][1]) for table in tables)]
    if not rounds:
        return []
    x = [fmean(table[r][0] for table in tables) for r in rounds]
    y = np.array([[table[r][1] for table in tables] for r in rounds])  # [round, seed]
    mean = y.mean(axis=1)
    parts: list[Line | Band] = []
    if len(tables) > 1:
        std = y.std(axis=1, ddof=1)
        low, high = (mean - std).tolist(), (mean + std).tolist()
        parts.append(Band(group.label, x, low, high, index))
    return [*parts, Line(group.label, x, mean.tolist(), index, index)]
