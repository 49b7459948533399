"""The files about the project: its citation, its changelog and the versions it was tested with."""

import re
from datetime import date
from importlib.metadata import requires

import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flwr_dmml import __version__

PAPERS = {"2311.06500", "2304.04326", "2401.00894", "2408.15803"}
"""Of DMML-KD, IDKD, FedCMI and ModalityMirror, at arXiv."""


def test_the_citation_has_what_its_format_asks_for():
    """And no version or date, which stand elsewhere."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert cited["message"] and cited["authors"] and cited["title"].startswith("flwr-dmml")
    assert cited["license"] == "Apache-2.0"
    assert not {"version", "date-released"} & set(cited)


def test_it_cites_the_four_papers():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    for paper in references:
        assert {"type", "title", "authors", "year"} <= set(paper)
        assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
        assert "url" in paper or "doi" in paper
    ids = [value["value"] for paper in references for value in paper["identifiers"]]
    assert {i.removeprefix("arXiv:") for i in ids} == PAPERS and len(ids) == 4


def test_the_titles_are_those_of_the_methods_pages():
    """But for capitals: a page breaks its lines where it likes."""
    pages = [page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md")]
    text = " ".join(" ".join(pages).split()).casefold()
    for paper in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]:
        assert paper["title"].casefold() in text


def test_the_changelog_has_this_version():
    """Newest first, each with its date; what is not released yet comes before all."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]" and f"[{__version__}]" in released[0]
    days = [date.fromisoformat(line.split(" - ")[1]) for line in released]
    assert days == sorted(days, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_tested_set_is_within_the_bounds():
    """It names every distribution that pyproject.toml asks for, in any extra, and nothing twice."""
    lines = (ROOT / "constraints" / "tested.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(pinned) == len(pins)
    for text in requires("flwr-dmml") or []:
        wanted = Requirement(text)
        board = "platform_release" in str(wanted.marker) and '"tegra" in' in str(wanted.marker)
        if board or wanted.name == "flwr-dmml":
            continue
        version = pinned[canonicalize_name(wanted.name)].removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted.name} {version}"
