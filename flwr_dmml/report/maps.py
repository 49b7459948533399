"""Figures of devices: the graph, heat maps of iterations and classes, the confusion matrix."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np

from .lines import Confusion, Devices
from .parts import Figure, label
from .reading import MethodRun
from .theme import SYMBOLS, colour, whole_ticks

MOST_COLUMNS, MOST_ROWS = 250, 200
"""Cells of a heat map; more are averaged in groups of neighbours."""
MOST_CLASSES, CONFUSED = 100, 30
"""Classes of a confusion table that is drawn whole, and those that are drawn of a larger one."""


def _binned(values: np.ndarray, most: int, axis: int) -> tuple[np.ndarray, int]:
    """Average groups of neighbours until at most ``most`` are left; return the group's size too."""
    size = -(-values.shape[axis] // most)
    if size == 1:
        return values, 1
    starts = np.arange(0, values.shape[axis], size)
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=axis)
    count = np.add.reduceat(known.astype(float), starts, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), size


def _heat_map(z: Any, x: Any, y: Any, bar: str, hover: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "z": z,
        "x": x,
        "y": y,
        "colorscale": "Cividis",
        "hovertemplate": hover + "<extra></extra>",
        "hoverongaps": False,
        "colorbar": {"title": {"text": bar, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        **more,
    }


def _rows_height(rows: int) -> int:
    return int(np.clip(120 + 14 * rows, 260, 640))


def iterations(methods: Sequence[MethodRun]) -> list[Figure]:
    """Draw how often each owner of a modality updated its encoder in each round, on one scale."""
    counts = [
        u for m in methods for line in m.rounds for n in line.nodes for u in n.updates.values()
    ]
    scale = (min(counts), max(counts)) if counts else (0.0, 1.0)
    return [figure for method in methods for figure in _iterations(method, scale)]


def _iterations(method: MethodRun, scale: tuple[float, float]) -> list[Figure]:
    rounds = [line.round for line in method.rounds]
    modalities = sorted({m for line in method.rounds for n in line.nodes for m in n.updates})
    figures = []
    for i, modality in enumerate(modalities):
        owners = sorted(
            {n.partition for line in method.rounds for n in line.nodes if modality in n.updates}
        )
        place = {partition: row for row, partition in enumerate(owners)}
        values = np.full((len(owners), len(rounds)), np.nan)
        for column, line in enumerate(method.rounds):
            for node in line.nodes:
                if modality in node.updates:
                    values[place[node.partition], column] = node.updates[modality]
        values, width = _binned(values, MOST_COLUMNS, 1)
        values, height = _binned(values, MOST_ROWS, 0)
        names = [str(owners[row]) for row in range(0, len(owners), height)]
        caption = f"{method.name}: updates of the {modality} encoder in a round."
        if width > 1 or height > 1:
            caption += f" Each cell is a mean over {width} rounds and {height} devices."
        hover = "device %{y}, round %{x}: %{z}"
        data = _heat_map(values.tolist(), rounds[::width], names, "updates", hover)
        data |= {"zmin": scale[0], "zmax": scale[1] if scale[1] > scale[0] else scale[0] + 1}
        layout = {
            "xaxis": {"title": {"text": "round"}, **whole_ticks(max(rounds, default=0))},
            "yaxis": {"title": {"text": "device"}, "type": "category", "autorange": "reversed"},
        }
        name = f"iterations-{method.name}-{i}"
        figures.append(Figure(name, caption, [data], layout, _rows_height(len(names))))
    return figures


def classes(devices: Devices) -> Figure | None:
    """Draw how many training samples of each class each device has."""
    nodes = [node for node in devices.nodes if node.class_counts]
    if not nodes:
        return None
    width = max(len(node.class_counts) for node in nodes)
    counts = np.array([n.class_counts + [0] * (width - len(n.class_counts)) for n in nodes], float)
    counts, size = _binned(counts, MOST_ROWS, 0)
    counts, span = _binned(counts, MOST_COLUMNS, 1)
    names = [str(nodes[row].partition) for row in range(0, len(nodes), size)]
    caption = "Training samples of each class on each device."
    if size > 1 or span > 1:
        caption += f" Each cell is a mean over {size} devices and {span} classes."
    text = {"texttemplate": "%{z:.3~g}"} if len(names) <= 30 and width <= 12 else {}
    hover = "device %{y}, class %{x}: %{z:.4~g} samples"
    x = list(map(label, devices.labels(width)))[::span]
    data = _heat_map(counts.tolist(), x, names, "samples", hover, **text)
    layout = {
        "xaxis": {"title": {"text": "class"}, "type": "category"},
        "yaxis": {"title": {"text": "device"}, "type": "category", "autorange": "reversed"},
    }
    return Figure("classes", caption, [data], layout, _rows_height(len(names)) + 60)


def confusion(method: MethodRun, found: Confusion) -> Figure:
    """Draw which class was taken for which, as shares of the true class.

    Of more than :data:`MOST_CLASSES` classes the :data:`CONFUSED` are drawn that were confused
    most, by the samples that they lost or got; the others share a column.
    """
    counts = np.array(found.matrix)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1e-300), np.nan)
    recall = np.nanmean(np.diag(shares)) if np.isfinite(np.diag(shares)).any() else np.nan
    caption = (
        f"{method.name}, round {found.round}, all devices together: the share of each true class "
        f"(row) that was taken for each class (column). Mean of the diagonal: {recall:.3f}."
    )
    x = y = list(map(label, method.labels(len(counts))))
    if len(counts) > MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        most = np.sort(np.argsort(-wrong, kind="stable")[:CONFUSED])
        others = np.setdiff1d(np.arange(len(counts)), most)
        y = [y[c] for c in most]
        x = [*y, "others"]
        caption += f" Shown: the {CONFUSED} of {len(counts):,} classes that were confused most."
        counts, shares = (
            np.column_stack([table[np.ix_(most, most)], table[np.ix_(most, others)].sum(axis=1)])
            for table in (counts, shares)
        )
    hover = "true %{y}, taken for %{x}: %{z:.1%} (%{customdata})"
    text = {"texttemplate": "%{z:.2f}"} if len(y) <= 12 else {}
    data = _heat_map(shares.tolist(), x, y, "share", hover, zmin=0, zmax=1, **text)
    data["customdata"] = counts.tolist()
    layout = {
        "xaxis": {"title": {"text": "taken for"}, "type": "category"},
        "yaxis": {"title": {"text": "true class"}, "type": "category", "autorange": "reversed"},
    }
    return Figure(f"confusion-{method.name}", caption, [data], layout, 440)


def graph(devices: Devices, methods: Sequence[MethodRun]) -> Figure:
    """Draw the devices and their links: colour and shape by sensors, size by final accuracy.

    The size is that of the last method; hovering shows every method's accuracy.
    """
    links = nx.Graph()
    links.add_nodes_from(node.partition for node in devices.nodes)
    links.add_edges_from(devices.edges)
    place = _layout(links, devices.topology)
    line = {"color": "@muted/0.55", "width": 1.3}
    data = [_lines(links.edges, place, {"line": line, "hoverinfo": "skip", "showlegend": False})]
    pairs, means = _carried(methods[-1], place)
    carried = pairs + means
    if carried:
        dashes = {"color": "@muted", "width": 1.3, "dash": "dash"}
        named = {"name": "carried", "line": dashes, "hoverinfo": "skip"}
        data.append(_lines(carried, place, named))
    final = [{n.partition: n.accuracy for n in m.last.nodes} for m in methods]
    sets = sorted({"+".join(node.modalities) for node in devices.nodes})
    for i, sensors in enumerate(sets):
        nodes = [node for node in devices.nodes if "+".join(node.modalities) == sensors]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(devices.nodes) <= 40 else "markers",
                "name": label(sensors),
                "x": [place[node.partition][0] for node in nodes],
                "y": [place[node.partition][1] for node in nodes],
                "text": [str(node.partition) for node in nodes],
                "textposition": "middle center",
                "textfont": {"color": "@surface", "size": 11},
                "marker": {
                    "color": colour(i),
                    "opacity": 1,
                    "symbol": SYMBOLS[i % len(SYMBOLS)],
                    "size": [_size(final[-1].get(n.partition), len(devices.nodes)) for n in nodes],
                    "line": {"color": "@surface", "width": 1.5},
                },
                "customdata": [
                    _about(node.partition, sensors, node.num_train, links, methods, final)
                    for node in nodes
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    lying = [n.partition for n in methods[-1].last.nodes if n.lies and n.partition in place]
    if lying:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "liars",
                "x": [place[p][0] for p in lying],
                "y": [place[p][1] for p in lying],
                "hoverinfo": "skip",
                "marker": {
                    "color": "@ink",
                    "symbol": "circle-open",
                    "size": 44 if len(devices.nodes) <= 40 else 26,
                    "line": {"color": "@ink", "width": 2.5},
                },
            }
        )
    moving = ", one round's links of a graph that is new in every round" * devices.time_varying
    family = _kebab(devices.topology) or "?"
    caption = (
        f"{len(devices.nodes)} devices, {links.number_of_edges()} links ({family}{moving}). "
        f"Colour and shape: sensors. Size: final test accuracy of {methods[-1].name}."
    )
    if pairs:
        caption += f" Dashed: pairs of devices that couriers joined last ({len(pairs)})."
    if means:
        caption += f" Dashed: links over which couriers sent means last ({len(means)})."
    if lying:
        caption += f" Ringed: {len(lying)} liars, which no mean counts."
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    layout = {
        "xaxis": {**hidden, "scaleanchor": "y"},
        "yaxis": hidden,
        "legend": {"itemsizing": "constant"},
    }
    return Figure("graph", caption, data, layout, 460)


def _lines(
    edges: Iterable[tuple[int, int]], place: Mapping[int, tuple[float, float]], how: dict[str, Any]
) -> dict[str, Any]:
    """Return the trace of lines between nodes, with gaps between them."""
    path = [point for a, b in edges for point in (place[a], place[b], (None, None))]
    x, y = [x for x, _ in path], [y for _, y in path]
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, **how}


def _carried(
    method: MethodRun, place: Collection[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return what couriers have brought, in the last round in which they have.

    Pairs of devices that have got each other's blocks, and couriers with who has got their mean.
    """
    for line in reversed(method.rounds):
        if there := [way for way in line.carried if {way[0], way[2]} <= {*place}]:
            pairs = {(min(a, b), max(a, b)) for a, via, b in there if a != via}
            return sorted(pairs), sorted((a, b) for a, via, b in there if a == via)
    return [], []


def _about(
    partition: int,
    sensors: str,
    samples: int,
    links: nx.Graph,
    methods: Sequence[MethodRun],
    final: Sequence[dict[int, float | None]],
) -> str:
    lines = [f"device {partition}: {label(sensors)}"]
    for method, accuracies in zip(methods, final, strict=True):
        value = accuracies.get(partition)
        lines.append(f"{label(method.name)}: {'-' if value is None else f'{value:.3f}'}")
    neighbours = ", ".join(map(str, sorted(links[partition])[:12])) or "none"
    more = " …" if len(links[partition]) > 12 else ""
    return "<br>".join([*lines, f"{samples} samples", f"neighbours: {neighbours}{more}"])


def _size(accuracy: float | None, nodes: int) -> float:
    """Return a diameter in pixels; its square grows with accuracy, smaller in a crowd."""
    largest = 34 if nodes <= 40 else 20
    return largest * float(np.sqrt(0.08 + 0.92 * (accuracy or 0.0)))


def _kebab(name: str) -> str:
    """Return the setting that names a topology, also where the name is that of its class."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


_CIRCLES = ("complete", "dyck", "exponential", "one-peer-exponential", "random-matching", "ring")


def _layout(links: nx.Graph, topology: str) -> dict[int, tuple[float, float]]:
    if _kebab(topology) in _CIRCLES:
        found = nx.circular_layout(links)
    elif len(links) <= 60 and nx.is_connected(links):
        found = nx.kamada_kawai_layout(links)
    else:
        found = nx.spring_layout(links, seed=0, iterations=100)
    return {node: (float(x), float(y)) for node, (x, y) in found.items()}
