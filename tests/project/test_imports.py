"""Imports point one way, and each package needs no more than it says."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

import flwr_dmml

PACKAGE = ROOT / "flwr_dmml"
ORDER = [
    "base",
    "payload",
    "graph",
    "gossip",
    "energy",
    "privacy",
    "data",
    "losses",
    "models",
    "learning",
    "methods",
    "settings",
    "deploy",
    "transport",
    "tracking",
    "clients",
    "engine",
    "strategies",
    "report",
    "api",
    "supernode",
    "fleet",
    "doctor",
    "cli",
]
"""The packages: each imports only those before it."""
WITHOUT_FLOWER = ORDER[: ORDER.index("transport")]
"""They need neither Flower nor Ray."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return found


@cache
def imports() -> dict[str, set[tuple[str, str]]]:
    """The names that each module imports, as (module, name), wherever in the file it does."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for module, path in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[module] |= {(alias.name, "") for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                base = ["flwr_dmml", *filter(None, package.split("."))]
                above = base[: len(base) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                found[module] |= {(source, alias.name) for alias in node.names}
    return found


def own(module: str) -> set[str]:
    """The modules of this package that one imports."""
    found = set()
    for source, name in imports()[module]:
        if source.partition(".")[0] == "flwr_dmml":
            full = f"{source}.{name}".removeprefix("flwr_dmml.")
            found.add(full if full in modules() else source.removeprefix("flwr_dmml").lstrip("."))
    return found - {""}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_package_has_its_place():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ORDER)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_downwards(package: str):
    allowed = set(ORDER[: ORDER.index(package) + 1])
    for module in modules():
        if package_of(module) == package:
            above = {other for other in own(module) if package_of(other) not in allowed}
            assert not above, f"{module} imports {', '.join(sorted(above))}"


def test_no_module_imports_itself_in_a_circle():
    """A package's own __init__ only names what is in it."""
    graph = {module: own(module) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", WITHOUT_FLOWER)
def test_what_learns_needs_neither_flower_nor_ray(package: str):
    for module in modules():
        if package_of(module) == package:
            foreign = {source.partition(".")[0] for source, _ in imports()[module]}
            assert not foreign & {"flwr", "ray"}, module


def test_no_private_name_crosses_modules():
    for module in modules():
        for source, name in imports()[module]:
            private = [part for part in (*source.split("."), name) if re.match(r"_[^_]", part)]
            if source.partition(".")[0] == "flwr_dmml":
                assert not private, f"{module} imports {source}.{name}"


def test_the_public_face_is_there_and_costs_nothing():
    """Every name can be imported, and importing the package loads no torch."""
    code = "import sys, flwr_dmml; assert 'torch' not in sys.modules; print(*dir(flwr_dmml))"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"Learner", "PeerStrategy", "make_client_app", "make_server_app"} <= set(names)
    assert all(getattr(flwr_dmml, name) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'Lerner'"):
        flwr_dmml.Lerner  # noqa: B018
