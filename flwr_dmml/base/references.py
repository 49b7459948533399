"""BibTeX of the papers that methods and rules come from."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Protocol

from .. import __version__
from .errors import MethodError

OWN = """@misc{flwr-dmml,
  author = {{The flwr-dmml authors}},
  title  = {{flwr-dmml}: serverless multi-modal learning on {Flower}},
  note   = {Version VERSION}
}"""
"""The entry of this package."""


class Part(Protocol):
    """A method or a rule: where it comes from, in words and as keys of entries."""

    paper: str
    references: tuple[str, ...]


@cache
def entries() -> dict[str, str]:
    """Return the BibTeX entries of ``flwr_dmml/references.bib`` by key."""
    text = (files("flwr_dmml") / "references.bib").read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{([^,\s]+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)
    return {match[1]: match[0] for match in found}


def bibliography(parts: Mapping[str, Part]) -> str:
    """Return the entries of parts by name, each once, after that of this package.

    A comment before an entry names the parts that come from there; parts without a paper stand at
    the end.

    Raises
    ------
    MethodError
        A part names an entry that there is not.
    """
    citing: dict[str, list[str]] = {}
    for name, part in parts.items():
        for key in part.references:
            if key not in entries():
                raise MethodError(f"{name}: references.bib has no entry {key!r}")
            citing.setdefault(key, []).append(name)
    found = [f"% {', '.join(citing[key])}\n{entries()[key]}" for key in sorted(citing)]
    without = [f"% {name}: {part.paper}" for name, part in parts.items() if not part.references]
    own = OWN.replace("VERSION", __version__)
    return "\n\n".join([own, *found, *(["\n".join(without)] if without else [])])
