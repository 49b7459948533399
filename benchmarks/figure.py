"""The figure of the README: accuracy per round in the quickstart, by the sensors of the devices.

Three runs: D-PSGD and DMML-KD as in the quickstart, and the control, D-PSGD with the choices of
DMML-KD. Evaluating every round changes no number, only how many are drawn.

    flwr-dmml simulate examples/quickstart --set evaluate-every=1 --set run-name=figure
    flwr-dmml simulate examples/quickstart --set evaluate-every=1 --set run-name=figure-control \
        --set method=dmml --set gossip=dpsgd --set allocation.rule=uniform
    python benchmarks/figure.py runs/figure runs/figure-control docs/assets/quickstart.svg

The SVG is small, needs no font and no script, and follows the reader's light or dark theme. It has
a background of its own, so that it can be read on any page.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import typer

from flwr_dmml.report.reading import read_run
from flwr_dmml.report.theme import THEMES
from flwr_dmml.tracking.records import RoundRecord

PANELS = {
    "": "all 12 devices",
    "audio": "microphone only",
    "image": "camera only",
    "audio+image": "both sensors",
}
"""Title of each panel by the sensors of its devices."""
LINES = {"dmml": ("1", 2.5, ""), "half": ("0", 2, "5 4"), "dpsgd": ("muted", 2, "")}
"""Colour, width and dash of each line; the one drawn last lies on top."""
KEYS = {
    "dmml": (40, "DMML-KD"),
    "half": (180, "D-PSGD, with the choices of DMML-KD"),
    "dpsgd": (590, "D-PSGD"),
}
"""Place and name of each line in the legend."""
WIDTH, HEIGHT = 860, 296  # of the picture, pixels
PANEL, GAP, LEFT, TOP, BOTTOM = 162, 44, 40, 78, 246  # panels, and the axes' ends
LOW, HIGH = 0.1, 1.0  # accuracies at the ends of the axis
APART = 12  # pixels between two figures at the ends of lines


def curve(rounds: Sequence[RoundRecord], sensors: str) -> list[tuple[int, float]]:
    """Return round and mean accuracy of the devices with these sensors, or of all of them."""
    found = [(r.round, r.accuracy_by_set[sensors] if sensors else r.accuracy) for r in rounds]
    return [(number, value) for number, value in found if value is not None]


def style() -> str:
    """Return the classes of lines and texts, in the light theme and in the dark one."""

    def rules(theme: str) -> str:
        colours = THEMES[theme]
        found = [f".surface{{fill:{colours['surface']};stroke:{colours['grid']}}}"]
        found += [f".grid{{stroke:{colours['grid']}}}", f".ink{{fill:{colours['ink']}}}"]
        found += [f".muted{{fill:{colours['muted']}}}"]
        for name, (token, width, dash) in LINES.items():
            line = f"stroke:{colours[token]};stroke-width:{width};stroke-dasharray:{dash or 'none'}"
            found += [f".{name}{{{line}}}", f".{name}-end{{fill:{colours[token]}}}"]
        return "".join(found)

    text = "text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
    lines = "polyline,.key{fill:none;stroke-linejoin:round;stroke-linecap:round}"
    dark = f"@media (prefers-color-scheme:dark){{{rules('dark')}}}"
    return f"<style>{text}.title{{font-weight:600}}{lines}{rules('light')}{dark}</style>"


def text(x: float, y: float, content: str, classes: str, anchor: str = "start") -> str:
    """Return a text element."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{classes}" {place}>{escape(content)}</text>'


def height(accuracy: float) -> float:
    """Return the y of an accuracy."""
    return BOTTOM - (accuracy - LOW) / (HIGH - LOW) * (BOTTOM - TOP)


def ends(values: dict[str, float]) -> dict[str, float]:
    """Return the y of the figure at each line's end, moved apart where they would overlap."""
    placed: dict[str, float] = {}
    for name in sorted(values, key=lambda name: -values[name]):
        lowest = max(placed.values(), default=-APART)
        placed[name] = max(height(values[name]), lowest + APART)
    return placed


def panel(index: int, title: str, curves: dict[str, list[tuple[int, float]]], last: int) -> str:
    """Return one panel: grid, axis, title, lines, and the accuracy at the end of each."""
    left = LEFT + index * (PANEL + GAP)
    parts = [text(left, TOP - 12, title, "ink title")]
    for tenths in range(2, 10, 2):
        y = height(tenths / 10)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{PANEL}"/>')
        if index == 0:
            parts.append(text(left - 7, y + 4, f"{tenths / 10}", "muted", "end"))
    for number in (1, last // 3, 2 * last // 3, last):
        x = left + (number - 1) / (last - 1) * PANEL
        parts.append(text(x, BOTTOM + 17, str(number), "muted", "middle"))
    for name, points in reversed(curves.items()):
        xy = (f"{left + (n - 1) / (last - 1) * PANEL:.1f},{height(a):.1f}" for n, a in points)
        parts.append(f'<polyline class="{name}" points="{" ".join(xy)}"/>')
    final = {name: points[-1][1] for name, points in curves.items()}
    for name, y in ends(final).items():
        parts.append(text(left + PANEL + 5, y + 4, f"{final[name]:.2f}", f"{name}-end"))
    return "".join(parts)


def legend() -> str:
    """Return a key and a name for each line."""
    keys = (
        f'<path class="key {name}" d="M{x} 24h26"/>' + text(x + 33, 28, label, "ink")
        for name, (x, label) in KEYS.items()
    )
    return "".join(keys)


def main(
    run: Annotated[Path, typer.Argument(help="run folder with dpsgd and dmml-kd")],
    control: Annotated[Path, typer.Argument(help="run folder of the control")],
    output: Annotated[Path, typer.Argument(help="file to write")],
) -> None:
    """Draw accuracy per round, a panel for each set of sensors."""
    methods = {method.name: method.evaluated for method in read_run(run).methods}
    half = read_run(control).methods[-1].evaluated
    rounds = {"dmml": methods["dmml-kd"], "half": half, "dpsgd": methods["dpsgd"]}
    last = rounds["dmml"][-1].round
    drawn = [style(), f'<rect class="surface" x=".5" y=".5" width="{WIDTH - 1}" ']
    drawn += [f'height="{HEIGHT - 1}" rx="8"/>', legend()]
    for index, (sensors, title) in enumerate(PANELS.items()):
        curves = {name: curve(lines, sensors) for name, lines in rounds.items()}
        drawn.append(panel(index, title, curves, last))
    drawn.append(text(LEFT, HEIGHT - 10, "test accuracy over rounds, mean over devices", "muted"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    label = "Test accuracy per round of DMML-KD and D-PSGD, by the sensors of the devices"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    output.write_text(f"{head}{''.join(drawn)}</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
