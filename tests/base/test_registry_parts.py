"""Built-in parts are found by their names, without being listed anywhere."""

import sys
from pathlib import Path

import pytest

from flwr_dmml.base.errors import MethodError
from flwr_dmml.base.registry import built_in, find

MODULE = """
class Base:
    name = ""


class First(Base):
    name = "first"


class Helper(First):
    '''It does not name itself.'''
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "parts_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(MODULE)
    (folder / "two.py").write_text(
        "from .one import First\n\n\nclass Two(First):\n    name = 'two'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name  # type: ignore[misc]
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_a_class_that_names_itself_is_found_once_where_it_is_written(package: str) -> None:
    base = __import__(f"{package}.one", fromlist=["Base"]).Base
    assert [cls.__name__ for cls in built_in(base, package)] == ["First", "Two"]
    found = find("part", base, package, "no.such.group")
    assert list(found) == ["first", "two"]


def test_a_name_that_is_taken_is_refused(package: str) -> None:
    one = __import__(f"{package}.one", fromlist=["Base"])
    mine = type("Mine", (one.Base,), {"name": "two"})
    with pytest.raises(MethodError, match="two parts are named 'two'"):
        find("part", one.Base, package, "no.such.group", [mine])
    with pytest.raises(MethodError, match=r"part '': .* is not a subclass of Base"):
        find("part", one.Base, package, "no.such.group", [int])
