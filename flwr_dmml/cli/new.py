"""The command ``flwr-dmml new``."""

import keyword
import re
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ..base.errors import SettingsError
from .output import errors_in_words, say

OWN_METHOD, OWN_DATA = "smooth", "mine"
"""Names of the method and of the data set that come with the app."""
BASELINE = "dpsgd"


def new(
    name: Annotated[
        str, typer.Argument(help="Name of the app, and its folder: letters, digits, '-'.")
    ],
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Method to run; dmml-kd by default."),
    ] = None,
    own_method: Annotated[
        bool, typer.Option("--own-method", help="Add a method of your own to edit.")
    ] = False,
    own_data: Annotated[
        bool, typer.Option("--own-data", help="Add a data set of your own to edit.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--in", metavar="FOLDER", help="Where to put the app's folder.")
    ] = Path("."),
) -> None:
    """Write a new Flower app that runs as it is.

    Only the settings that matter are in its pyproject.toml. Nothing is overwritten.

    [bold]Examples[/bold]

      flwr-dmml new my-app && flwr-dmml simulate my-app

      flwr-dmml new my-app --method dmml

      flwr-dmml new my-app --own-method --own-data

    [bold]Exit status[/bold]  0: written.  1: the name or the method is not allowed, or the folder
    exists.  2: wrong command line.
    """
    with errors_in_words():
        package = _package(name)
        if own_method and method is not None:
            raise SettingsError("--method and --own-method: give one of them")
        chosen = OWN_METHOD if own_method else _known(method or "dmml-kd")
        target = folder / name
        if target.exists():
            raise SettingsError(f"{target} is there already; choose another name, or --in FOLDER")
        written = _files(name, package, chosen, own_method=own_method, own_data=own_data)
        for path, text in written.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
    for path in written:
        say(f"  {target / path}")
    say(f"Try it:  flwr-dmml simulate {target}")


def _files(
    name: str, package: str, method: str, *, own_method: bool, own_data: bool
) -> dict[str, str]:
    """Return the files of the app, by where they are in its folder."""
    imports, parts, more = "", [], ""
    if own_data:
        imports += f"\nfrom {package}.data import MINE"
        parts.append("datasets=[MINE]")
        more += f"\n- **Your data** are read in `{package}/data.py`."
    if own_method:
        imports += f"\nfrom {package}.method import Smooth"
        parts.insert(0, "Smooth")
        more += f"\n- **Your method** is `{package}/method.py`."
    digits = 'alpha = 0.3\nmodality-pattern = "audio,image,audio+image"\nsamples-per-node = 100'
    values = {
        "name": name,
        "package": package,
        "method": method,
        "baseline": BASELINE if method != BASELINE else "local",
        "devices": "6",
        "dataset": OWN_DATA if own_data else "digits",
        "division": 'partition = "own"' if own_data else digits,
        "imports": imports + "\n" if imports else "",
        "parts": ", ".join(parts),
        "more": more,
        "chance": "0.4" if own_data else "0.2",
    }
    made = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/client_app.py": "client_app.py",
        f"{package}/server_app.py": "server_app.py",
        **({f"{package}/method.py": "method.py"} if own_method else {}),
        **({f"{package}/data.py": "data.py"} if own_data else {}),
        "tests/test_app.py": "test_app.py",
    }
    folder = files("flwr_dmml.cli") / "template"
    texts = {
        path: Template((folder / f"{file}.txt").read_text(encoding="utf-8")).substitute(values)
        for path, file in made.items()
    }
    return {**texts, f"{package}/__init__.py": f'"""The app {name}."""\n'}


def _package(name: str) -> str:
    """Return the name of the app's Python package.

    Raises
    ------
    SettingsError
        It cannot be one, or is another one's.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise SettingsError(f"{name!r}: a name is of small letters, digits and '-', as in my-app")
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or find_spec(package):
        raise SettingsError(f"{name!r}: there is a Python module of that name; choose another one")
    return package


def _known(method: str) -> str:
    from ..settings import find_parts

    methods = find_parts().methods
    if method not in methods:
        raise SettingsError(f"--method {method}: there is no such method; {', '.join(methods)}")
    return method
