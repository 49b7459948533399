"""Each fault on each engine: the cells of one table, which docs/reliability.md shows."""

import ast
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_faults import ENGINES, FAULTS, OUTCOMES, page_part, parts_of_page

CELLS = {
    f"{fault}, {engine}": cell
    for fault, cells in FAULTS.items()
    for engine, cell in zip(ENGINES, cells, strict=True)
}
CHECKED = {name: cell.check for name, cell in CELLS.items() if cell.check}


@cache
def names_in(file: str) -> set[str]:
    """Return the names of a file's tests."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", CHECKED)
def test_a_cell(name: str, tmp_path: Path):
    CHECKED[name](tmp_path)


def test_every_cell_is_shown_or_says_why_not():
    for name, cell in CELLS.items():
        assert cell.outcome in OUTCOMES, name
        assert [bool(cell.check), bool(cell.tests), bool(cell.why)].count(True) == 1, name
        for test in cell.tests:
            file, _, function = test.partition("::")
            assert function.startswith("test_") and function in names_in(file), test


def test_the_docs_show_the_table():
    """If not: ``python tests/helpers_faults.py``."""
    assert parts_of_page()[1] == page_part()
