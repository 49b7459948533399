"""Colours of pages and figures, light and dark.

Figures name colours by tokens: ``@0`` to ``@7`` of the palette, ``@0/0.2`` the same at an opacity,
and ``@ink``, ``@muted``, ``@grid``, ``@surface``. The page resolves them in the theme that is on.
"""

import re
from itertools import count
from typing import Any

# After Okabe and Ito (2008), who chose colours that colour-blind readers tell apart; the palest
# are darkened on white and the darkest lightened on black.
_NAMED = ("ink", "muted", "grid", "surface", "page", "accent")
THEMES: dict[str, dict[str, str]] = {
    "light": dict(
        zip(_NAMED, ("#1b2330", "#566173", "#dfe4ec", "#ffffff", "#f4f6f9", "#005a8f"), strict=True)
    )
    | {str(i): c for i, c in enumerate(["#0072b2", "#d55e00", "#009e73", "#b8579a"])}
    | {str(i): c for i, c in enumerate(["#8a6d00", "#3ba3dd", "#6b4ba3", "#6b7280"], start=4)},
    "dark": dict(
        zip(_NAMED, ("#e6eaf1", "#a3adbd", "#333c4a", "#1a2029", "#11161d", "#6cbcf0"), strict=True)
    )
    | {str(i): c for i, c in enumerate(["#56b4e9", "#ff9a4d", "#2fc79a", "#e79bc9"])}
    | {str(i): c for i, c in enumerate(["#e6d34a", "#8fd0ff", "#b79cf0", "#aab3c0"], start=4)},
}
"""Token to colour, in each theme."""

COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon")

_AXIS = {
    "gridcolor": "@grid",
    "linecolor": "@grid",
    "zerolinecolor": "@grid",
    "automargin": True,
    "title": {"standoff": 8},
}
TEMPLATE: dict[str, Any] = {
    "layout": {
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "font": {"color": "@ink", "family": "system-ui, sans-serif", "size": 13},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 48, "r": 16, "t": 16, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "@page", "bordercolor": "@muted", "font": {"color": "@ink"}},
        "hovermode": "closest",
    }
}
"""Template of all figures, in plotly's terms."""

_TOKEN = re.compile(r"@(\w+)(?:/([0-9.]+))?")


def resolve(value: Any, theme: str) -> Any:
    """Return a figure (or part of it) with its colour tokens replaced by a theme's colours."""
    if isinstance(value, dict):
        return {key: resolve(item, theme) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, theme) for item in value]
    if isinstance(value, str) and (match := _TOKEN.fullmatch(value)):
        colour = THEMES[theme].get(match[1])
        if colour and match[2]:
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            return f"rgba({red},{green},{blue},{match[2]})"
        return colour or value
    return value


def colour(index: int, opacity: float | None = None) -> str:
    """Return the token of a palette colour; they repeat after the eighth."""
    return f"@{index % COLOURS}" + ("" if opacity is None else f"/{opacity}")


def whole_ticks(last: float) -> dict[str, Any]:
    """Return an axis' ticks at whole numbers from 0 to ``last``: at most nine, evenly spaced."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return {"tick0": 0, "dtick": next(step for step in steps if last <= 8 * step)}


def css() -> str:
    """Return the themes as CSS variables; the system's preference holds until the switch is set."""
    light, dark = (
        ";".join(f"--{'colour-' * name.isdigit()}{name}:{value}" for name, value in theme.items())
        for theme in THEMES.values()
    )
    return (
        f":root{{color-scheme:light;{light}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
        "@media (prefers-color-scheme:dark){"
        f":root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
    )
