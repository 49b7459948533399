"""Libraries that are missing or broken: who is stopped, who is not, and what is said."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART, ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from typer.testing import CliRunner

from flwr_dmml.base import libraries
from flwr_dmml.base.libraries import LIBRARIES, LibraryError, mend, needed, partners, require
from flwr_dmml.cli import app

TINY = ("num-server-rounds=1", "local-iterations=1", "samples-per-node=40", "compare-with=")
SCRIPT = ROOT / "tests" / "broken_libraries.py"
BROKEN = (
    "torchaudio", "torchvision", "cvxpy", "sklearn", "soundfile", "PIL", "flwr_datasets", "ray",
    "zenoh", "plotly", "kaleido", "pyarrow", "scipy",
)  # fmt: skip
TORCH_SET = 'pip install --upgrade "torch>=2.13,<3" "torchvision>=0.28,<1" "torchaudio>=2.11.1,<3"'

AGAIN = "pip install --force-reinstall --no-deps"
FROM = "--index-url INDEX, where INDEX is the one that torch"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happens with each library broken in turn."""
    work = tmp_path_factory.mktemp("broken")
    made = CliRunner().invoke(app, ["partition", str(QUICKSTART), "-n", "2", "-o", f"{work}/parts"])
    assert made.exit_code == 0, made.output
    sets = [part for key in (*TINY, f"run-dir={work}", "run-name=run") for part in ("--set", key)]
    ran = CliRunner().invoke(app, ["simulate", str(QUICKSTART), "-n", "2", "--workers", "0", *sets])
    assert ran.exit_code == 0, ran.output
    (work / "own").mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(work / "parts"), str(work / "run"), str(work / "own")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("library", BROKEN)
def test_a_broken_library_ends_only_what_needs_it(broken: dict[str, Any], library: str):
    status, output = broken[library]["run"]
    assert status == 0, output
    assert broken[library]["rounds"] == 1


@pytest.mark.parametrize("library", BROKEN)
def test_what_needs_a_broken_library_says_so_and_how_to_mend_it(
    broken: dict[str, Any], library: str
):
    kind, said = broken[library]["needed"]
    said = " ".join(said.split())
    name = LIBRARIES[library].name
    assert kind == "LibraryError", said
    assert f"{name} {version(name)} does not work beside" in said
    assert "Error: undefined symbol: broken" in said
    assert f"It is needed for {LIBRARIES[library].use}. To fix it: {mend(library)}" in said
    assert "Traceback" not in said


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        LIBRARIES, "no_such_module", libraries.Library("no-such-module", "nothing", "report")
    )
    with pytest.raises(LibraryError) as caught:
        require("no_such_module")
    assert str(caught.value) == (
        f"no-such-module is not installed (numpy {version('numpy')}, Python "
        f"{platform.python_version()}). It is needed for nothing. To fix it: pip install "
        '"flwr-dmml[report]"'
    )


def test_a_folder_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "just_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        LIBRARIES, "just_a_folder", libraries.Library("just-a-folder", "nothing", "report")
    )
    with pytest.raises(LibraryError, match="just-a-folder is not installed"):
        require("just_a_folder")


def test_the_cause_is_told():
    def load() -> None:
        try:
            raise OSError("undefined symbol: f")
        except OSError as error:
            raise OSError("Could not load this library: x.so") from error

    said = r"x\.so, because of OSError: undefined symbol: f\. It is needed"
    with pytest.raises(LibraryError, match=said), needed("soundfile"):
        load()


@pytest.mark.parametrize(
    ("torch", "torchvision", "torchaudio"),
    [
        ("2.5.0", "==0.20.*", "==2.5.*"),
        ("2.8.0a0+5228986c39.nv25.6", "==0.23.*", "==2.8.*"),
        ("2.10.0", "==0.25.*", "==2.10.*"),
        ("2.11.0+cu130", "==0.26.*", "==2.11.0"),
        ("2.12.1", "==0.27.*", None),
        ("2.13.0", "==0.28.*", ">=2.11.1"),
        ("2.14.1", ">=0.29", ">=2.11.1"),
        ("2.15.0", ">=0.29", ">=2.11.1"),
        ("3.0.0", ">=0.29", ">=2.11.1"),
    ],
)
def test_what_goes_with_a_torch(torch: str, torchvision: str, torchaudio: str | None):
    expected = {"torchvision": torchvision, "torchaudio": torchaudio}
    assert partners(torch) == {name: spec for name, spec in expected.items() if spec}


def test_the_installed_set_is_one_that_goes_together():
    for name, specifier in partners(version("torch")).items():
        assert SpecifierSet(specifier).contains(version(name))


@pytest.mark.parametrize(
    ("torch", "release", "module", "command"),
    [
        ("2.11.0", "6.1.0", "torchaudio", TORCH_SET),
        ("", "6.1.0", "torch", TORCH_SET),
        ("2.14.1", "6.1.0", "torch", TORCH_SET),
        ("2.14.1", "6.1.0", "torchvision",
         f'{AGAIN} "torchvision>=0.29"'),
        ("2.14.1+cpu", "6.1.0", "torchaudio",
         f'{AGAIN} "torchaudio>=2.11.1" {FROM} 2.14.1+cpu came from'),
        ("2.8.0", "5.15.148-tegra", "torchaudio",
         f'{AGAIN} "torchaudio==2.8.*" {FROM} 2.8.0 came from'),
        ("2.12.0", "5.15.148-tegra", "torchaudio",
         "install another torch: no torchaudio goes with torch 2.12.0"),
    ],
)  # fmt: skip
def test_what_mends_the_torch_set(
    monkeypatch: pytest.MonkeyPatch, torch: str, release: str, module: str, command: str
):
    monkeypatch.setattr(libraries, "installed", {"torch": torch, module: torch}.get)
    if release.endswith("tegra"):
        monkeypatch.setattr(platform, "release", lambda: release)
    assert mend(module) == command


@pytest.mark.parametrize(
    ("release", "bounds"),
    [
        ("6.8.0-45-generic", {"torch": ">=2.13,<3", "torchaudio": ">=2.11.1,<3"}),
        ("6.6.51+rpt-rpi-v8", {"torch": ">=2.13,<3", "torchaudio": ">=2.11.1,<3"}),
        ("5.15.148-tegra", {"torch": ">=2.5,<3", "torchaudio": ">=2.5,<3"}),
    ],
)
def test_a_jetson_may_keep_its_torch(release: str, bounds: dict[str, str]):
    asked: dict[str, SpecifierSet] = {}
    for text in libraries.requires(libraries.DISTRIBUTION) or []:
        found = Requirement(text)
        here = {"platform_release": release, "extra": ""}
        if found.name in bounds and found.marker and found.marker.evaluate(here):
            assert found.name not in asked
            asked[found.name] = found.specifier
    assert asked == {name: SpecifierSet(text) for name, text in bounds.items()}


def test_what_mends_the_others(monkeypatch: pytest.MonkeyPatch):
    assert mend("soundfile") == 'pip install --force-reinstall "soundfile>=0.12"'
    assert mend("ray") == 'pip install --force-reinstall ray "flwr-dmml[simulation]"'
    monkeypatch.setattr(libraries, "installed", lambda name: "")
    assert mend("soundfile") == 'pip install "soundfile>=0.12"'
    assert mend("zenoh") == 'pip install "flwr-dmml[direct]"'


def test_every_library_is_one_that_this_package_asks_for():
    for library in LIBRARIES.values():
        found = libraries.requirement(library.source or library.name, library.extra)
        marker = str(found.marker or "")
        assert ("extra" in marker) == bool(library.extra)
    with pytest.raises(LookupError, match="flwr-dmml does not require plotly"):
        libraries.requirement("plotly")


def test_without_ray_devices_share_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise OSError('cannot open shared object')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("flwr_dmml.engine.choice.cores", lambda: 2)
    monkeypatch.setattr("flwr_dmml.engine.choice.SMALL_S", 0.0)  # no run is small
    sets = [part for key in (*TINY, f"run-dir={tmp_path}") for part in ("--set", key)]
    ran = CliRunner().invoke(app, ["simulate", str(QUICKSTART), "-n", "2", *sets])
    assert ran.exit_code == 0, ran.output
    said = " ".join(ran.stderr.split())
    assert "Warning: all devices run in this process: ray" in said
    assert "OSError: cannot open shared object" in said
