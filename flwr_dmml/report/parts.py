"""Parts of report pages: figures, tables, text and sections, and their output formats."""

import json
import math
from collections.abc import Callable, Sequence, Set
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
    """A table of text; the first cell of a row is its header.

    ``bold`` names cells by row and column; ``spans`` are headings over all columns but the first:
    each a text and over how many of them.
    """

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True  # right-aligned but for the first column
    bold: Set[tuple[int, int]] = frozenset()
    spans: Sequence[tuple[str, int]] = ()

    def _cells(self, text: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the rows as a format writes them, ``{}`` in ``bold`` standing for a cell."""
        return [
            [
                bold.format(text(cell)) if (i, j) in self.bold else text(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]

    def to_html(self) -> str:
        """Return the table in a box that scrolls sideways by itself."""
        over = "".join(
            f'<th scope="colgroup" colspan="{count}">{escape(text)}</th>'
            for text, count in self.spans
        )
        over = f'<tr class="over"><td></td>{over}</tr>' if self.spans else ""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        body = "".join(
            f'<tr><th scope="row">{first}</th>'
            + "".join(f"<td>{cell}</td>" for cell in others)
            + "</tr>"
            for first, *others in self._cells(escape, "<strong>{}</strong>")
        )
        name = escape(self.name)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}-caption">'
            f'<table id="{name}" class="{"numbers" if self.numeric else "words"}">'
            f'<caption id="{name}-caption">{escape(self.caption)}</caption>'
            f"<thead>{over}<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def to_markdown(self) -> str:
        """Return a GitHub-flavoured Markdown table, the caption above it."""
        over = ["", *(f"{text}: " for text, count in self.spans for _ in range(count))]
        over = over if self.spans else [""] * len(self.head)
        head = [_markdown(a + b) for a, b in zip(over, self.head, strict=True)]
        rule = [":--", *("--:" if self.numeric else ":--" for _ in self.head[1:])]
        lines = [head, rule, *self._cells(_markdown, "**{}**")]
        rows = [f"| {' | '.join(line)} |" for line in lines]
        return f"{_markdown(self.caption)}\n\n" + "\n".join(rows) + "\n"

    def to_latex(self) -> str:
        r"""Return a LaTeX ``table`` environment, which shrinks to the line if it is wider.

        It needs ``\usepackage{booktabs,graphicx}``.
        """
        columns = "l" + ("r" if self.numeric else "l") * (len(self.head) - 1)
        over, rules, first = [""], [], 2
        for text, count in self.spans:
            over.append(rf"\multicolumn{{{count}}}{{c}}{{{latex(text)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
            first += count
        lines = [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{latex(self.caption)}}}",
            rf"\label{{tab:{self.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *([" & ".join(over) + r" \\", " ".join(rules)] if self.spans else []),
            " & ".join(map(latex, self.head)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in self._cells(latex, r"\textbf{{{}}}")),
            r"\bottomrule",
            r"\end{tabular}}",
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


_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    '"': "''",
    "\n": " ",
}


def latex(text: str) -> str:
    """Return text with the characters replaced that mean something to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
