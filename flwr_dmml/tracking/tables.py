"""Tables for the end of a run, as plain text that any log can carry."""

from collections.abc import Mapping
from io import StringIO

from rich.console import Console
from rich.table import Table

from .ending import MethodEnd
from .records import RoundRecord


def render(table: Table) -> str:
    """Return a rich table as text without colours, 100 columns wide; no cell is read as markup."""
    out = StringIO()
    Console(file=out, width=100, color_system=None, markup=False).print(table)
    return out.getvalue().rstrip("\n")


def final_table(results: Mapping[str, RoundRecord], begun: int = 0) -> Table:
    """Return the accuracies of each method's last round, and what each took, side by side.

    With two methods a last column says what the second gains over the first, in points. Devices
    that one of the methods lost are in none of the accuracies.

    Parameters
    ----------
    results : mapping of str to RoundRecord
        The last round of each method, in the order of the columns.
    begun : int (default: 0)
        Devices that took part, where more than are in these rounds.
    """
    compared = in_common(results)
    counted = max(len(r.by_partition) for r in compared.values())
    known = max(begun, len(set[int]().union(*(r.by_partition for r in results.values()))))
    title = f"Test accuracy at the end, {counted} of {known} devices"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for method in results:
        table.add_column(method, justify="right")
    gain = len(results) == 2
    if gain:
        table.add_column("gain, points", justify="right")
    for label, values in _rows(list(compared.values())):
        cells = ["-" if v is None else f"{v:.3f}" for v in values]
        if gain:
            a, b = values
            cells.append("-" if a is None or b is None else f"{100 * (b - a):+.1f}")
        table.add_row(label, *cells)
    table.add_section()
    for label, figures in _costs(list(results.values())):
        table.add_row(label, *("-" if x is None else f"{x:.4g}" for x in figures))
    return table


def _costs(records: list[RoundRecord]) -> list[tuple[str, list[float | None]]]:
    """Return what each method took, all its devices and rounds together."""
    measured = [r.total_measured_j for r in records]
    by_meters = [("joules measured, computing", measured)] if any(measured) else []
    return [
        ("joules spent", [r.total_j for r in records]),
        *by_meters,
        ("seconds on the devices", [r.total_simulated_s for r in records]),
        ("Mbit on the air", [r.total_bits / 1e6 for r in records]),
    ]


def in_common(results: Mapping[str, RoundRecord]) -> dict[str, RoundRecord]:
    """Cut every record to the devices that all methods evaluated, so that like meets like."""
    evaluated = [
        {p for p, node in r.by_partition.items() if node.accuracy is not None}
        for r in results.values()
    ]
    common = set.intersection(*evaluated)
    return {
        name: RoundRecord(r.round, {p: n for p, n in r.by_partition.items() if p in common})
        for name, r in results.items()
    }


def _rows(records: list[RoundRecord]) -> list[tuple[str, list[float | None]]]:
    liars = [r.liars for r in records]
    every = "honest devices" if any(liars) else "all devices"
    rows: list[tuple[str, list[float | None]]] = [
        (f"{every}, mean", [r.accuracy for r in records]),
        ("worst device", [r.min_accuracy for r in records]),
        ("best device", [r.max_accuracy for r in records]),
    ]
    if any(r.macro_f1 is not None for r in records):
        rows.append(("macro-F1, mean", [r.macro_f1 for r in records]))
    if any(liars):
        near = [None if x is None else x.accuracy_near for x in liars]
        far = [None if x is None else x.accuracy_far for x in liars]
        rows += [("near a liar, mean", near), ("far from liars, mean", far)]
    if any(r.accuracy_own_shares is not None for r in records):
        own = [r.accuracy_own_shares for r in records]
        rows.append(("at a device's own label shares, mean", own))
    for name in dict.fromkeys(name for r in records for name in r.accuracy_by_set):
        values = [r.accuracy_by_set.get(name) for r in records]
        rows.append((f"devices with {name}, mean", values))
    for name in dict.fromkeys(name for r in records for name in r.accuracy_by_modality):
        values = [r.accuracy_by_modality.get(name) for r in records]
        rows.append((f"from {name} alone, mean over owners", values))
    if any(len(node.accuracy_without) > 2 for r in records for node in r.nodes):
        for name in dict.fromkeys(name for r in records for name in r.accuracy_without):
            values = [r.accuracy_without.get(name) for r in records]
            rows.append((f"without {name}, mean over owners", values))
    if any(r.accuracy_missing is not None for r in records):
        rows.append((f"{every}, some inputs missing", [r.accuracy_missing for r in records]))
    return rows


def devices_table(results: Mapping[str, RoundRecord]) -> Table:
    """Return every device's accuracy under each method."""
    table = Table(title="Test accuracy of each device", title_justify="left")
    table.add_column("device", justify="right")
    table.add_column("sensors")
    for method in results:
        table.add_column(method, justify="right")
    partitions = sorted(set.union(*(set(r.by_partition) for r in results.values())))
    for partition in partitions:
        nodes = [r.by_partition.get(partition) for r in results.values()]
        known = next(n for n in nodes if n is not None)
        sensors = known.modalities + ", lies" * bool(known.lies)
        shown = ["-" if n is None or n.accuracy is None else f"{n.accuracy:.3f}" for n in nodes]
        table.add_row(str(partition), sensors, *shown)
    return table


FAILURES = "Devices that failed in a round"
FAILURE_COLUMNS = "device", "method", "rounds failed", "first in round", "reason then"


def failure_rows(ends: Mapping[str, MethodEnd]) -> list[list[str]]:
    """Return a row of :data:`FAILURE_COLUMNS` for each device and method in which it failed."""
    return [
        [str(partition), method, str(own.rounds), str(own.first), own.reason]
        for method, end in ends.items()
        for partition, own in end.failures.items()
    ]


def failures_table(ends: Mapping[str, MethodEnd]) -> Table:
    """Return the devices that failed, in how many rounds and why at first."""
    table = Table(title=FAILURES, title_justify="left")
    for name in FAILURE_COLUMNS:
        table.add_column(name)
    for row in failure_rows(ends):
        table.add_row(*row)
    return table


ONE_SEED = "One seed cannot tell a gain from chance: run several (flwr-dmml sweep)."


def verdict(baseline: str, method: str, results: Mapping[str, RoundRecord]) -> str:
    """Say how many devices score higher with ``method``, and what a single run does not show."""
    compared = in_common({baseline: results[baseline], method: results[method]})
    before, after = compared[baseline], compared[method]
    if before.accuracy is None or after.accuracy is None:
        return f"{method} against {baseline}: no device finished with both"
    pairs = zip(before.honest, after.honest, strict=True)
    better = sum((b.accuracy or 0.0) > (a.accuracy or 0.0) for a, b in pairs)
    gain = 100 * (after.accuracy - before.accuracy)
    rounds = f"{after.round} round" + "s" * (after.round > 1)
    return (
        f"{method} against {baseline} after {rounds}: {gain:+.1f} points on the mean over devices, "
        f"{better} of {len(before.honest)} devices score higher. {ONE_SEED}"
    )
