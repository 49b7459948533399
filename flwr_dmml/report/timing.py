"""Figures of simulated seconds: who did what when, and how old mixed letters were."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..tracking.events import DeviceRound
from ..tracking.records import RoundRecord
from .parts import Figure, label
from .reading import MethodRun
from .theme import colour

MOST_BARS = 400
"""Rounds of devices in a strip: the first ones of a run."""
MOST_DEVICES = 40
"""Devices in a strip: of more every so many-th."""


def strips(methods: Sequence[MethodRun]) -> list[Figure]:
    """Draw what the devices did at the beginning: they train, send, or wait for the slowest."""
    return [figure for method in methods if (figure := _strip(method))]


def staleness(methods: Sequence[MethodRun]) -> Figure | None:
    """Draw how many of the receiver's own rounds letters had been there when they were mixed."""
    data = []
    for i, method in enumerate(methods):
        counts = Counter(age for each in method.events for _, age in each.letters)
        total = counts.total()
        if total:
            ages = range(max(counts) + 1)
            data.append(
                {
                    "type": "bar",
                    "name": label(method.name),
                    "x": list(ages),
                    "y": [counts[age] / total for age in ages],
                    "marker": {"color": colour(i)},
                    "hovertemplate": "%{y:.1%} of letters, %{x} rounds old",
                }
            )
    if not data:
        return None
    caption = (
        "How many of the receiver's own rounds a letter had been there when it was mixed: 0 is one "
        "that has come since the round before."
    )
    layout = {
        "xaxis": {"title": {"text": "own rounds"}, "dtick": 1},
        "yaxis": {"title": {"text": "share of mixed letters"}, "rangemode": "tozero"},
        "barmode": "group",
    }
    return Figure("staleness", caption, data, layout)


def device_rounds(rounds: Sequence[RoundRecord]) -> list[DeviceRound]:
    """Return what devices did in rounds in which all wait for the slowest.

    How long a device sends is not written down for itself: it counts as training.
    """
    found: list[DeviceRound] = []
    before_s = 0.0
    for line in rounds:
        for node in line.nodes:
            if node.simulated_s > 0:
                end_s = before_s + node.simulated_s
                found.append(
                    DeviceRound(
                        device=node.partition,
                        number=line.round,
                        start_s=before_s,
                        sends_s=end_s,
                        end_s=end_s,
                    )
                )
        before_s = line.total_simulated_s
    return found


def _strip(method: MethodRun) -> Figure | None:
    every = list(method.events) or device_rounds(method.rounds)
    if not every:
        return None
    devices = sorted({each.device for each in every})
    shown = devices[:: -(-len(devices) // MOST_DEVICES)]
    first = sorted((e for e in every if e.device in set(shown)), key=lambda e: (e.end_s, e.device))
    first = first[:MOST_BARS]
    until_s = first[-1].end_s
    busy = sum(e.end_s - e.start_s for e in first) / (until_s * len(shown)) if until_s else 1.0
    trains = [(e, e.start_s, e.sends_s) for e in first]
    sends = [(e, e.sends_s, e.end_s) for e in first if e.end_s > e.sends_s]
    parts = (("trains", trains, 0), ("sends", sends, 1))
    data = [_bars(name, spans, token) for name, spans, token in parts if spans]
    caption = (
        f"{method.name}: what devices did in the first {until_s:.4g} simulated seconds; gaps: they "
        f"wait. They are busy {np.clip(busy, 0, 1):.0%} of that time."
    )
    layout = {
        "xaxis": {"title": {"text": "simulated seconds"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "device"}, "type": "category", "autorange": "reversed"},
        "barmode": "overlay",
        "bargap": 0.25,
    }
    height = int(np.clip(120 + 18 * len(shown), 220, 640))
    return Figure(f"strip-{method.name}", caption, data, layout, height)


def _bars(
    name: str, spans: Sequence[tuple[DeviceRound, float, float]], token: int
) -> dict[str, object]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [str(each.device) for each, _, _ in spans],
        "base": [start for _, start, _ in spans],
        "x": [end - start for _, start, end in spans],
        "customdata": [each.number for each, _, _ in spans],
        "marker": {"color": colour(token), "line": {"width": 1, "color": "@surface"}},
        "hovertemplate": f"device %{{y}}, its round %{{customdata}}: {name} for %{{x:.4~g}} s",
    }
