"""Group runs by everything but the seed, and sum each group up over its seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np

from ..base.libraries import needed
from ..settings import find_parts
from .reading import MethodRun, ReportError, Run
from .summary import defaults

NOT_COMPARED = ("seed", "method", "compare-with", "run-name", "run-dir")
"""Settings that do not tell groups apart: seed and names; methods are apart anyway."""

WHERE = (
    "engine",
    "workers",
    "ray-address",
    "wait-timeout",
    "round-timeout",
    "min-devices",
    "report-classes",
    "data-cache",
    "exchange.sealed",
    "track-with",
)
"""Settings that results do not depend on: where a run is computed, and what it tells of itself."""

METRICS = {"accuracy": "accuracy", "macro-f1": "macro-F1", "uar": "unweighted average recall"}
"""Metrics that groups are tested on: the option, and its name in words."""

EXACT = 16
"""Up to so many seeds all sign flips are gone through; beyond, 100,000 are drawn."""


@dataclass
class Group:
    """Runs of one method that differ in the seed only.

    ``runs`` has the complete run of each seed; ``incomplete`` names the others.
    """

    method: str
    settings: dict[str, Any]
    label: str = ""
    runs: dict[int, tuple[Run, MethodRun]] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[MethodRun]:
        """The complete runs, by seed."""
        return [self.runs[seed][1] for seed in sorted(self.runs)]


def mean_std(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation (of a sample, n - 1) of what is known; None without any.

    The deviation of a single value is None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return fmean(known), stdev(known) if len(known) > 1 else None


@dataclass
class Verdict:
    """Paired differences of two groups over their common seeds, in percentage points.

    ``p`` is of the two-sided sign-flip permutation test, ``smallest_p`` the least it can be with so
    many seeds; ``interval`` is the 95 % interval of the paired t distribution (two seeds or more).
    """

    base: str
    other: str
    seeds: list[int]
    difference: float
    p: float | None
    smallest_p: float | None
    interval: tuple[float, float] | None

    def to_text(self) -> str:
        """Say in words what was found, and what so few seeds cannot show."""
        pair = f"{self.other} against {self.base}"
        count = len(self.seeds)
        if not count:
            return f"{pair}: no seed in common, so nothing can be paired."
        gain = f"{pair}: {self.difference:+.2f} points on {count} common seed{'s' * (count > 1)}"
        if self.p is None or self.interval is None or self.smallest_p is None:
            return f"{gain}. One seed says nothing about chance."
        low, high = self.interval
        text = (
            f"{gain}, 95 % interval {low:+.2f} to {high:+.2f} (paired t), sign-flip "
            f"p = {self.p:.3g}."
        )
        if self.smallest_p > 0.05:
            return (
                f"{text} Too few seeds: with {count} the smallest possible p is "
                f"{self.smallest_p:.3g}, so this test cannot reach 0.05; 6 seeds can. The interval "
                "assumes normal differences."
            )
        return text + (
            " Unlikely to be chance alone." if self.p <= 0.05 else " It may well be chance."
        )


def group_runs(runs: Sequence[Run], labels: Sequence[str] = ()) -> tuple[list[Group], list[str]]:
    """Group the methods of runs by all settings but the seed.

    Options of other methods do not tell groups apart, nor does where a run was computed.

    Parameters
    ----------
    runs : sequence of Run
        At least two.
    labels : sequence of str
        Names of the groups in their order; empty names them by what they differ in.

    Returns
    -------
    tuple of list of Group and list of str
        The groups in order of appearance, and warnings: incomplete or repeated runs, different
        data sets.

    Raises
    ------
    ReportError
        Fewer than two runs, a wrong number of labels, or no complete run in a group.
    """
    if len(runs) < 2:
        raise ReportError("nothing to compare: give two runs or more (report shows a single one)")
    groups: dict[str, Group] = {}
    warnings: list[str] = []
    parts = find_parts()
    known = parts.methods.keys() | {method.name for run in runs for method in run.methods}
    known -= parts.rules.keys()  # a rule bears on every method that is run with it
    usual = {key: value for key, (value, _) in defaults().items()}
    for run in runs:
        for method in run.methods:
            settings = _relevant(usual | run.config, method.name, known)
            key = json.dumps([method.name, settings], sort_keys=True, default=str)
            group = groups.setdefault(key, Group(method.name, settings))
            _add(group, run, method, warnings)
    found = list(groups.values())
    _name(found, labels)
    for group in found:
        warnings += [f"{group.label}: {text}; left out of all figures" for text in group.incomplete]
    if empty := [group.label for group in found if not group.runs]:
        raise ReportError(f"nothing to compare: no complete run of {', '.join(empty)}")
    if len(sets := sorted({str(group.settings.get("dataset")) for group in found})) > 1:
        warnings.append(f"different data sets ({', '.join(sets)}): accuracies do not compare")
    return found, warnings


def _relevant(config: dict[str, Any], method: str, methods: set[str]) -> dict[str, Any]:
    """Return the settings that bear on a method's result."""
    others = methods - {method}
    return {
        key: value
        for key, value in sorted(config.items())
        if key not in NOT_COMPARED + WHERE
        and not ("." in key and key.partition(".")[0] in others)
        and not key.startswith(("checkpoint", "resume"))
    }


def _add(group: Group, run: Run, method: MethodRun, warnings: list[str]) -> None:
    seed = run.config.get("seed", 0)
    if not run.complete(method) or not method.evaluated:
        done = method.rounds[-1].round
        group.incomplete.append(f"{run.name}, {done} of {run.num_rounds} rounds")
    elif seed in group.runs:
        first, other = group.runs[seed]
        if other.last != method.last:
            warnings.append(
                f"{first.name} and {run.name} have the same settings and seed ({method.name}, "
                f"seed {seed}) but not the same result; the first one counts"
            )
    else:
        group.runs[seed] = (run, method)


def _name(groups: list[Group], labels: Sequence[str]) -> None:
    """Label groups by method and by the settings in which they differ."""
    for group in groups:
        differ = [
            key
            for key in group.settings
            if _varied(key, [other.settings for other in groups if key in other.settings])
        ]
        parts = [f"{key}={group.settings[key]}" for key in differ]
        group.label = ", ".join([group.method, *parts])
    if labels and len(labels) != len(groups):
        listed = "; ".join(group.label for group in groups)
        raise ReportError(f"{len(labels)} labels for {len(groups)} groups: {listed}")
    if len(set(labels)) < len(labels):
        raise ReportError("two groups have the same label")
    for group, text in zip(groups, labels, strict=bool(labels)):
        group.label = text


def _varied(key: str, settings: Sequence[dict[str, Any]]) -> bool:
    return len({json.dumps(s[key], default=str) for s in settings}) > 1


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p of the paired sign-flip permutation test of a mean of zero.

    The share of all ``2^n`` ways to flip the signs whose mean is at least as far from zero as the
    observed one (Fisher's randomisation test). Beyond :data:`EXACT` differences 100,000 flips are
    drawn with a fixed seed, and the observed one is counted as one more.
    """
    values = np.asarray(differences, float)
    observed = abs(values.sum())
    reach = observed - 1e-9 * np.abs(values).sum()  # rounding must not lose a tie
    if len(values) <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= reach).mean())
    generator = np.random.default_rng(0)
    drawn = generator.choice((1.0, -1.0), size=(100_000, len(values))) @ values
    return float(((np.abs(drawn) >= reach).sum() + 1) / (len(drawn) + 1))


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of two or more paired differences."""
    with needed("scipy"):
        from scipy.stats import t
    half = t.ppf(0.975, len(differences) - 1) * stdev(differences) / sqrt(len(differences))
    return fmean(differences) - half, fmean(differences) + half


def compare_groups(base: Group, other: Group, metric: str = "accuracy") -> Verdict:
    """Pair two groups over their common seeds by a metric at the end, mean over devices.

    Raises
    ------
    ReportError
        A run does not have the metric.
    """
    seeds = sorted(set(base.runs) & set(other.runs))
    differences = [100 * (_final(other, s, metric) - _final(base, s, metric)) for s in seeds]
    enough = len(seeds) > 1
    smallest = 2.0 ** (1 - len(seeds)) if len(seeds) <= EXACT else 1 / 100_001
    return Verdict(
        base.label,
        other.label,
        seeds,
        fmean(differences) if differences else 0.0,
        sign_flip(differences) if enough else None,
        smallest if enough else None,
        t_interval(differences) if enough else None,
    )


def _final(group: Group, seed: int, metric: str) -> float:
    run, method = group.runs[seed]
    value: float | None = getattr(method.last, metric.replace("-", "_"))
    if value is None:
        raise ReportError(f"metric {metric}: {run.name} does not have it ({group.label})")
    return value
