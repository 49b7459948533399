"""The papers of methods and rules: BibTeX, short citations and CITATION.cff say the same."""

import re
from typing import Any

import pytest
import yaml
from helpers import ROOT

from flwr_dmml.base.errors import MethodError
from flwr_dmml.base.references import OWN, bibliography, entries
from flwr_dmml.gossip.aggregation.nnm import Nnm
from flwr_dmml.learning.learner import Learner
from flwr_dmml.settings import find_parts

PARTS = find_parts()
BUILT_IN: dict[str, Any] = {
    f"{kind} {name}": part
    for kind in ("methods", "gossip", "aggregation")
    for name, part in getattr(PARTS, kind).items()
    if part.__module__.startswith("flwr_dmml.")
} | {"nnm+": Nnm}
NEEDED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title", "howpublished", "year"},
}
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def fields(entry: str) -> dict[str, str]:
    """Return the fields of an entry, its kind and its key."""
    kind, key = re.findall(r"^@(\w+)\{(.+),$", entry, re.MULTILINE)[0]
    found = re.findall(r"^  (\w+) += \{(.*)\},?$", entry, re.MULTILINE)
    assert len(found) == len(entry.splitlines()) - 2, entry
    return {"kind": kind, "key": key, **dict(found)}


def plain(text: str) -> str:
    """Return text without BibTeX's braces, accents and capitals."""
    return re.sub(r"\\[\"'^]|[{}$^]", "", text).casefold()


def surnames(entry: dict[str, str]) -> list[str]:
    return [plain(name.partition(", ")[0]) for name in entry["author"].split(" and ")]


@pytest.mark.parametrize("key", entries())
def test_an_entry_is_whole(key: str) -> None:
    entry = fields(entries()[key])
    assert NEEDED[entry["kind"]] <= set(entry)
    assert all(value.count("{") == value.count("}") and value.isascii() for value in entry.values())
    assert key.startswith(f"{surnames(entry)[0]}{entry['year']}")


def test_every_entry_is_somebodys_and_the_other_way_round() -> None:
    text = (ROOT / "flwr_dmml" / "references.bib").read_text()
    assert len(entries()) == text.count("\n@")
    assert {key for part in BUILT_IN.values() for key in part.references} == set(entries())
    assert list(entries()) == sorted(entries())


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_short_citation_is_that_of_the_entry(name: str) -> None:
    """Names of all authors, or of the first one and et al.; and the year."""
    part = BUILT_IN[name]
    assert bool(part.references) == (part.paper not in ("baseline", "this project")), part.paper
    for key in part.references:
        entry = fields(entries()[key])
        names = surnames(entry)
        assert entry["year"] in part.paper
        cited = plain(part.paper)
        if "et al." in cited:
            assert f"{names[0]} et al." in cited and len(names) > 2
        else:
            *first, last = names
            assert f"{', '.join(first)} and {last}" in cited


def test_the_citation_of_the_package_agrees() -> None:
    assert plain(fields(OWN)["title"]) == CITED["title"].casefold()
    assert "--list-methods --bibtex" in CITED["message"]
    by_title = {plain(fields(e)["title"]): fields(e) for e in entries().values()}
    for paper in CITED["references"]:
        entry = by_title[paper["title"].casefold()]
        assert [a["family-names"].casefold() for a in paper["authors"]] == surnames(entry)
        assert str(paper["year"]) == entry["year"]
        assert entry.get("doi") == paper.get("doi")


def test_a_part_that_cites_what_is_not_there() -> None:
    class Mine(Learner):
        name = "mine"
        references = ("nobody2030",)

    with pytest.raises(MethodError, match=r"mine: references.bib has no entry 'nobody2030'"):
        bibliography({"mine": Mine})
