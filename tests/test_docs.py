"""Every command in the README and the docs: run here, made small, or not run for a reason."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_dmml.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = {
    "num-nodes": 3,
    "num-server-rounds": 4,
    "local-iterations": 1,
    "samples-per-node": 40,
    "partition": "iid",
}
NOT_RUN = {
    "pip install": "CI itself runs the test command; a package index is not there in every test",
    "flwr run": "tests/integration/test_flwr_run.py runs the same app by flwr run",
    "--ray-address": "tests/integration/test_sharded.py runs a cluster of two machines",
    "--resume": "tests/integration/test_resume.py stops and resumes runs",
    "python benchmarks/": "takes minutes to hours; its figures are in the docs",
    "--figures": "needs Chrome; test_report_browser.py runs it where there is one",
    "--open": "opens a browser; tests/test_report.py writes the same page",
    "flwr-dmml compare": "needs the runs; tests/test_report.py compares runs",
    "flwr-dmml sweep": "needs the file; tests/test_sweep.py runs sweeps",
    "--help": "tests/test_cli.py reads the help",
}
"""What a command holds that is not run here, and why not."""


def commands(page: Path) -> list[str]:
    """Return the commands of a page's ``bash`` blocks, one a line, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+#.*$", "", line).strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


ALL = [(page, line) for page in PAGES for line in commands(page)]
TUTORIAL = "tutorial.md"
RUN = [
    (page, line)
    for page, line in ALL
    if not any(mark in line for mark in NOT_RUN) and page.name != TUTORIAL
]


@pytest.mark.parametrize(("page", "line"), RUN, ids=lambda value: str(value)[-60:])
def test_a_command_of_the_docs_works(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it stands, but with few devices, samples and rounds, and in one process."""
    words = shlex.split(line)
    assert words[:2] == ["flwr-dmml", "simulate"], f"{page.name}: run it, or say in NOT_RUN why not"
    monkeypatch.chdir(ROOT)
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
    page = (tmp_path / "reference" / "clients" / "index.html").read_text()
    assert "make_client_app" in page and "Lian et al." in page
