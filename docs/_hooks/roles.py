"""Sphinx roles of docstrings (``:class:`Run```) as links, or as plain code, at build time.

Markdown leaves a role's name in front of the code. Here what it names is looked for among the
objects that the site documents: first around the docstring, then anywhere by its last names.
"""

import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.utils import get_relative_url

_OBJECT = re.compile(r'id="(flwr_dmml[\w.]*)"')
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):<code>([^<]*)</code>")
_RAW = re.compile(r":[a-z]+:(?:<code>|`)")
_LITERAL = re.compile(r",?\s*::</p>(?=\s*<(?:div class=\"[^\"]*highlight|pre))")
"""The ``::`` that begins an indented block in reStructuredText."""


def find(name: str, around: str, urls: dict[str, str]) -> str | None:
    """Return the full path of what a role names, or None if the site does not have it.

    Parameters
    ----------
    name : str
        As in the role, without ``~``; with a dot first it may be anywhere.
    around : str
        Path of the object that the docstring belongs to.
    urls : dict of str to str
        Every documented object's path; the values do not matter.
    """
    scope = "" if name.startswith(".") else around
    name = name.removeprefix(".")
    while scope:
        if f"{scope}.{name}" in urls:
            return f"{scope}.{name}"
        scope = scope.rpartition(".")[0]
    if name in urls:
        return name
    ends = [path for path in urls if path.endswith(f".{name}")]
    return ends[0] if len(ends) == 1 else None


def replaced(content: str, urls: dict[str, str], here: str) -> str:
    """Return a page's HTML without roles.

    Parameters
    ----------
    content : str
        The HTML.
    urls : dict of str to str
        The address of every documented object's page, by the object's path.
    here : str
        The address of this page.
    """
    around, parts, last = "", [], 0
    for match in re.finditer(f"{_OBJECT.pattern}|{_ROLE.pattern}", content):
        if match[1]:
            around = match[1]
            continue
        name = " ".join(match[2].split())
        path = find(name.removeprefix("~"), around, urls)
        shown = name.rpartition(".")[2] if name.startswith("~") else name.removeprefix(".")
        code = f"<code>{shown}</code>"
        if path is not None:
            code = f'<a href="{get_relative_url(urls[path], here)}#{path}">{code}</a>'
        parts += [content[last : match.start()], code]
        last = match.end()
    return _LITERAL.sub(":</p>", "".join([*parts, content[last:]]))


def on_env(env: Any, *, config: Any, files: Any) -> Any:
    """Replace the roles of all pages, once all are rendered; mkdocs calls this."""
    pages = [file.page for file in files.documentation_pages() if file.page]
    urls = {path: page.url for page in pages for path in _OBJECT.findall(page.content or "")}
    for page in pages:
        page.content = replaced(page.content or "", urls, page.url)
        if raw := _RAW.search(page.content):
            near = page.content[raw.start() :][:60]
            raise PluginError(f"{page.file.src_uri}: a role that is not replaced: {near!r}")
    return env
