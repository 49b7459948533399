"""Group runs by everything but the seed, and arrange the groups in rows and blocks of a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..settings import find_parts
from ..strategies.resuming import FREE
from ..tracking.ending import absence
from ..tracking.tables import in_common
from .reading import MethodRun, ReportError, Run
from .summary import defaults, shown

NOT_COMPARED = (FREE - {"data-path"}) | {
    "seed", "method", "compare-with", "report-classes", "keep-best", "exchange.sealed",
}  # fmt: skip
"""Settings that do not tell groups apart: the seed, methods, which are apart anyway, and what
results do not depend on. Another ``data-path`` may hold other data."""


@dataclass
class Group:
    """Runs of one method that differ in the seed only.

    Attributes
    ----------
    method : str
        Its name.
    settings : dict of str to Any
        Those that bear on its result.
    row, block : str
        Its place in a table: a name, and the value of the setting that blocks are made by; empty
        where there is one block.
    label : str
        Both in one.
    runs : dict of int to (Run, MethodRun)
        The complete run of each seed, its last round cut to the devices that it is compared by.
    incomplete : list of str
        The other runs.
    """

    method: str
    settings: dict[str, Any]
    row: str = ""
    block: str = ""
    label: str = ""
    runs: dict[int, tuple[Run, MethodRun]] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[MethodRun]:
        """The complete runs, by seed."""
        return [self.runs[seed][1] for seed in sorted(self.runs)]


def group_runs(
    runs: Sequence[Run], labels: Sequence[str] = (), by: str = ""
) -> tuple[list[Group], list[str]]:
    """Group the methods of runs by all settings but the seed.

    Options of other methods do not tell groups apart, nor does where a run was computed.

    With ``by`` groups that differ in that setting only are one row of a table, in another block.
    So are those that differ besides in what each block has one value of: options of the value, or a
    setting that goes with it, which a warning names.

    The last rounds of the runs of a seed in a block hold the devices that all of them evaluated.

    Parameters
    ----------
    runs : sequence of Run
        At least two.
    labels : sequence of str
        Names of the rows in their order; empty names them by what they differ in.
    by : str
        Key of the setting that splits the groups into blocks; empty makes one.

    Returns
    -------
    tuple of list of Group and list of str
        The groups in order of appearance, and warnings: incomplete or repeated runs, groups without
        a complete one, which are left out, lost devices, different data sets.

    Raises
    ------
    ReportError
        Fewer than two runs, a wrong number of labels, no complete run at all, or a method that does
        not have the setting ``by``.
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
    warnings += _arrange(found, by)
    _name(found, labels)
    for group in found:
        warnings += [f"{group.label}: {text}; left out of all figures" for text in group.incomplete]
    warnings += _cut_to_common(found, by)
    empty = [group.label for group in found if not group.runs]
    if len(empty) == len(found):
        raise ReportError(f"nothing to compare: no complete run of {', '.join(empty)}")
    warnings += [f"{label}: no complete run, so it is not compared" for label in empty]
    found = [group for group in found if group.runs]
    sets = sorted({str(group.settings.get("dataset")) for group in found})
    if len(sets) > 1 and by != "dataset":
        warnings.append(f"different data sets ({', '.join(sets)}): accuracies do not compare")
    return found, warnings


def _relevant(config: dict[str, Any], method: str, methods: set[str]) -> dict[str, Any]:
    """Return the settings that bear on a method's result."""
    others = methods - {method}
    return {
        key: value
        for key, value in sorted(config.items())
        if key not in NOT_COMPARED and not ("." in key and key.partition(".")[0] in others)
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


def _cut_to_common(groups: Sequence[Group], by: str) -> list[str]:
    """Cut the last rounds of each seed's runs to the devices that all evaluated; warn of lost ones.

    Runs in other blocks, or of other numbers of devices, have other devices.
    """
    warnings: list[str] = []
    together: dict[tuple[str, int, Any], list[Group]] = {}
    for group in groups:
        for seed, (run, method) in sorted(group.runs.items()):
            place = group.block, seed, group.settings.get("num-nodes")
            together.setdefault(place, []).append(group)
            if lost := absence(method.name, method.end.begun, method.end.missing):
                warnings.append(f"{run.name}: {lost}")
    for (block, seed, _), alike in together.items():
        lasts = {group.label: group.runs[seed][1].last for group in alike}
        cut = in_common(lasts)
        known = set[int]().union(*(record.by_partition for record in lasts.values()))
        counted = len(next(iter(cut.values())).by_partition)
        if counted == len(known):
            continue
        where = f"{by} = {block}, seed {seed}" if block else f"seed {seed}"
        if not counted:
            warnings.append(f"{where}: no device was evaluated in all runs at the end; left out")
        else:
            warnings.append(
                f"{where}: accuracies are those of {counted} of {len(known)} devices, which all "
                "runs evaluated at the end"
            )
        for group in alike:
            run, method = group.runs.pop(seed)
            if counted:
                group.runs[seed] = run, replace(method, compared=cut[group.label])
    return warnings


def _arrange(groups: Sequence[Group], by: str) -> list[str]:
    """Give groups their rows and blocks; warn of what goes with the blocks besides ``by``."""
    varied = [k for k in dict.fromkeys(k for g in groups for k in g.settings) if differs(k, groups)]
    bound: list[str] = []
    if by:
        if lacking := [group.method for group in groups if by not in group.settings]:
            raise ReportError(
                f"by = {by!r}: {lacking[0]} has no such setting; the groups differ in "
                f"{', '.join(varied) or 'nothing but the method'}"
            )
        for group in groups:
            group.block = shown(group.settings[by])
        blocks = [[g for g in groups if g.block == name] for name in blocks_of(groups)]
        bound = [key for key in varied if not any(differs(key, block) for block in blocks)]
    for group in groups:
        own = [key for key in group.settings if key in varied and key not in bound]
        parts = [f"{key}={shown(group.settings[key])}" for key in own]
        group.row = ", ".join([group.method, *parts])
    options = tuple(f"{name}." for name in blocks_of(groups))
    return [
        f"the blocks of {by} differ in {key}, too"
        for key in bound
        if key != by and not key.startswith(options)
    ]


def blocks_of(groups: Sequence[Group]) -> list[str]:
    """Return the names of the blocks, in order of appearance."""
    return list(dict.fromkeys(group.block for group in groups))


def rows_of(groups: Sequence[Group]) -> list[str]:
    """Return the names of the rows, in order of appearance."""
    return list(dict.fromkeys(group.row for group in groups))


def _name(groups: Sequence[Group], labels: Sequence[str]) -> None:
    """Give rows the names that were asked for, and label groups by row and block."""
    rows = rows_of(groups)
    if labels and len(labels) != len(rows):
        raise ReportError(f"{len(labels)} labels for {len(rows)} groups: {'; '.join(rows)}")
    if len(set(labels)) < len(labels):
        raise ReportError("two groups have the same label")
    named = dict(zip(rows, labels or rows, strict=True))
    for group in groups:
        group.row = named[group.row]
        group.label = f"{group.row}, {group.block}" if group.block else group.row


def differs(key: str, groups: Sequence[Group]) -> bool:
    """Return whether groups differ in a setting, as far as their methods have it."""
    having = {group.method for group in groups if key in group.settings}
    values = [group.settings.get(key) for group in groups if group.method in having]
    return len({json.dumps(value, default=str) for value in values}) > 1
