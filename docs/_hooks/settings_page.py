"""The page of all settings, written at build time from the code: one heading each, so that search
finds them and links can point to them.
"""

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from flwr_dmml.base.options import Group
from flwr_dmml.data.registry import available_datasets
from flwr_dmml.gossip.attacks import ATTACKS
from flwr_dmml.graph.topology import TOPOLOGIES
from flwr_dmml.settings import Parts, find_parts
from flwr_dmml.settings.settings import GROUPS, Settings

PAGE = "settings.md"
EXPLAINED = {
    "": "guide.md",
    "energy": "energy.md",
    "allocation": "energy.md#rules",
    "wireless": "energy.md#one-round",
    "public": "labels.md#the-public-set",
    "missing": "guide.md#data",
    "audio": "datasets.md",
    "image": "datasets.md",
    "series": "datasets.md",
    "exchange": "howto/fleet.md#device-to-device",
    "attack": "howto/untrusted-neighbours.md#attacks",
    "privacy": "howto/privacy.md",
    "qg-dsgdm-n": "methods/qg-dsgdm.md",
}
"""Where a group is explained: methods have pages of their own, rules share one."""
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
}
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _code(value: object) -> str:
    return f"<code>{html.escape(json.dumps(value))}</code>"


def allowed(schema: Mapping[str, Any], names: list[str] | None = None) -> str:
    """Return what a setting may be, as HTML, from its JSON schema and the names of parts."""
    if names is not None:
        return "one of " + ", ".join(map(_code, names))
    if "anyOf" in schema:
        return " or ".join(map(allowed, schema["anyOf"]))
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(_code, schema["enum"]))
    limits = [f"{word} {schema[key]:,}" for key, word in LIMITS.items() if key in schema]
    if "pattern" in schema:
        limits.append(f"matching <code>{html.escape(schema['pattern'])}</code>")
    return ", ".join([TYPES[schema["type"]], *limits])


def _named(parts: Parts) -> dict[str, list[str]]:
    """Return the names that some settings can have, by their keys."""
    return {
        "method": [*parts.methods],
        "compare-with": ["", *parts.methods],
        "gossip": ["auto", *parts.gossip],
        "aggregation": [*parts.aggregation],
        "topology": [*TOPOLOGIES],
        "dataset": available_datasets(),
        "attack.kind": [*ATTACKS],
    }


def _settings(prefix: str, model: type[Group], named: Mapping[str, list[str]]) -> Iterator[str]:
    for name, schema in model.model_json_schema(by_alias=True)["properties"].items():
        if name in GROUPS:
            continue
        key = f"{prefix}.{name}" if prefix else name
        meaning = html.escape(schema["description"]).removesuffix(".")
        values = f"{allowed(schema, named.get(key))}; default {_code(schema['default'])}"
        yield f"### `{key}` {{ #{key} }}"
        yield f"<p>{meaning}.<br>\n{values}</p>"


def settings_by_prefix() -> str:
    """Return the Markdown of all settings."""
    parts = find_parts()
    named = _named(parts)
    found = []
    for prefix, model in {"": Settings, **parts.prefixes}.items():
        lines = [*_settings(prefix, model, named)]
        if not lines:
            continue
        of_method = f"methods/{prefix}.md" if prefix in parts.methods else "gossip.md"
        found += [f"## {prefix or 'Common settings'}"]
        found += [f"[What they do]({EXPLAINED.get(prefix, of_method)})", *lines]
    return "\n\n".join(found)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the settings to their page; mkdocs calls this."""
    if page.file.src_uri != PAGE:
        return markdown
    return f"{markdown}\n{settings_by_prefix()}\n"


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Leave the settings themselves out of the page's table of contents: there are hundreds."""
    if page.file.src_uri == PAGE:
        for title in page.toc:
            for group in title.children:
                group.children.clear()
    return content
