"""Line charts of the docs: small SVG files without font or script, in the reader's own theme.

They have a background of their own, so that they can be read on any page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from flwr_dmml.report.theme import THEMES

PANEL, GAP, LEFT, TOP, BOTTOM = 162, 48, 40, 78, 246  # panels, and the axes' ends, pixels
HEIGHT = 296
APART = 12  # pixels between two figures at the ends of lines
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """How one is drawn: a colour of the theme, its width, its dash, and its name in the legend."""

    label: str
    colour: str
    width: float = 2.0
    dash: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel: its title, a line's points by name, and the ticks of its axis, lowest to highest.

    The axis ends at ``low`` and ``high``.
    """

    title: str
    curves: Mapping[str, Points]
    low: float
    high: float
    ticks: Sequence[float]

    def height(self, value: float) -> float:
        """Return the y of a value."""
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def chart(lines: Mapping[str, Line], panels: Sequence[Panel], label: str, foot: str) -> str:
    """Return an SVG file: panels side by side over rounds, with one legend.

    Parameters
    ----------
    lines : mapping of str to Line
        By name, as in the panels' curves; the first lies on top.
    panels : sequence of Panel
        With an axis of its own where its ticks are not those of the panel before.
    label, foot : str
        What the picture shows, for who cannot see it; a line of text below.
    """
    width = LEFT + len(panels) * (PANEL + GAP) - 8
    drawn = [_style(lines), f'<rect class="surface" x=".5" y=".5" width="{width - 1}" ']
    drawn += [f'height="{HEIGHT - 1}" rx="8"/>', _legend(lines)]
    for index, panel in enumerate(panels):
        axis = index == 0 or panel.ticks != panels[index - 1].ticks
        drawn.append(_panel(LEFT + index * (PANEL + GAP), panel, axis=axis))
    drawn.append(_text(LEFT, HEIGHT - 10, foot, "muted"))
    size = f'viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    return f"{head}{''.join(drawn)}</svg>\n"


def _style(lines: Mapping[str, Line]) -> str:
    """Return the classes of lines and texts, in the light theme and in the dark one."""

    def rules(theme: str) -> str:
        colours = THEMES[theme]
        found = [f".surface{{fill:{colours['surface']};stroke:{colours['grid']}}}"]
        found += [f".grid{{stroke:{colours['grid']}}}", f".ink{{fill:{colours['ink']}}}"]
        found += [f".muted{{fill:{colours['muted']}}}"]
        for name, line in lines.items():
            colour = colours[line.colour]
            how = f"stroke:{colour};stroke-width:{line.width:g};"
            how += f"stroke-dasharray:{line.dash or 'none'}"
            found += [f".{name}{{{how}}}", f".{name}-end{{fill:{colour}}}"]
        return "".join(found)

    text = "text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
    shapes = "polyline,.key{fill:none;stroke-linejoin:round;stroke-linecap:round}"
    dark = f"@media (prefers-color-scheme:dark){{{rules('dark')}}}"
    return f"<style>{text}.title{{font-weight:600}}{shapes}{rules('light')}{dark}</style>"


def _text(x: float, y: float, content: str, classes: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{classes}" {place}>{escape(content)}</text>'


def _panel(left: int, panel: Panel, *, axis: bool) -> str:
    """Return grid, axis, title, lines, and the value at the end of each."""
    last = max(points[-1][0] for points in panel.curves.values())
    parts = [_text(left, TOP - 12, panel.title, "ink title")]
    for value in panel.ticks:
        y = panel.height(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{PANEL}"/>')
        if axis:
            parts.append(_text(left - 7, y + 4, f"{value:g}", "muted", "end"))
    for number in (1, last // 3, 2 * last // 3, last):
        x = left + (number - 1) / (last - 1) * PANEL
        parts.append(_text(x, BOTTOM + 17, str(number), "muted", "middle"))
    for name, points in reversed(panel.curves.items()):
        xy = (f"{left + (n - 1) / (last - 1) * PANEL:.1f},{panel.height(a):.1f}" for n, a in points)
        parts.append(f'<polyline class="{name}" points="{" ".join(xy)}"/>')
    final = {name: points[-1][1] for name, points in panel.curves.items()}
    for name, y in _ends(panel, final).items():
        parts.append(_text(left + PANEL + 5, y + 4, f"{final[name]:.2f}", f"{name}-end"))
    return "".join(parts)


def _ends(panel: Panel, values: Mapping[str, float]) -> dict[str, float]:
    """Return the y of the figure at each line's end, moved apart where they would overlap."""
    placed: dict[str, float] = {}
    for name in sorted(values, key=lambda name: -values[name]):
        lowest = max(placed.values(), default=-APART)
        placed[name] = max(panel.height(values[name]), lowest + APART)
    return placed


def _legend(lines: Mapping[str, Line]) -> str:
    """Return a key and a name for each line."""
    x, parts = LEFT, list[str]()
    for name, line in lines.items():
        parts.append(f'<path class="key {name}" d="M{x} 24h26"/>')
        parts.append(_text(x + 33, 28, line.label, "ink"))
        x += 70 + 7 * len(line.label)
    return "".join(parts)
