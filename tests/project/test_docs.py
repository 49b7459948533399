"""Every command in the READMEs and the docs: run here, made small, or not run for a reason."""

import html
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.clients import find_methods
from flwr_dmml.engine import flatten_config, load_app, run_app
from flwr_dmml.settings import every_setting, find_parts

FOLDERS = {"": "*.md", "docs": "**/*.md", "examples": "*/README.md"}
PAGES = [page for folder, kind in FOLDERS.items() for page in sorted((ROOT / folder).glob(kind))]
TINY = {
    "num-nodes": 3,
    "num-server-rounds": 4,
    "local-iterations": 1,
    "samples-per-node": 40,
    "partition": "iid",
}
NOT_RUN = {
    "pip install": "CI itself runs the test command; a package index is not there in every test",
    "python -m build": "tests/integration/test_build.py builds",
    "twine check": "done before a release; tests/integration/test_build.py reads the same files",
    "flwr run": "tests/integration/test_flwr_run.py runs the same app by flwr run",
    "--ray-address": "tests/integration/test_sharded.py runs a cluster of two machines",
    "--resume": "tests/integration/test_resume.py stops and resumes runs",
    "python benchmarks/": "takes minutes to hours; its figures are in the docs",
    "--figures": "needs Chrome; test_report_browser.py runs it where there is one",
    "--open": "opens a browser; tests/report/test_report.py writes the same page",
    "flwr-dmml compare": "needs the runs; tests/report/test_comparison.py compares runs",
    "flwr-dmml audit": "needs the run; tests/api/test_auditing.py audits runs",
    "flwr-dmml predict": "needs the run; tests/project/test_use_a_model.py predicts",
    "flwr-dmml export": "needs the run; tests/project/test_use_a_model.py exports",
    "flwr-dmml sweep": "needs the file; tests/cli/test_sweep.py runs sweeps",
    "flwr-dmml data check": "tests/data/test_check.py checks folders",
    "--bibtex": "tests/project/test_references.py reads them",
    "--help": "tests/cli/test_cli.py reads the help",
    "examples/custom_method": "tests/project/test_custom_method.py runs it",
    "simulate examples/fleet": "needs its parts; tests/project/test_examples.py cuts and runs them",
    "simulate examples/sensors": "needs the recordings; tests/project/test_examples.py runs it",
    "flwr-dmml doctor": "tests/doctor/test_doctor.py runs it",
    "flwr-dmml partition": "tests/data/test_parts.py cuts the same app's data",
    "flwr-dmml fleet": "tests/integration/test_fleet_tls.py runs a fleet from init to the end",
    "flower-super": "tests/integration/test_fleet_run.py starts a SuperLink and SuperNodes",
    "ray st": "tests/integration/test_sharded.py runs a cluster of two machines",
}
"""What a command holds that is not run here, and why not."""
SHARED = {"qg-dsgdm-n": "qg-dsgdm"}
METHODS = {
    name: ROOT / "docs" / "methods" / f"{SHARED.get(name, name)}.md"
    for name, learner in find_methods().items()
    if learner.__module__.startswith("flwr_dmml.")
}
"""The page of every built-in method."""


def tables(page: Path) -> dict[str, dict[str, str]]:
    """Return a page's tables by their header: the rows by their first cell."""
    found: dict[str, dict[str, str]] = {}
    text = page.read_text(encoding="utf-8")
    for header, rows in re.findall(r"^(\|.*\|)\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        table = found.setdefault(header, {})
        table |= {row.split("|")[1].strip(): row for row in rows.splitlines()}
    return found


ALL = [(page, line) for page in PAGES for line in commands(page)]
TUTORIAL = "tutorial.md"
RUN_AS_A_WHOLE = {
    TUTORIAL,
    "own-data.md",
    "published-recordings.md",
    "from-flower.md",
    "use-a-model.md",
    "twenty-boards.md",
}
"""Pages that are run from start to end: here, and in other tests of this folder."""
RUN = [
    (page, line)
    for page, line in ALL
    if not any(mark in line for mark in NOT_RUN) and page.name not in RUN_AS_A_WHOLE
]


@pytest.mark.parametrize(("page", "line"), RUN, ids=lambda value: str(value)[-60:])
def test_a_command_of_the_docs_works(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it stands, but with few devices, samples and rounds, and in one process."""
    words = shlex.split(line)
    assert words[:2] == ["flwr-dmml", "simulate"], f"{page.name}: run it, or say in NOT_RUN why not"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    small = {**TINY, "run-dir": str(tmp_path)}
    for key, value in small.items():
        words += ["--set", f"{key}={value}"]
    workers = [] if "--workers" in words else ["--workers", "0"]
    done = CliRunner().invoke(app, [*words[1:], *workers], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output


def test_there_are_commands_and_every_reason_is_used():
    assert len(RUN) > 5
    unused = [mark for mark in NOT_RUN if not any(mark in line for _, line in ALL)]
    assert unused in ([], ["python benchmarks/"])


def test_an_app_lists_what_the_docs_set_with_flwr_run():
    """``flwr run -c`` refuses other keys, and names none."""
    seen = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        usual = "fleet" if page.name in ("fleet.md", "twenty-boards.md") else "quickstart"
        for found in re.finditer(r'-c "([^"]*=[^"]*)"', text := page.read_text()):
            lines = text[: found.start()].splitlines()[-2:]
            app = [usual, *re.findall(r"examples/(\w+)", "\n".join(lines))][-1]
            keys = {pair.partition("=")[0] for pair in shlex.split(found[1])} - {"key", "..."}
            assert keys <= configured(app).keys(), f"{page.name}, {app}: {found[1]}"
            seen += 1
    assert seen > 8


def configured(example: str) -> dict[str, Any]:
    """Return the run config of an example, flat."""
    text = (ROOT / "examples" / example / "pyproject.toml").read_text()
    return flatten_config(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


def test_links_lead_to_what_is_there():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
                assert anchor in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize("method", METHODS)
def test_a_page_of_a_method_has_all_its_settings(method: str):
    """With their defaults, and no others; the overview leads there."""
    page, parts = METHODS[method], find_parts()
    rows = tables(page).get("| setting | default | meaning |", {})
    shown = {key.strip("`"): row.split("|")[2].strip(" `") for key, row in rows.items()}
    settings = {
        key: json.dumps(info.default)
        for key, info in every_setting(parts)
        if key.startswith(f"{method}.")
    }
    assert {k: v for k, v in shown.items() if k.startswith(f"{method}.")} == settings
    of_others = {k for k in shown if METHODS.get(k.partition(".")[0]) != page}
    assert not of_others
    assert f"`{method}`" in page.read_text() or f'"{method}"' in page.read_text()
    assert f"]({page.name})" in (page.parent / "index.md").read_text()


def test_figures_are_the_same_on_every_page():
    """Pages of methods repeat rows of the overview, of one another and of the benchmarks."""
    seen: dict[tuple[str, str], str] = {}
    repeated = 0
    pages = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]
    for page in (*pages, *sorted((ROOT / "docs" / "methods").glob("*.md"))):
        for header, rows in tables(page).items():
            if header.startswith(("| setting |", "| method |", "| name |")):
                continue
            for first, row in rows.items():
                repeated += (header, first) in seen
                assert seen.setdefault((header, first), row) == row, f"{page.name}: {first}"
    assert repeated > 40


def test_the_readme_shows_the_figures_of_the_benchmarks():
    """D-PSGD, the control and DMML-KD: three of the columns of the full table."""
    found = {}
    for page in ("README.md", "docs/benchmarks.md"):
        (table,) = (t for h, t in tables(ROOT / page).items() if h.startswith("| test accuracy"))
        cells = {first: row.split("|")[2:-1] for first, row in table.items()}
        found[page] = {first: [c.strip(" *") for c in row] for first, row in cells.items()}
    full = found["docs/benchmarks.md"]
    for first, row in found["README.md"].items():
        assert row == [full[first][i] for i in (0, 2, 4)], first
    assert len(found["README.md"]) == 6


def test_a_strategy_by_hand_takes_a_topology(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As how-to says: the app of that page, but with its other ServerApp."""
    write_files(ROOT / "docs" / "howto" / "own-topology.md", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("server_app:app", "by_hand:app"))
    run_app(load_app(tmp_path), 3, {**TINY, "num-server-rounds": 2})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1


def test_the_tutorial_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All its commands, in order, unchanged but for the engine; its file is written as shown."""
    pytest.importorskip("plotly", reason="reports need the extra 'report'")
    page = ROOT / "docs" / TUTORIAL
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"```toml\n# (\S+)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for name, content in files:
        (tmp_path / name).write_text(content)
    lines = [line for line in commands(page) if not line.startswith("pip install")]
    assert len(lines) == 5 and [name for name, _ in files] == ["seeds.toml"]
    for line in lines:
        words = shlex.split(line)[1:]
        alone = ["--workers", "0"] if words[0] in ("simulate", "sweep") else []
        done = CliRunner().invoke(app, [*words, *alone], env={"COLUMNS": "200"})
        assert done.exit_code == 0, (line, done.output)
    for made in ("runs/first/report.html", "comparison.html", "runs/seeds/comparison.html"):
        assert (tmp_path / made).stat().st_size > 100_000
    table = (tmp_path / "comparison.md").read_text()
    assert "dmml-kd" in table and "dpsgd" in table


def test_the_site_builds_without_warnings(tmp_path: Path):
    """Strict: a link, a page or a docstring that is wrong is an error."""
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = (("clients", "make_client_app"), ("gossip", "Lian et al."), ("strategies", "allocate"))
    for page, word in shown:
        assert word in (tmp_path / "reference" / page / "index.html").read_text()
    for method in METHODS.values():
        page = (tmp_path / "methods" / method.stem / "index.html").read_text()
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"' in page
        assert "$" not in re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not (tmp_path / "_hooks").exists()
    assert 'role="dialog" aria-label="Search"' in (tmp_path / "index.html").read_text()
    search = json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]
    texts = {entry["location"]: html.unescape(entry["text"]) for entry in search}
    for key, info in every_setting(find_parts()):
        found = texts[f"settings/#{key}"]
        assert str(info.description).removesuffix(".") in found
        assert f"default <code>{json.dumps(info.default)}</code>" in found
    assert "number, at least 0;" in texts["settings/#energy.battery-share"]
    assert 'one of <code>"relay"</code>, <code>"direct"' in texts["settings/#exchange.transport"]
    reference = [page.read_text() for page in (tmp_path / "reference").rglob("*.html")]
    assert not [page for page in reference if re.search(r":[a-z]+:(<code>|`)|::</p>", page)]


@pytest.fixture(scope="module")
def equations() -> ModuleType:
    """The hook of the site's build."""
    pytest.importorskip("latex2mathml", reason="needs the extra 'docs'")
    return hook("equations")


@pytest.fixture(scope="module")
def roles() -> ModuleType:
    """The hook that replaces Sphinx roles."""
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    return hook("roles")


def hook(name: str) -> ModuleType:
    """Load a hook of the site's build."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (":meth:<code>mix</code>", '<a href="./#flwr_dmml.b.Rule.mix"><code>mix</code></a>'),
        (":class:<code>Rule</code>", '<a href="./#flwr_dmml.b.Rule"><code>Rule</code></a>'),
        (":func:<code>~.a.run</code>", '<a href="../a/#flwr_dmml.a.run"><code>run</code></a>'),
        (":attr:<code>.Rule.mix</code>", '<a href="./#flwr_dmml.b.Rule.mix"><code>Rule.mix</code>'),
        (":class:<code>~torch.nn.Module</code>", "<code>Module</code>"),
        (":meth:<code>twice</code>", "<code>twice</code>"),
    ],
)
def test_a_role_becomes_a_link_or_code(roles: ModuleType, role: str, expected: str):
    """A link where one object is meant; what the site lacks or has twice is code."""
    ids = ("Rule", "Rule.mix", "Two.twice", "One.twice")
    urls = {f"flwr_dmml.b.{name}": "b/" for name in ids} | {"flwr_dmml.a.run": "a/"}
    page = f'<h2 id="flwr_dmml.b.Rule">Rule</h2><p>See {role}, then::</p>\n<pre>x</pre>'
    found = roles.replaced(page, urls, "b/")
    assert f"<p>See {expected}" in found and found.endswith("then:</p>\n<pre>x</pre>")


def test_an_equation_becomes_mathml(equations: ModuleType):
    mathml = equations.to_mathml(r"\frac{a}{b} \le x_k^t", display=True)
    assert mathml.startswith("<math") and 'display="block"' in mathml
    assert "<mfrac>" in mathml and "<msubsup>" in mathml


@pytest.mark.parametrize(
    ("latex", "problem"),
    [
        (r"\fraction{a}{b}", "unknown command"),
        (r"{a", "braces"),
        (r"a}", "braces"),
        (r"\frac{a}", "mfrac"),
        (r"x_", "Error"),
        (r"x_a_b", "DoubleSubscripts"),
        (r"\left( x", "Left"),
        (r"a & b", "ParseError"),
    ],
)
def test_what_is_no_latex_is_refused(equations: ModuleType, latex: str, problem: str):
    with pytest.raises(ValueError, match=problem):
        equations.to_mathml(latex, display=False)


SITE = """
site_name: x
theme: {name: mkdocs}
plugins: []
hooks: [HOOK]
markdown_extensions:
  - pymdownx.arithmatex: {generic: true, inline_syntax: [dollar], block_syntax: [dollar]}
  - pymdownx.superfences
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A $x^2$ and `$HOME`.\n\n$$\n\\sum_i x_i\n$$\n\n```text\necho $HOME $$\n```\n", ""),
        (r"A $\nonsense{x}$.", r"unknown command \\nonsense"),
        ("A $$x$$ left open: $$\n", "belongs to no equation"),
    ],
)
def test_a_site_with_a_wrong_equation_is_not_built(tmp_path: Path, text: str, problem: str):
    pytest.importorskip("latex2mathml", reason="needs the extra 'docs'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(text)
    hook = ROOT / "docs" / "_hooks" / "equations.py"
    (tmp_path / "mkdocs.yml").write_text(SITE.replace("HOOK", str(hook)))
    command = [sys.executable, "-m", "mkdocs", "build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(problem), done.stderr
    assert re.search(problem, done.stderr)
    if not problem:
        html = (tmp_path / "site" / "index.html").read_text()
        assert html.count("<math") == 2 and "$HOME</code>" in html and "echo $HOME $$" in html
