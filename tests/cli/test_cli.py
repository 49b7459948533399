"""The command line: help, lists, exit statuses, and one small real run."""

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from helpers import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from flwr_dmml.base.overrides import parse_override
from flwr_dmml.cli import app
from flwr_dmml.settings import every_setting, find_parts

QUICKSTART = str(ROOT / "examples" / "quickstart")
WRAPPED: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
TINY = [
    "num-server-rounds=2",
    "local-iterations=1",
    "samples-per-node=40",
    "partition=iid",
    "device=cpu",
    "compare-with=",
]
"""A run of a few seconds."""


def invoke(*arguments: str, columns: int = 200) -> Result:
    """Run ``flwr-dmml simulate`` in this process alone; the sharded engine has its own tests."""
    command = ["simulate", *arguments, "--workers", "0"]
    return CliRunner().invoke(app, command, env={"COLUMNS": str(columns)})


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_one_process_and_a_cluster_exclude_each_other():
    result = invoke(QUICKSTART, "--ray-address", "10.0.0.1:6379", columns=300)
    assert result.exit_code == 2
    assert "--workers 0 and ray-address: one process needs no cluster" in words(result.output)


def words(text: str) -> str:
    """Return the text without colours, its white space made single spaces."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def first_cells(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line.split("│")[1].strip() for line in lines if line.startswith("│")]


def every_key() -> set[str]:
    return {key for key, _ in every_setting(find_parts())}


# Help and lists


def every_command(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, *path, name)


@pytest.mark.parametrize("path", every_command(get_command(app)), ids=" ".join)
def test_help_is_all_there_and_is_wrapped_by_the_terminal(path: tuple[str, ...]):
    """Nothing in brackets is taken for markup; an example has a line of its own."""
    command = get_command(app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    source = command.help if not path else inspect.getdoc(command.callback)
    written = re.sub(r"\[/?bold\]", "", source or "").replace("\\[", "[")
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0 and words(written) in words(done.output)
    printed = {line.strip() for line in done.output.splitlines()}
    for line in re.split(r"\n{2,}|\n(?=  )", re.sub(r"(?<=\S)\n(?=\S)", " ", written)):
        whole = textwrap.wrap(line.strip(), 999 if line.startswith(" ") else 78, **WRAPPED)
        assert printed >= {part.strip() for part in whole}, line


def test_help_has_the_examples_and_the_exit_statuses() -> None:
    result = invoke("--help")
    text = words(result.output)
    assert result.exit_code == 0
    for example in (
        "flwr-dmml simulate examples/quickstart",
        "flwr-dmml simulate examples/quickstart --nodes 24 --set method=dsgdm",
        "--set topology=torus --set seed=3",
        "--set dmml-kd.distillation=false",
    ):
        assert example in text
    assert "Exit status" in text
    for status in ("0: all rounds ran.", "1: the run failed", "2: wrong command", "130: stopped"):
        assert status in text
    for option in ("--nodes", "--set", "--list-methods", "--list-settings"):
        assert option in text


def test_no_arguments_show_the_commands() -> None:
    result = CliRunner().invoke(app, [])
    assert "simulate" in result.output and "Traceback" not in result.output


def test_list_methods() -> None:
    result = invoke("--list-methods")
    assert result.exit_code == 0
    assert first_cells(result.stdout) == [
        "agm",
        "ccl",
        "creamfl",
        "d2",
        "di-mml",
        "dmml",
        "dmml-kd",
        "dpsgd",
        "dsgdm",
        "fedcmi",
        "fedgen",
        "fedproto",
        "fedprox",
        "greedy",
        "harmony",
        "idkd",
        "kd",
        "local",
        "mfcpl",
        "mla",
        "mmpareto",
        "modality-dropout",
        "modality-mirror",
        "moon",
        "ogm-ge",
        "opm",
        "parse",
        "pmcmfl",
        "pmr",
        "qg-dsgdm",
        "qg-dsgdm-n",
        "relaysgd",
    ]
    assert ":class:" not in result.stdout and "``" not in result.stdout
    for paper in ("Lian et al., NeurIPS 2017", "Yin, Chen and Tao, IEEE TMC 2024", "baseline"):
        assert paper in words(result.stdout)


def test_list_settings() -> None:
    result = invoke("--list-settings")
    assert result.exit_code == 0
    listed = first_cells(result.stdout)
    assert set(listed) >= every_key()
    text = words(result.stdout)
    for key, info in every_setting(find_parts()):
        assert f"│ {key} │ {json.dumps(info.default)} │ {info.description} │" in text


def test_list_settings_on_a_narrow_terminal() -> None:
    """80 columns are also what a pipe gets: ``--list-settings | grep generator``."""
    result = invoke("--list-settings", columns=80)
    assert "…" not in result.stdout


# What goes wrong


@pytest.mark.parametrize("override", ["seed", "=3", " =3", ""])
def test_an_override_without_key_or_value_is_a_usage_error(override: str) -> None:
    result = invoke(QUICKSTART, "--set", override)
    assert result.exit_code == 2
    assert "KEY=VALUE" in words(result.output) and repr(override) in result.output


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["--nodes", "x"], ["--frobnicate"]])
def test_a_wrong_option_is_a_usage_error(arguments: list[str]) -> None:
    result = invoke(QUICKSTART, *arguments)
    assert result.exit_code == 2 and arguments[0] in words(result.output)


@pytest.mark.parametrize(
    "settings, expected",
    [
        (["alpha=0"], ["alpha = 0: Input should be greater than 0"]),
        (["num-node=3"], ["num-node = 3: unknown setting; did you mean 'num-nodes'?"]),
        (["num-nodes=0"], ["num-nodes = 0: Input should be greater than or equal to 1"]),
        (["num-nodes=many"], ["num-nodes = 'many': Input should be a valid integer"]),
        (
            ["method=fedavg"],
            ["method = 'fedavg': there are agm, ccl, creamfl, d2, di-mml, dmml, dmml-kd, dpsgd"],
        ),
        (["topology=torus", "num-nodes=13"], ["nearest allowed: 12 and 14"]),
        (["dmml-kd.generator=false"], ["distillation = true needs generator = true"]),
        (["alpha=0", "momentum=1.0"], ["alpha = 0:", "momentum = 1.0:"]),
    ],
)
def test_a_bad_setting_ends_with_1_and_is_named(
    settings: list[str], expected: list[str], tmp_path: Path
) -> None:
    """One message on standard error, no traceback, and no run folder."""
    result = invoke(QUICKSTART, *sets(f"run-dir={tmp_path / 'runs'}", *settings))
    assert result.exit_code == 1
    for text in expected:
        assert text in words(result.stderr)
    assert words(result.stderr).startswith("Error: SettingsError: the run config cannot work:")
    assert "Traceback" not in result.output and result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_the_number_of_nodes_given_with_nodes_is_checked_too() -> None:
    result = invoke(QUICKSTART, "--nodes", "13", *sets("topology=torus"))
    assert result.exit_code == 1
    assert "topology = 'torus' with num-nodes = 13" in words(result.stderr)


COMPONENTS = "[tool.flwr.app.components]\nserverapp = '{0}'\nclientapp = '{0}'\n"


@pytest.mark.parametrize(
    "project, expected",
    [
        (None, "it has no pyproject.toml"),
        ("[project]\nname = 'x'\n", "names no serverapp and clientapp"),
        ("[tool.flwr.app.components]\nserverapp = 'a:b'\n", "names no serverapp and clientapp"),
        (COMPONENTS.format("json:nothing"), "json:nothing is not a ServerApp"),
        (COMPONENTS.format("json:dumps"), "json:dumps is not a ServerApp"),
        pytest.param("[tool", "pyproject.toml", id="no TOML"),
        pytest.param(COMPONENTS.format("no_such_module:app"), "no_such_module", id="no module"),
    ],
)
def test_a_folder_that_is_no_app(project: str | None, expected: str, tmp_path: Path) -> None:
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    result = invoke(str(tmp_path))
    assert result.exit_code == 1
    assert words(result.stderr).startswith("Error: AppError:") and expected in result.stderr


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    result = invoke(str(tmp_path / "missing"))
    assert result.exit_code == 1 and str(tmp_path / "missing") in result.stderr


def test_a_run_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke(QUICKSTART, *sets(f"run-dir={tmp_path / 'file'}"))
    assert result.exit_code == 1
    assert words(result.stderr).startswith("Error: ") and "file" in result.stderr


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, Path]]:
    """Run the quickstart with four devices for two rounds."""
    runs = tmp_path_factory.mktemp("runs")
    own = ["method=dmml-kd", "dmml-kd.generator-steps=2", "seed=3", "modality-pattern=audio,image"]
    settings = sets(*TINY, *own, f"run-dir={runs}", "run-name=mine")
    yield invoke(QUICKSTART, "--nodes", "4", *settings), runs


def test_a_run_ends_with_0_and_leaves_a_run_folder(run: tuple[Result, Path]) -> None:
    result, runs = run
    assert result.exit_code == 0, result.output
    assert [path.name for path in runs.iterdir()] == ["mine"]
    assert {str(path.relative_to(runs / "mine")) for path in (runs / "mine").rglob("*.*")} == {
        "config.json",
        "run.json",
        "log.txt",
        "end.json",
        "dmml-kd/devices.json",
        "dmml-kd/metrics.jsonl",
        "dmml-kd/timing.jsonl",
        "dmml-kd/confusion.json",
        "dmml-kd/end.json",
        *(f"dmml-kd/models/device-{k:03}{s}" for k in range(4) for s in (".json", ".safetensors")),
    }


def test_the_run_folder_has_every_setting_as_it_was_resolved(run: tuple[Result, Path]) -> None:
    config: dict[str, Any] = json.loads((run[1] / "mine" / "config.json").read_text())
    assert set(config) == every_key()
    assert config["method"] == "dmml-kd" and config["compare-with"] == ""
    assert config["num-nodes"] == 4 and config["seed"] == 3  # --nodes and --set
    assert config["modality-pattern"] == "audio,image"  # no TOML, so taken as a string
    assert config["dmml-kd.generator-steps"] == 2 and config["dmml-kd.generator"] is True
    assert config["topology"] == "ring"  # of the app


def test_the_run_was_evaluated_on_every_device(run: tuple[Result, Path]) -> None:
    lines = (run[1] / "mine" / "dmml-kd" / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(line) for line in lines)
    assert (first["round"], last["round"]) == (1, 2)
    assert first["accuracy"] is None  # evaluate-every is 5: the last round only
    assert [node["modalities"] for node in last["nodes"]] == ["audio", "image", "audio", "image"]
    assert all(0 <= node["accuracy"] <= 1 for node in last["nodes"])
    assert last["failed"] == first["failed"] == {}
    assert all(node["bytes_sent"] > 0 for node in last["nodes"])


def test_a_second_run_of_that_name_is_refused(run: tuple[Result, Path]) -> None:
    result = invoke(QUICKSTART, "--nodes", "4", *sets(*TINY, f"run-dir={run[1]}", "run-name=mine"))
    assert result.exit_code == 1
    assert "run-name = 'mine'" in words(result.stderr)
    assert "choose another name" in words(result.stderr)


def test_a_method_compared_with_itself_runs_once(tmp_path: Path) -> None:
    twice = ["method=local", "compare-with=local", "num-server-rounds=1"]
    result = invoke(
        QUICKSTART, "--nodes", "2", *sets(*TINY, *twice, f"run-dir={tmp_path}", "run-name=x")
    )
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "x" / "local" / "metrics.jsonl").read_text().splitlines()) == 1


FOREIGN = """
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client, server = ClientApp(), ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    print("lr", context.run_config["lr"])
"""


def test_a_key_that_another_packages_app_does_not_have_is_refused(tmp_path: Path):
    (tmp_path / "foreign_app.py").write_text(FOREIGN)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.flwr.app.components]\nserverapp = "foreign_app:server"\n'
        'clientapp = "foreign_app:client"\n[tool.flwr.app.config]\nlr = 0.1\n'
    )
    wrong = invoke(str(tmp_path), "--set", "lrr=3")
    assert wrong.exit_code == 1
    assert "lrr: the app has no such key; did you mean 'lr'?" in words(wrong.output)
    right = invoke(str(tmp_path), "--set", "lr=3", "--nodes", "2")
    assert right.exit_code == 0 and "lr 3" in right.output


def test_rules_are_listed_with_their_source():
    listed = invoke("--list-gossip")
    assert listed.exit_code == 0
    assert first_cells(listed.output) == sorted(find_parts().gossip)
    assert "Tang et al., ICML 2018" in words(listed.output)
    rules = first_cells(invoke("--list-aggregation").output)
    assert rules == [*sorted(find_parts().aggregation), "nnm+"]


def test_bibtex_of_what_is_listed() -> None:
    """Each paper once, after the package's own entry; what has none is named."""
    done = invoke("--list-methods", "--list-aggregation", "--bibtex", columns=40)
    assert done.exit_code == 0
    keys = re.findall(r"^@\w+\{(.+),$", done.stdout, re.MULTILINE)
    assert keys[0] == "flwr-dmml" and len(keys) == len(set(keys))
    assert {"lian2017can", "yin2024knowledge", "allouah2023fixing"} <= set(keys)
    assert "% dpsgd, mean\n@inproceedings{lian2017can," in done.stdout
    assert "% kd, idkd\n" in done.stdout or "% idkd, kd\n" in done.stdout
    assert "% local: baseline\n" in done.stdout and "koloskova2019decentralized" not in keys
    alone = invoke("--bibtex")
    assert alone.exit_code == 2 and "--bibtex goes with --list-methods" in words(alone.output)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("run-name=42", """run-name = 42: Input should be a valid string; a text needs quotes: """),
        (
            "data-cache=True",
            "data-cache = 'True': Input should be a valid boolean; write data-cache",
        ),
        ("lr-milestones=0.5", """or --set lr-milestones='"0.5"'"""),
    ],
)
def test_a_value_of_another_type_shows_how_it_is_written(setting: str, expected: str):
    done = invoke(QUICKSTART, *sets(setting))
    assert done.exit_code == 1 and expected in words(done.stderr)


def test_a_date_is_a_text():
    assert parse_override("run-name=2026-11-28") == ("run-name", "2026-11-28")
    assert parse_override("run-name = 2026-11-28T10:00:00") == ("run-name", "2026-11-28T10:00:00")
    assert parse_override('run-name="42"') == ("run-name", "42")
    assert parse_override("alpha=0.5") == ("alpha", 0.5)


def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path):
    environment = os.environ | {
        "FLWR_DMML_CACHE": str(tmp_path / "größe 日本"),
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "flwr_dmml.cli", "cache"],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert "größe \\u65e5\\u672c: empty" in done.stdout.decode("cp1252")
