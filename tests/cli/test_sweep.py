"""Sweeps: what a file says, what runs, what is skipped, and the comparison at the end."""

import json
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import Result
from helpers import QUICKSTART, ROOT
from helpers_docs import write_files
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.overrides import override, parse_override
from flwr_dmml.cli import app
from flwr_dmml.cli.sweep_plan import NAME_LENGTH, SweepError, read_sweep, run_name
from flwr_dmml.engine import load_app, run_app
from flwr_dmml.settings import find_parts, parse_settings

SETTINGS = """
[settings]
num-nodes = 3
num-server-rounds = 2
local-iterations = 1
samples-per-node = 40
energy.battery-share = 0.0
"""
GRID = """
[grid]
method = ["dpsgd", "local"]
seed = [0, 1]
"""


def write(folder: Path, *parts: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(f'app = "{QUICKSTART}"\n' + "".join(parts))
    return path


def invoke(*arguments: str) -> Result:
    command = ["sweep", *arguments, "--workers", "0"]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def test_a_file_is_every_combination(tmp_path: Path):
    plan = read_sweep(write(tmp_path, SETTINGS, GRID, "alpha = [0.1]\n"))
    assert plan.app == QUICKSTART and plan.settings["energy.battery-share"] == 0.0
    runs = plan.runs()
    assert list(runs) == [
        "dpsgd_seed-0_alpha-0.1",
        "dpsgd_seed-1_alpha-0.1",
        "local_seed-0_alpha-0.1",
        "local_seed-1_alpha-0.1",
    ]
    second = runs["dpsgd_seed-1_alpha-0.1"]
    assert (second["method"], second["seed"], second["num-nodes"]) == ("dpsgd", 1, 3)
    assert second["compare-with"] == "", "one method a run, whatever the app says"


def test_a_name_says_what_a_run_has_of_the_grid():
    assert run_name({"method": "a", "alpha": 0.1, "pacing": True}) == "a_alpha-0.1_pacing-true"
    pattern = {"modality-pattern": "audio,audio+image"}
    assert run_name(pattern) == "modality-pattern-audio,audio+image"
    assert re.fullmatch(
        r"a_path-x-y-..-z_[0-9a-f]{8}", run_name({"method": "a", "path": "x y/../z"})
    )


ANY = [
    "audio,image", "audio+image", "audio image", "audio/image", "", " ", "..", "-x", "A", "a", "1",
    1, 1.0, True, "true", "\0\n", "ü", "x" * 300, "x" * 299 + "y", "é" * 200,
]  # fmt: skip
"""Values of all kinds: lists, paths, options, letters that only their case tells apart, numbers."""


def test_runs_of_any_values_have_names_of_their_own(tmp_path: Path):
    """Each a folder's, also where case does not count, and each allowed as run-name."""
    plan = read_sweep(write(tmp_path, '[grid]\nseed = [0, 1]\nmethod = ["a", "A"]\n'))
    plan.grid["data-path"] = ANY
    runs = plan.runs()
    assert len(runs) == len({name.casefold() for name in runs}) == 4 * len(ANY)
    assert [settings["data-path"] for settings in runs.values()][: len(ANY)] == ANY
    for name in runs:
        assert len(name.encode()) <= NAME_LENGTH
        (tmp_path / name).mkdir()
        parse_settings({"run-name": name}, find_parts())


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", ".x", "+x", "a\n"])
def test_other_names_are_refused(name: str):
    with pytest.raises(SettingsError, match="run-name"):
        parse_settings({"run-name": name}, find_parts())


@pytest.mark.parametrize("value", ["dpsgd", "", "1", 1, 0.1, 1e-9, True, "true", "a b", "'", '"ü"'])
def test_a_setting_is_read_as_it_was_written(value: object):
    read = parse_override(override("key", value))
    assert read == ("key", value) and type(read[1]) is type(value)
    assert override("method", "dpsgd") == "method=dpsgd"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[grid]\nseed = [0]\n[other]\n", "unknown key 'other'"),
        ("[grid]\nseed = 3\n", "grid.seed = 3: must be a list"),
        ("[grid]\nseed = []\n", "must be a list"),
        ("[settings]\nseed = 1\n", r"\[grid\] must hold"),
        ("[settings]\nseed = 1\n[grid]\nseed = [1]\n", "seed is both"),
        ("[grid]\nrun-name = ['a']\n", "run-name is the sweep's own"),
        ("[settings]\noverrides = 'seed=3'\n[grid]\nseed = [0]\n", "overrides: write each of"),
        ("[grid\n", "cannot be read"),
        ("[grid]\nseed = [0, 1, 0]\n", "grid.seed has 0 twice"),
    ],
)
def test_a_file_that_cannot_work_is_refused(text: str, problem: str, tmp_path: Path):
    with pytest.raises(SweepError, match=problem):
        read_sweep(write(tmp_path, text)).runs()


def test_a_file_has_to_name_its_app(tmp_path: Path):
    (tmp_path / "s.toml").write_text("[grid]\nseed = [0]\n")
    with pytest.raises(SweepError, match="app must name"):
        read_sweep(tmp_path / "s.toml")


def test_all_settings_are_checked_before_anything_runs(tmp_path: Path):
    file = write(tmp_path, SETTINGS, "[grid]\nlearning-rate = [0.1, -1]\n")
    done = invoke(str(file), "--output", str(tmp_path / "runs"))
    assert done.exit_code == 1 and not (tmp_path / "runs").exists()
    assert "run learning-rate--1" in done.output and "learning-rate = -1" in done.output


@pytest.mark.parametrize(
    ("method", "problem"),
    [("dpsdg", "method = 'dpsdg': there are agm, ccl, "), ("dmml-kd", "topology = 'rign'")],
)
def test_a_dry_run_checks_every_setting(method: str, problem: str, tmp_path: Path):
    wrong = SETTINGS + ('topology = "rign"\n' if method == "dmml-kd" else "")
    file = write(tmp_path, wrong, f'[grid]\nmethod = ["dpsgd", "{method}"]\n')
    done = invoke(str(file), "--dry-run")
    assert done.exit_code == 1 and problem in done.output


def test_methods_of_the_apps_own_are_known(tmp_path: Path):
    """The app of the how-to, whose client brings the method along."""
    write_files(ROOT / "docs" / "howto" / "own-method.md", tmp_path)
    assert "smooth" not in find_parts().methods
    for asked, status in (("smooth", 0), ("smoth", 1)):
        (tmp_path / "own.toml").write_text(f'app = "."\n[grid]\nmethod = ["{asked}"]\n')
        done = invoke(str(tmp_path / "own.toml"), "-o", str(tmp_path / "runs"), "--dry-run")
        assert done.exit_code == status, done.output


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_example_of_the_help_works_when_copied(tmp_path: Path, columns: int):
    """As it is printed, from the repository's folder."""
    printed = CliRunner().invoke(app, ["sweep", "--help"], env={"COLUMNS": str(columns)}).output
    block = re.search(r"The file *\n(.*?)Exit status", printed, re.DOTALL)
    assert block is not None
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "grid.toml").write_text(textwrap.dedent(block[1]), encoding="utf-8")
    plan = read_sweep(tmp_path / "grid.toml")
    assert len(plan.runs()) == 6
    assert plan.settings == {"num-server-rounds": 10, "evaluate-every": 1}
    done = invoke(str(tmp_path / "grid.toml"), "-o", str(tmp_path / "runs"), "--dry-run")
    assert done.exit_code == 0 and "dmml-kd_seed-2" in done.output


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    file = write(tmp_path, SETTINGS, GRID)
    plain = read_sweep(file)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert file.read_bytes()[:3] == b"\xef\xbb\xbf" and read_sweep(file) == plain


def test_a_dry_run_only_says_what_would_run(tmp_path: Path):
    done = invoke(str(write(tmp_path, SETTINGS, GRID)), "-o", str(tmp_path / "runs"), "--dry-run")
    assert done.exit_code == 0 and not (tmp_path / "runs").exists()
    assert "4 runs" in done.output and "local_seed-1" in done.output


def test_runs_are_made_skipped_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two of four are there, one by hand; that one is not complete, and goes on."""
    runs = tmp_path / "runs"
    first = write(tmp_path, SETTINGS, '[grid]\nmethod = ["dpsgd"]\nseed = [0]\n')
    done = invoke(str(first), "-o", str(runs))
    assert done.exit_code == 0, done.output
    by_hand = read_sweep(write(tmp_path, SETTINGS, GRID)).runs()["dpsgd_seed-1"]
    by_hand |= {"run-dir": str(runs), "run-name": "dpsgd_seed-1"}
    run_app(load_app(QUICKSTART), by_hand["num-nodes"], by_hand)
    there = (runs / "dpsgd_seed-0" / "dpsgd" / "timing.jsonl").read_bytes()
    metrics = runs / "dpsgd_seed-1" / "dpsgd" / "metrics.jsonl"
    whole = metrics.read_bytes()
    (metrics.parent / "end.json").unlink()
    metrics.write_bytes(whole[:-30])

    both = write(tmp_path, SETTINGS, GRID)
    done = invoke(str(both), "-o", str(runs))
    assert done.exit_code == 0, done.output
    assert "4 runs" in done.output and "1 of them are there" in done.output
    assert "[1/3] dpsgd_seed-1, resumed" in done.output
    assert metrics.read_bytes() == whole
    assert (runs / "dpsgd_seed-0" / "dpsgd" / "timing.jsonl").read_bytes() == there
    for name in ("local_seed-0", "local_seed-1"):
        assert json.loads((runs / name / "config.json").read_text())["method"] == "local"
        about = json.loads((runs / name / "run.json").read_text())
        words = shlex.split(about["command"])
        assert words[:2] == ["flwr-dmml", "simulate"] and Path(words[2]).resolve() == QUICKSTART
        assert f" --set method=local --set seed={name[-1]} " in about["command"]
    pytest.importorskip("plotly", reason="the comparison needs the extra 'report'")
    assert "dpsgd" in (runs / "comparison.html").read_text()

    (runs / "comparison.html").unlink()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "plotly", None)
        done = invoke(str(both), "-o", str(runs))
    assert done.exit_code == 0, done.output
    assert "Warning: there is no comparison: plotly " in " ".join(done.output.split())
    assert not (runs / "comparison.html").exists()

    other = SETTINGS.replace("num-nodes = 3", "num-nodes = 4")
    done = invoke(str(write(tmp_path, other, GRID)), "-o", str(runs))
    assert done.exit_code == 1 and "num-nodes = 4: the run to resume has 3" in done.output


def test_a_run_that_fails_does_not_keep_the_others_back(tmp_path: Path):
    """Nor the comparison of what they have left: of one run there is a folder without a round."""
    runs = tmp_path / "runs"
    file = write(tmp_path, SETTINGS, '[grid]\nmethod = ["dpsgd", "local", "dsgdm"]\nseed = [0]\n')
    plan = read_sweep(file)
    config = load_app(QUICKSTART).run_config | plan.runs()["dpsgd_seed-0"]
    begun = runs / "dpsgd_seed-0"
    (begun / "dpsgd").mkdir(parents=True)
    (begun / "config.json").write_text(
        json.dumps(parse_settings(config, find_parts()).resolved(), sort_keys=True)
    )
    (begun / "dpsgd" / "metrics.jsonl").write_text("")
    (begun / "log.txt").mkdir()  # it cannot be written
    done = invoke(str(file), "-o", str(runs))
    assert done.exit_code == 1
    assert "1 of 3 runs failed: dpsgd_seed-0" in done.output
    assert (runs / "local_seed-0" / "local" / "end.json").exists()
    pytest.importorskip("plotly", reason="the comparison needs the extra 'report'")
    assert "dpsgd_seed-0: left out, it has not finished a round" in done.output
    assert "2 runs in 2 groups" in (runs / "comparison.html").read_text()
