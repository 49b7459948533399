"""Equations of the docs as MathML, at build time: no script and no network in the reader's browser.

Markdown's ``arithmatex`` finds ``$...$`` and ``$$...$$``, and leaves code alone; here what it found
is converted. What cannot be converted fails the build.
"""

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FOUND = re.compile(
    r'<div class="arithmatex">\\\[(?P<block>.*?)\\\]</div>'
    r'|<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>',
    re.DOTALL,
)
_NO_PROSE = re.compile(r"<(pre|code|math|script)\b.*?</\1>|<[^>]*>", re.DOTALL)
_BLOCK = "overflow: auto hidden; margin: 0.8em 0; padding: 0.3em 0"  # scrolls on a narrow screen
_PARTS = dict.fromkeys(("mfrac", "msub", "msup", "munder", "mover"), 2)
_PARTS |= dict.fromkeys(("msubsup", "munderover"), 3)
_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"


def to_mathml(latex: str, *, display: bool) -> str:
    """Return an equation as a MathML element.

    Raises
    ------
    ValueError
        It is not LaTeX that the converter knows. The converter itself lets most mistakes pass.
    """
    braces = re.sub(r"\\.", "", latex)
    if braces.count("{") != braces.count("}"):
        raise ValueError("its braces do not match")
    try:
        mathml: str = convert(latex.strip(), display="block" if display else "inline")
        root = ElementTree.fromstring(mathml)
    except Exception as error:
        raise ValueError(f"{type(error).__name__} {error}".strip()) from error
    for element in root.iter():
        text, name = element.text or "", element.tag.removeprefix(_NAMESPACE)
        if "\\" in text:
            raise ValueError(f"unknown command {text}")
        if len(element) != _PARTS.get(name, len(element)):
            raise ValueError(f"<{name}> has {len(element)} parts instead of {_PARTS[name]}")
    return mathml


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Convert the equations of a page; mkdocs calls this."""

    def converted(match: re.Match[str]) -> str:
        block, inline = match["block"], match["inline"]
        latex = html.unescape(inline if block is None else block).strip()
        try:
            mathml = to_mathml(latex, display=block is not None)
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: the equation {latex!r}: {error}") from error
        return mathml if block is None else f'<div style="{_BLOCK}" tabindex="0">{mathml}</div>'

    content = _FOUND.sub(converted, content)
    if "$" in (prose := _NO_PROSE.sub(" ", content)):
        near = prose[max(0, prose.index("$") - 40) :][:80].strip()
        raise PluginError(f"{page.file.src_uri}: a $ that belongs to no equation: {near!r}")
    return content
