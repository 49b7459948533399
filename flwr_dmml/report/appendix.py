"""How the runs of a comparison were made: commands, settings, versions and the energy model."""

import shlex
from collections.abc import Sequence
from itertools import pairwise

from ..energy.devices import PROFILES
from .comparison import Comparison
from .grouping import Group
from .parts import Table, latex
from .reading import Run
from .summary import defaults, shown

WIDTH = 76
"""Characters of a line of a command: what fits a line in small print."""

ENERGY = "energy.", "wireless."
"""Prefixes of the settings of the energy model."""

BILLED = (
    r"An iteration of $c$ clock cycles at $f$\,Hz takes $\kappa c f^2$ joules and $c / f$ seconds; "
    r"$\kappa f^3$ is what the processor draws above idle. $c$ is the number of floating-point "
    "operations, counted on the model, over those of a cycle. Evaluation, mixing, receiving and "
    "idling are not billed."
)


def runs_of(groups: Sequence[Group]) -> list[Run]:
    """Return the runs of groups, each once."""
    found = {run.path: run for group in groups for _, (run, _) in sorted(group.runs.items())}
    return list(found.values())


def runs(groups: Sequence[Group]) -> Table:
    """Return which runs the groups are made of."""
    rows = [
        [
            group.label,
            ", ".join(map(str, sorted(group.runs))),
            ", ".join(group.runs[seed][0].name for seed in sorted(group.runs)),
            "; ".join(group.incomplete) or "-",
        ]
        for group in groups
    ]
    head = ["", "seeds", "runs", "incomplete, left out"]
    return Table("runs", "Runs of each group", head, rows, numeric=False)


def changed(groups: Sequence[Group]) -> Table:
    """Return the settings that are not at their defaults, and which groups have which value."""
    known = defaults()
    keys = sorted({key for group in groups for key in group.settings})
    rows = []
    for key in keys:
        default = shown(known[key][0]) if key in known else "-"
        value = _value(groups, key)
        if value != default:
            rows.append([key, value, default])
    caption = "Settings that differ from the defaults, seed and method aside"
    return Table("settings", caption, ["setting", "value", "default"], rows, numeric=False)


def _value(groups: Sequence[Group], key: str) -> str:
    """Return the value of a setting; where groups differ, each with the groups that have it."""
    having: dict[str, list[str]] = {}
    for group in groups:
        if key in group.settings:
            having.setdefault(shown(group.settings[key]), []).append(group.label)
    if len(having) == 1:
        return next(iter(having))
    return "; ".join(f"{value} ({'; '.join(labels)})" for value, labels in having.items())


def versions(groups: Sequence[Group]) -> Table:
    """Return the versions and machines that runs were made with, each with how many runs."""
    found: dict[str, list[str]] = {}
    for run in runs_of(groups):
        if run.info is None:
            continue
        for name, version in run.info.made_with.items():
            found.setdefault(name, []).append(version)
        found.setdefault("platform", []).append(run.info.platform or "-")
    rows = [[name, _counted(texts)] for name, texts in found.items()]
    return Table("versions", "Versions", ["what", "version"], rows, numeric=False)


def _counted(texts: Sequence[str]) -> str:
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        return different[0]
    return "; ".join(f"{text} ({texts.count(text)} runs)" for text in different)


def devices(groups: Sequence[Group]) -> Table:
    """Return the kinds of devices that the energy model has in these groups."""
    named = ",".join(str(group.settings.get("energy.devices", "")) for group in groups)
    kinds = dict.fromkeys(name.strip() for name in named.split(","))
    rows = [
        [
            profile.name,
            f"{profile.frequency_hz / 1e9:g}",
            f"{profile.dynamic_power_w:.3g}",
            f"{profile.flops_per_cycle:g}",
            f"{profile.tx_power_w:g}",
            profile.source,
        ]
        for profile in (PROFILES[name] for name in kinds if name in PROFILES)
    ]
    head = ["device", "GHz", "W above idle", "FLOPs a cycle", "W to send", "from"]
    return Table("profiles", "Devices of the energy model", head, rows, numeric=False)


def energy(groups: Sequence[Group]) -> Table:
    """Return the settings of the energy model, those at their defaults as well."""
    keys = {key for group in groups for key in group.settings if key.startswith(ENERGY)}
    known = defaults()
    rows = [
        [key, _value(groups, key), known[key][1] if key in known else "-"] for key in sorted(keys)
    ]
    head = ["setting", "value", "meaning"]
    return Table("energy", "Settings of the energy model", head, rows, numeric=False)


def commands(groups: Sequence[Group]) -> str:
    r"""Return the commands of the runs, for a shell, in lines that end in ``\``."""
    lines = []
    for run in runs_of(groups):
        if run.info is not None and run.info.command:
            lines.append(_wrapped(shlex.split(run.info.command)))
        else:
            lines.append(f"# {run.name}: not started by flwr-dmml; its settings are below")
    return "\n".join(dict.fromkeys(lines))


def _wrapped(words: Sequence[str]) -> str:
    """Return a command in lines; an option and its value are in one."""
    pieces = [shlex.quote(words[0])]
    for last, word in pairwise(words):
        if last.startswith("--") and not word.startswith("--"):
            pieces[-1] += f" {shlex.quote(word)}"
        else:
            pieces.append(shlex.quote(word))
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) < WIDTH:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"    {piece}")
    return " \\\n".join(lines)


def to_latex(comparison: Comparison) -> str:
    """Return the appendix of a paper: how the runs of a comparison were made."""
    groups = comparison.groups
    return "\n".join(
        [
            r"% needs \usepackage{array,booktabs,longtable}",
            r"\section{How the runs were made}",
            *_long(runs(groups), (0.3, 0.1, 0.4, 0.2)),
            r"\subsection{Commands}",
            r"\begin{footnotesize}",
            r"\begin{verbatim}",
            commands(groups),
            r"\end{verbatim}",
            r"\end{footnotesize}",
            r"\subsection{Settings}",
            *_long(changed(groups), (0.3, 0.5, 0.2)),
            r"\subsection{Versions}",
            *_long(versions(groups), (0.25, 0.75)),
            r"\subsection{Energy model}",
            BILLED,
            "",
            *_long(devices(groups), (0.2, 0.1, 0.1, 0.12, 0.1, 0.38)),
            *_long(energy(groups), (0.3, 0.25, 0.45)),
            "",
        ]
    )


def _long(table: Table, widths: Sequence[float]) -> list[str]:
    """Return a table over as many pages as it takes; widths are shares of the line."""
    columns = "".join(
        rf">{{\raggedright\arraybackslash}}p{{\dimexpr {width}\linewidth-2\tabcolsep}}"
        for width in widths
    )
    rows = [" & ".join(map(latex, row)) + r" \\" for row in (table.head, *table.rows)]
    return [
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{latex(table.caption)}}}\\",
        r"\toprule",
        rows[0],
        r"\midrule",
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *rows[1:],
        r"\end{longtable}",
    ]
