"""Parts of report pages: figures, tables, text and sections, and their output formats."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from .theme import COLOURS, TEMPLATE


@dataclass
class Figure:
    """A figure in plotly's terms, with colour tokens (see :mod:`.theme`).

    ``name`` is its file name and HTML id; ``caption`` is shown below it and read aloud for it.
    """

    name: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 340

    def to_plotly(self) -> dict[str, Any]:
        """Return data and layout, with numbers of five digits and the common template."""
        layout = self.layout | {"height": self.height, "template": TEMPLATE}
        return {"data": compact(self.data), "layout": compact(layout)}


@dataclass
class Table:
    """A table of text; the first cell of a row is its header."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True  # right-aligned but for the first column

    def to_html(self) -> str:
        """Return the table in a box that scrolls sideways by itself."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        name = escape(self.name)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}-caption">'
            f'<table id="{name}" class="{"numbers" if self.numeric else "words"}">'
            f'<caption id="{name}-caption">{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def to_markdown(self) -> str:
        """Return a GitHub-flavoured Markdown table, the caption above it."""
        rule = [":--", *("--:" if self.numeric else ":--" for _ in self.head[1:])]
        cells = [_markdown_row(self.head), "| " + " | ".join(rule) + " |"]
        cells += [_markdown_row(row) for row in self.rows]
        return f"{_markdown(self.caption)}\n\n" + "\n".join(cells) + "\n"

    def to_latex(self) -> str:
        r"""Return a LaTeX ``table`` environment; its rules need ``\usepackage{booktabs}``."""
        columns = "l" + ("r" if self.numeric else "l") * (len(self.head) - 1)
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_latex, self.head)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_latex, row)) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


@dataclass
class Text:
    """A paragraph, or with ``items`` a paragraph and a list."""

    text: str
    items: Sequence[str] = ()

    def to_html(self) -> str:
        """Return the paragraph and the list."""
        items = "".join(f"<li>{escape(item)}</li>" for item in self.items)
        return f"<p>{escape(self.text)}</p>" + (f"<ul>{items}</ul>" if items else "")


@dataclass
class Folded:
    """A table that is shown on demand."""

    summary: str
    table: Table

    def to_html(self) -> str:
        """Return a ``<details>`` element, which opens without JavaScript."""
        inside = self.table.to_html()
        return f"<details><summary>{escape(self.summary)}</summary>{inside}</details>"


@dataclass
class Cards:
    """Headline numbers: a title and pairs of name and value for each card.

    Card i has the colour of line i in figures.
    """

    cards: Sequence[tuple[str, Sequence[tuple[str, str]]]]

    def to_html(self) -> str:
        """Return description lists side by side."""
        html = ""
        for i, (title, pairs) in enumerate(self.cards):
            inside = "".join(
                f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs
            )
            bar = f"border-color:var(--colour-{i % COLOURS})"
            title = f"<h3>{escape(title)}</h3>"
            html += f'<div class="card" style="{bar}">{title}<dl>{inside}</dl></div>'
        return f'<div class="cards">{html}</div>'


Part = Figure | Table | Text | Folded | Cards


@dataclass
class Section:
    """A heading, a sentence on how to read what follows, and the parts."""

    name: str
    title: str
    lead: str
    parts: Sequence[Part]


def compact(value: Any) -> Any:
    """Return plain JSON values: numbers of five digits, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [compact(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    rounded = float(f"{number:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def to_script(value: Any) -> str:
    """Return JSON that may stand inside a ``<script>`` element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def label(text: str) -> str:
    """Return text for a figure, where plotly would take ``<b>`` or ``<a>`` for markup."""
    return escape(text, quote=False)


def _markdown(text: str) -> str:
    for character in "\\|`*_<>[]#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_markdown, cells)) + " |"


_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    '"': "''",
    "\n": " ",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
