"""The numbers of one run as tables: final accuracies, devices, failures, settings."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ..settings import every_setting, find_parts
from ..tracking.records import RoundRecord
from ..tracking.tables import FAILURE_COLUMNS, FAILURES, failure_rows, in_common
from .lines import REVISION
from .parts import Folded, Table
from .reading import MethodRun, Run


def cell(value: float | None, form: str = ".3f") -> str:
    """Return a number as text, a dash for None."""
    return "-" if value is None else format(value, form)


def shared_devices(methods: Sequence[MethodRun]) -> dict[str, RoundRecord]:
    """Return each method's last evaluated round, cut to devices that all methods evaluated.

    A method without an evaluated round has no device in it, and takes none from the others.
    """
    evaluated = {method.name: method.last for method in methods if method.evaluated}
    found = in_common(evaluated) if evaluated else {}
    return {m.name: found.get(m.name, RoundRecord(m.last.round)) for m in methods}


def headline(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the headline numbers of each method: names and values."""
    cards = []
    for name, record in shared_devices(run.methods).items():
        method = next(m for m in run.methods if m.name == name)
        end = method.rounds[-1]
        measured_j = end.total_measured_j
        pairs = [
            ("mean accuracy", cell(record.accuracy)),
            ("worst device", cell(record.min_accuracy)),
            ("best device", cell(record.max_accuracy)),
            ("mean macro-F1", cell(record.macro_f1)),
            ("mean UAR", cell(record.uar)),
            ("joules spent", f"{end.total_j:.4g}"),
            *([("joules measured, computing", cell(measured_j, ".4g"))] * (measured_j is not None)),
            ("simulated seconds", f"{end.total_simulated_s:.4g}"),
            ("MB sent", f"{method.megabytes[end.round]:.4g}"),
            ("rounds", _rounds(end.round, run.num_rounds or end.round)),
            ("devices at the end", f"{len(method.end.finished)} of {len(method.end.begun)}"),
        ]
        cards.append((name, pairs))
    return cards


def _rounds(done: int, asked: int) -> str:
    """Return how many rounds were done, those of the final merge apart."""
    merging = f", and {done - asked} to merge" * (done > asked)
    return f"{min(done, asked)} of {asked}{merging}"


def final_accuracies(run: Run) -> Table:
    """Return the accuracies at the end, methods side by side, and what a second one gains."""
    records = shared_devices(run.methods)
    compared = list(records.values())
    honest = any(r.liars for r in compared)
    rows: list[tuple[str, list[float | None]]] = [
        ("honest devices, mean" if honest else "all devices, mean", [r.accuracy for r in compared]),
        ("worst device", [r.min_accuracy for r in compared]),
        ("best device", [r.max_accuracy for r in compared]),
        ("at a device's own label shares", [r.accuracy_own_shares for r in compared]),
        ("macro-F1, mean", [r.macro_f1 for r in compared]),
        ("unweighted average recall, mean", [r.uar for r in compared]),
    ]
    for name in dict.fromkeys(name for r in compared for name in r.accuracy_by_set):
        rows.append((f"devices with {name}", [r.accuracy_by_set.get(name) for r in compared]))
    for name in dict.fromkeys(name for r in compared for name in r.accuracy_by_modality):
        rows.append((f"from {name} alone", [r.accuracy_by_modality.get(name) for r in compared]))
    gain = len(compared) == 2
    text = []
    for name, values in rows:
        cells = [name, *map(cell, values)]
        if gain:
            a, b = values
            cells.append("-" if a is None or b is None else f"{100 * (b - a):+.1f}")
        text.append(cells)
    counted = max(len(record.by_partition) for record in compared)
    known = len({line.partition for m in run.methods for r in m.rounds for line in r.nodes})
    rounds = ", ".join(f"{name} round {record.round}" for name, record in records.items())
    which = "" if counted == known else "; devices that one method lost are in none of the figures"
    caption = f"Test accuracy at the end ({rounds}), {counted} of {known} devices{which}"
    head = ["", *records, *(["gain, points"] if gain else [])]
    return Table("final", caption, head, text)


def recalls(methods: Sequence[MethodRun]) -> Table | None:
    """Return each class's recall at the end, methods side by side; None where it is not known."""
    found = {method.name: method.confusion.recall for method in methods if method.confusion}
    if not found:
        return None
    by_class = list(zip_longest(*found.values()))
    names = methods[-1].labels(len(by_class))
    rows = [[name, *map(cell, values)] for name, values in zip(names, by_class, strict=True)]
    caption = "Recall of each class at the end, all devices together"
    return Table("recall", caption, ["class", *found], rows)


def devices(run: Run) -> Table:
    """Return a row for each device: sensors, samples, accuracies, and what it took."""
    finals = [{n.partition: n for n in method.last.nodes} for method in run.methods]
    described = next((m.devices for m in run.methods if m.devices), None)
    samples = {n.partition: n.num_train for n in described.nodes} if described else {}
    sensors = {n.partition: n.modalities for m in run.methods for r in m.rounds for n in r.nodes}
    main = run.methods[-1]
    lying = {n.partition for n in main.last.nodes if n.lies}
    spent: dict[int, float] = {}
    sent: dict[int, float] = {}
    left: dict[int, float | None] = {}
    for line in main.rounds:
        for node in line.nodes:
            spent[node.partition] = spent.get(node.partition, 0.0) + node.compute_j + node.radio_j
            sent[node.partition] = sent.get(node.partition, 0.0) + node.bytes_sent
            left[node.partition] = line.battery_j.get(node.partition)
    powered = any(value is not None for value in left.values())
    head = ["device", "sensors", *(["samples"] if samples else [])]
    head += [f"{m.name}, accuracy" for m in run.methods]
    calibrated = [
        i for i, m in enumerate(run.methods) if any(n.ece is not None for n in m.last.nodes)
    ]
    for i in calibrated:
        head += [f"{run.methods[i].name}, {what}" for what in ("ECE uncalibrated", "ECE")]
    head += [f"{main.name}, joules", f"{main.name}, MB sent"]
    head += [f"{main.name}, battery J"] * powered
    rows = []
    for partition in sorted(sensors):
        row = [str(partition), sensors[partition] + ", lies" * (partition in lying)]
        row += [str(samples.get(partition, "-"))] if samples else []
        nodes = [final.get(partition) for final in finals]
        row += [cell(node.accuracy if node else None) for node in nodes]
        for found in (nodes[i] for i in calibrated):
            errors = (found.ece_uncalibrated, found.ece) if found else (None, None)
            row += map(cell, errors)
        row.append(cell(spent.get(partition), ".4g"))
        row.append(cell(sent[partition] / 1e6 if partition in sent else None, ".4g"))
        row += [cell(left.get(partition), ".4g")] * powered
        rows.append(row)
    return Table("devices", "Every device at the end", head, rows)


def dropped(run: Run) -> Table | None:
    """Return whose numbers were dropped how often by honest devices; None where none were."""
    rows = []
    for method in run.methods:
        lost: dict[int, float] = {}
        by: dict[int, set[int]] = {}
        lying = {n.partition for line in method.rounds for n in line.nodes if n.lies}
        for line in method.rounds:
            for node in line.honest:
                for name, share in node.dropped.items():
                    lost[int(name)] = lost.get(int(name), 0.0) + share
                    by.setdefault(int(name), set()).add(node.partition)
        for j in sorted(lost):
            who = ", ".join(map(str, sorted(by[j])))
            lies = "yes" if j in lying else "no"
            often = lost[j] / (len(by[j]) * len(method.rounds))
            rows.append([str(j), method.name, lies, f"{often:.3f}", who])
    head = ["device", "method", "lies", "share dropped by each", "dropped by"]
    caption = "Devices whose numbers were dropped: mean over rounds, of those who have dropped any"
    return Table("dropped", caption, head, rows, numeric=False) if rows else None


def failures(run: Run) -> Table | None:
    """Return the devices that failed, in how many rounds and why at first."""
    rows = failure_rows({method.name: method.end for method in run.methods})
    return Table("failures", FAILURES, FAILURE_COLUMNS, rows, numeric=False) if rows else None


def claims(run: Run) -> Table | None:
    """Return what devices say of neighbours whose payloads they could not use."""
    rows = []
    for method in run.methods:
        said: dict[tuple[int, int], list[tuple[int, str]]] = {}
        for line in method.rounds:
            for node in line.nodes:
                for about, text in node.claims.items():
                    said.setdefault((node.partition, about), []).append((line.round, text))
        for (who, about), found in sorted(said.items()):
            first, text = found[0]
            rows.append([str(who), str(about), method.name, str(len(found)), str(first), text])
    head = ["device", "rejects from", "method", "rounds", "first in round", "what it said then"]
    caption = "What devices rejected; each row is the word of the device in front"
    return Table("claims", caption, head, rows, numeric=False) if rows else None


def defaults() -> dict[str, tuple[Any, str]]:
    """Return default and meaning of every setting that is known here."""
    known = every_setting(find_parts())
    return {key: (info.default, info.description or "") for key, info in known}


def settings(config: Mapping[str, Any]) -> tuple[Table, Folded]:
    """Return the settings that differ from their defaults, and the others folded away."""
    known = defaults()
    changed, usual = [], []
    for key, value in sorted(config.items()):
        if key not in known:
            changed.append([key, shown(value), "-", "not known to this version"])
            continue
        default, meaning = known[key]
        if value == default and isinstance(value, bool) == isinstance(default, bool):
            usual.append([key, shown(value), meaning])
        else:
            changed.append([key, shown(value), shown(default), meaning])
    caption = f"Settings that differ from the defaults ({len(changed)} of {len(config)})"
    head = ["setting", "value", "default", "meaning"]
    first = Table("settings", caption, head, changed, numeric=False)
    rest = Table(
        "defaults", "Settings at their defaults", [*head[:2], head[3]], usual, numeric=False
    )
    return first, Folded(f"{len(usual)} settings at their defaults", rest)


def shown(value: Any) -> str:
    """Return a setting's value as text: two quotes for an empty string."""
    return '""' if value == "" else value if isinstance(value, str) else json.dumps(value)


def provenance(run: Run) -> Table:
    """Return where the run is from: seed, time, command, versions, revision."""
    rows = [["seed", shown(run.config.get("seed", "-"))], ["folder", run.name]]
    if run.info:
        rows += [["created", run.info.created or "-"], ["platform", run.info.platform or "-"]]
        rows += [["command", run.info.command]] if run.info.command else []
        rows += [["resumed with other versions", start.created] for start in run.info.resumed]
        rows += [[name, text] for name, text in ({REVISION: "-"} | run.info.made_with).items()]
    return Table("provenance", "Where this run is from", ["what", "value"], rows, numeric=False)
