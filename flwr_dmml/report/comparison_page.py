"""The page of a comparison: tables over seeds, curves on common axes, significance."""

import re
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from ..tracking.records import RoundRecord
from .appendix import changed, runs
from .columns import METRICS
from .comparison import Comparison
from .curves import COSTS, Band, Line, number, plot
from .grouping import Group, differs
from .paired import LEVEL
from .parts import Figure, Section, Text
from .reading import MethodRun
from .summary import settings

Place = tuple[int, Group]
"""A group and the number of its row, which gives it its colour."""


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return the sections of a comparison.

    Parameters
    ----------
    comparison : Comparison
        From :func:`.comparison.compare_runs`.
    """
    groups = comparison.groups
    accuracy: list[Figure] = []
    apart: list[Figure] = []
    for i, block in enumerate(comparison.blocks):
        places = [(comparison.rows.index(g.row), g) for g in groups if g.block == block]
        prefix, words = _of_block(comparison, i, block)
        accuracy += [f for cost in COSTS if (f := _curve(places, cost, prefix, words))]
        apart += _by_sensors(places, prefix, words)
    every = {key: value for group in groups for key, value in group.settings.items()}
    _, rest = settings({k: value for k, value in every.items() if not differs(k, groups)})
    return [
        Section(
            "results-section",
            "Results",
            f"Baseline: {comparison.baseline} ({comparison.why}). A dash or a missing ± means that "
            "there is no such value, or one seed only.",
            [comparison.results],
        ),
        *_tested(comparison),
        Section(
            "curves",
            "Accuracy and what it cost",
            "Lines: means over seeds. Bands: one standard deviation over seeds to each side.",
            accuracy,
        ),
        Section(
            "sensors", "Accuracy by sensors", "On the same axis, so that figures compare.", apart
        ),
        Section(
            "runs-section",
            "Runs and settings",
            "What the groups are made of. Their labels name the settings in which they differ.",
            [runs(groups), changed(groups), rest],
        ),
    ]


def _of_block(comparison: Comparison, number: int, block: str) -> tuple[str, str]:
    """Return what the names and the captions of a block's figures begin with."""
    if not block:
        return "", ""
    slug = re.sub(r"[^\w.-]+", "-", block)
    same = [re.sub(r"[^\w.-]+", "-", other) for other in comparison.blocks].count(slug) > 1
    return f"{slug}-{number}-" if same else f"{slug}-", f"{comparison.by} = {block}. "


def _tested(comparison: Comparison) -> list[Section]:
    table, what = comparison.differences, METRICS[comparison.metric.name]
    if table is None:
        return []
    text = (
        "The interval assumes normal differences. The sign-flip test asks how often chance alone, "
        "which may turn the sign of every difference, does as much; from 6 seeds on its p can be "
        f"below {LEVEL}."
    )
    if comparison.tests > 1:
        text += (
            f" These are {comparison.tests} tests; each p is its own, so compare it with {LEVEL} / "
            f"{comparison.tests} = {LEVEL / comparison.tests:.2g} (Bonferroni)."
        )
    lead = f"Differences of the mean {what} over devices, in percentage points, paired by seed."
    return [Section("significance", "Is it chance?", lead, [table, Text(text)])]


def _curve(places: Sequence[Place], cost: str, prefix: str, words: str) -> Figure | None:
    x_title, x_value = COSTS[cost]
    if not any(x_value(m, m.rounds[-1]) > 0 for _, group in places for m in group.methods):
        return None
    parts: list[Line | Band] = []
    for i, group in places:
        parts += _seeds(group, i, x_value, lambda line: line.accuracy)
    caption = f"{words}Test accuracy, mean over devices, over {x_title}."
    name = f"{prefix}accuracy-{cost}"
    return plot(name, caption, parts, x_title=x_title, y_title="test accuracy")


def _by_sensors(places: Sequence[Place], prefix: str, words: str) -> list[Figure]:
    """Return a figure for each set of modalities, and for each modality alone."""
    lasts = [method.last for _, group in places for method in group.methods]
    sets = sorted({name for last in lasts for name in last.accuracy_by_set})
    alone = sorted({name for last in lasts for name in last.accuracy_by_modality})
    figures = [
        (f"set-{i}", f"Devices with {name}", _of_set(name)) for i, name in enumerate(sets)
    ] + [
        (f"modality-{i}", f"From {name} alone", _of_modality(name)) for i, name in enumerate(alone)
    ]
    found = []
    for name, title, value in figures:
        parts: list[Line | Band] = []
        for i, group in places:
            parts += _seeds(group, i, COSTS["rounds"][1], value)
        if parts:
            caption, axis = f"{words}{title}: test accuracy.", {"range": [0, 1.02]}
            figure = plot(
                prefix + name,
                caption,
                parts,
                x_title="round",
                y_title="test accuracy",
                y_axis=axis,
            )
            found.append(figure)
    return found


def _of_set(name: str) -> Callable[[RoundRecord], float | None]:
    return lambda line: line.accuracy_by_set.get(name)


def _of_modality(name: str) -> Callable[[RoundRecord], float | None]:
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
        parts.append(Band(group.row, x, low, high, index))
    return [*parts, Line(group.row, x, mean.tolist(), index, index)]
