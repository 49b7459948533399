"""What is published: built, looked into, and run where there is nothing of the checkout."""

import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT

from flwr_dmml import __version__

PACKAGE = ROOT / "flwr_dmml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"flwr_dmml-{__version__}"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def run(*command: object, cwd: Path) -> str:
    """Run a command, without the PYTHONPATH of the tests; return what it printed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Built:
    """The files of a release, and beside them the wheel that comes straight from the checkout."""

    sdist: Path
    wheel: Path
    direct: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build with the backend that is installed, as a package index may be out of reach."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    run(*build, folder / "release", ROOT, cwd=folder)  # the wheel is built from the sdist
    run(*build, folder / "direct", "--wheel", ROOT, cwd=folder)
    wheel = f"{NAME}-py3-none-any.whl"
    return Built(
        folder / "release" / f"{NAME}.tar.gz", folder / "release" / wheel, folder / "direct" / wheel
    )


@pytest.fixture(scope="module")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built.sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare environment that has the wheel; what it needs is that of the running one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", built.wheel]
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    (own,) = folder.glob("lib/python*/site-packages")
    others = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (own / "dependencies.pth").write_text("\n".join(others))  # an editable install is not read
    return folder


def files_of_the_package() -> Iterator[str]:
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_has_the_package_and_nothing_else(built: Built):
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    info = f"{NAME}.dist-info/"
    assert {n for n in names if not n.startswith(info)} == set(files_of_the_package())
    assert {
        "flwr_dmml/py.typed",
        "flwr_dmml/report/assets/page.css",
        "flwr_dmml/report/assets/page.js",
        "flwr_dmml/fleet/status_app/pyproject.toml",
        f"{info}licenses/LICENSE",
    } <= names


def test_what_the_wheel_says_of_itself(built: Built):
    with zipfile.ZipFile(built.wheel) as wheel:
        about = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
        points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert about["Version"] == __version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert set(about.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "flwr-dmml = flwr_dmml.cli:main" in points
    for name, target in PROJECT["entry-points"]["flwr_dmml.datasets"].items():
        assert f"{name} = {target}" in points


def test_the_sdist_has_all_that_is_tracked(unpacked: Path):
    """Tests, examples, docs and benchmarks, too: what was published can be checked and changed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: there is nothing to compare with")
    tracked = set(run("git", "ls-files", cwd=ROOT).splitlines())
    found = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    published = {name for name in tracked if not name.startswith(".ci/")}  # the gate stays here
    assert published <= found
    tops = {name.partition("/")[0] for name in published}
    assert {name.partition("/")[0] for name in found} == tops | {"PKG-INFO"}


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(built: Built):
    assert built.wheel.read_bytes() == built.direct.read_bytes()


def test_what_is_installed_is_imported_and_answers(installed: Path, tmp_path: Path):
    where = "import flwr_dmml; print(flwr_dmml.__file__)"
    package = Path(run(installed / "bin" / "python", "-c", where, cwd=tmp_path).strip())
    assert package.is_relative_to(installed)
    command = installed / "bin" / "flwr-dmml"
    assert run(command, "--version", cwd=tmp_path).split() == ["flwr-dmml", __version__]
    assert "simulate" in run(command, "--help", cwd=tmp_path)


def test_what_is_installed_trains(installed: Path, unpacked: Path, tmp_path: Path):
    """Two devices, a round of one iteration; the app is the one in the sdist."""
    settings = {
        "num-nodes": 2,
        "num-server-rounds": 1,
        "local-iterations": 1,
        "samples-per-node": 40,
        "compare-with": "",
        "run-name": "smoke",
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    app = unpacked / "examples" / "quickstart"
    run(installed / "bin" / "flwr-dmml", "simulate", app, "--workers", 0, *sets, cwd=tmp_path)
    metrics = tmp_path / "runs" / "smoke" / "dmml-kd" / "metrics.jsonl"
    (line,) = map(json.loads, metrics.read_text().splitlines())
    assert line["round"] == 1 and len(line["nodes"]) == 2 and not line["failed"]
