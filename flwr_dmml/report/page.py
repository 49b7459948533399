"""One self-contained HTML page: no network, and without JavaScript its text and tables."""

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from ..base.files import write_whole, writing
from ..base.libraries import needed
from .parts import Figure, Part, Section, to_script
from .theme import THEMES, css


@cache
def packed_plotly() -> str:
    """Return plotly.js, as the Python package brings it, as gzip in base64.

    Raises
    ------
    LibraryError
        Plotly is missing or does not load.
    """
    with needed("plotly"):
        from plotly.offline import get_plotlyjs
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def render_page(
    title: str, subtitle: str, sections: Sequence[Section], warnings: Sequence[str]
) -> str:
    """Return the HTML page.

    Parameters
    ----------
    title, subtitle : str
        What stands on top, as plain text like everything that the page shows.
    sections : sequence of Section
        In their order on the page.
    warnings : sequence of str
        Shown above all else.

    Raises
    ------
    LibraryError
        Plotly is missing or does not load.
    """
    figures = {p.name: p.to_plotly() for s in sections for p in s.parts if isinstance(p, Figure)}
    assets = files("flwr_dmml.report") / "assets"
    style = css() + (assets / "page.css").read_text(encoding="utf-8")
    script = (assets / "page.js").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in sections)
    noted = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    notes = f'<ul class="warnings" aria-label="Warnings">{noted}</ul>' if warnings else ""
    body = "".join(map(_section, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<div><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div>
<button id="theme" type="button" hidden>Dark theme</button>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">
<noscript><p class="note">Figures need JavaScript. All tables are here without it.</p></noscript>
<p class="note" id="trouble" role="alert" hidden></p>
{notes}
{body}
</main>
<script type="application/json" id="figures">{to_script(figures)}</script>
<script type="application/json" id="themes">{to_script(THEMES)}</script>
<script type="application/gzip" id="plotly">{packed_plotly()}</script>
<script>{script}</script>
</body>
</html>
"""


def _section(section: Section) -> str:
    name = escape(section.name)
    parts = "".join(map(_part, section.parts))
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{escape(section.title)}</h2>'
        f'<p class="lead">{escape(section.lead)}</p><div class="parts">{parts}</div></section>\n'
    )


def _part(part: Part) -> str:
    if not isinstance(part, Figure):
        return f'<div class="wide">{part.to_html()}</div>'
    name, caption = escape(part.name), escape(part.caption)
    return (
        f'<figure><div class="plot" data-figure="{name}" style="height:{part.height}px" '
        f'role="img" aria-label="{caption}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def write_page(path: Path, text: str) -> None:
    """Write a page or a table, and the folders above it; a reader never sees half of it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
