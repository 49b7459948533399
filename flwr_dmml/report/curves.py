"""Figures of one run over rounds and costs: lines, with bands for the spread over devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tracking.records import RoundRecord
from .parts import Figure, label
from .reading import MethodRun
from .theme import DASHES, SYMBOLS, colour, whole_ticks

MOST_POINTS = 400
"""Points of a line; more are thinned out evenly, and the last one stays."""

Cost = Callable[[MethodRun, RoundRecord], float]
COSTS: dict[str, tuple[str, Cost]] = {
    "rounds": ("rounds", lambda method, line: line.round),
    "joules": ("joules spent by all devices", lambda method, line: line.total_j),
    "seconds": ("simulated seconds on the devices", lambda method, line: line.total_simulated_s),
    "bytes": ("MB sent by all devices", lambda method, line: method.megabytes[line.round]),
}
"""Costs that accuracy is drawn over: a name, and the axis and its value after a round."""


@dataclass
class Line:
    """A line of a figure: values over x, in a colour and a dash; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0


@dataclass
class Band:
    """A shaded band between two lines, shown and hidden with the line of that name."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int = 0
    opacity: float = 0.18


def plot(
    name: str,
    caption: str,
    parts: Sequence[Line | Band],
    *,
    x_title: str,
    y_title: str,
    y_axis: Mapping[str, Any] | None = None,
) -> Figure:
    """Return a figure of lines and bands."""
    data = [_band(part) if isinstance(part, Band) else _line(part) for part in parts]
    axis: dict[str, Any] = {"title": {"text": x_title}, "rangemode": "tozero"}
    if x_title in ("round", "rounds"):
        axis |= whole_ticks(max((max(part.x, default=0) for part in parts), default=0))
    layout = {
        "xaxis": axis,
        "yaxis": {"title": {"text": y_title}, **(y_axis or {})},
    }
    return Figure(name, caption, data, layout)


def _line(line: Line) -> dict[str, Any]:
    x, y = _thin(line.x), _thin(line.y)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 40 else "lines",
        "name": label(line.name),
        "legendgroup": label(line.name),
        "showlegend": True,
        "x": x,
        "y": y,
        "line": {"color": colour(line.colour), "width": 2, "dash": DASHES[line.dash % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[line.dash % len(SYMBOLS)], "size": 6},
        "hovertemplate": "%{y:.4~g} at %{x:.4~g}<extra>%{fullData.name}</extra>",
    }


def _band(band: Band) -> dict[str, Any]:
    """One closed outline; rounds without a value are passed over."""
    points = [
        point
        for point in zip(_thin(band.x), _thin(band.low), _thin(band.high), strict=True)
        if np.isfinite(point).all()
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(band.name),
        "legendgroup": label(band.name),
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [p[0] for p in points] + [p[0] for p in reversed(points)],
        "y": [p[1] for p in points] + [p[2] for p in reversed(points)],
        "fill": "toself",
        "fillcolor": colour(band.colour, band.opacity),
        "line": {"width": 0},
    }


def _thin(values: Sequence[float]) -> list[float]:
    if len(values) <= MOST_POINTS:
        return list(values)
    picked = np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int)
    return [values[i] for i in picked]


def number(value: float | None) -> float:
    """Return NaN for what was not measured, which figures leave out."""
    return float("nan") if value is None else value


def accuracy(methods: Sequence[MethodRun], cost: str) -> Figure:
    """Draw the mean accuracy over a cost of :data:`COSTS`, and the spread over devices."""
    x_title, value = COSTS[cost]
    parts: list[Line | Band] = []
    for i, method in enumerate(methods):
        lines = method.evaluated
        x = [value(method, line) for line in lines]
        spread = [
            np.quantile([number(n.accuracy) for n in line.evaluated], [0, 0.25, 0.5, 0.75, 1])
            for line in lines
        ]
        low, first, _, third, high = np.array(spread).T.tolist()
        parts.append(Band(method.name, x, low, high, i, 0.1))
        parts.append(Band(method.name, x, first, third, i, 0.22))
        parts.append(Line(method.name, x, [number(line.accuracy) for line in lines], i, i))
    caption = f"Test accuracy over {x_title}: mean, middle half and range of the devices."
    return plot(f"accuracy-{cost}", caption, parts, x_title=x_title, y_title="test accuracy")


def by_key(
    name: str,
    caption: str,
    methods: Sequence[MethodRun],
    values: Callable[[RoundRecord], Mapping[str, float]],
    *,
    y_title: str,
) -> Figure | None:
    """Draw a line for each key of a round's table: its colour is the key, its dash the method."""
    keys = sorted({key for m in methods for line in m.rounds for key in values(line)})
    parts: list[Line | Band] = []
    for i, method in enumerate(methods):
        for j, key in enumerate(keys):
            having = [line for line in method.rounds if key in values(line)]
            if having:
                text = f"{key}, {method.name}" if len(methods) > 1 else key
                y = [values(line)[key] for line in having]
                parts.append(Line(text, [line.round for line in having], y, j, i))
    if not parts:
        return None
    return plot(name, caption, parts, x_title="round", y_title=y_title)


def scalar(
    name: str,
    caption: str,
    methods: Sequence[MethodRun],
    value: Callable[[RoundRecord], float | None],
    *,
    y_title: str,
    y_axis: Mapping[str, Any] | None = None,
) -> Figure | None:
    """Draw one number a round, a line for each method; None where no round has it."""
    parts: list[Line | Band] = []
    for i, method in enumerate(methods):
        having = [line for line in method.rounds if value(line) is not None]
        if having:
            y = [number(value(line)) for line in having]
            parts.append(Line(method.name, [line.round for line in having], y, i, i))
    if not parts:
        return None
    return plot(name, caption, parts, x_title="round", y_title=y_title, y_axis=y_axis)


def batteries(methods: Sequence[MethodRun]) -> Figure | None:
    """Draw the median battery over rounds, the middle half and the range."""
    parts: list[Line | Band] = []
    for i, method in enumerate(methods):
        having = [line for line in method.rounds if line.battery_quantiles_j]
        if having:
            x = [line.round for line in having]
            low, first, median, third, high = np.array(
                [line.battery_quantiles_j for line in having]
            ).T.tolist()
            parts.append(Band(method.name, x, low, high, i, 0.1))
            parts.append(Band(method.name, x, first, third, i, 0.22))
            parts.append(Line(method.name, x, median, i, i))
    caption = "Joules left in the batteries: median, middle half and range of the devices."
    if not parts:
        return None
    axis = {"rangemode": "tozero"}
    return plot("batteries", caption, parts, x_title="round", y_title="battery, J", y_axis=axis)
