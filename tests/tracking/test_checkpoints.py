"""Checkpoints: whole or not there; and runs that go on as if they had never been stopped."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers import QUICKSTART
from helpers_resume import metrics, run, stopped_and_resumed
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app
from flwr_dmml.clients import find_methods
from flwr_dmml.data import load_source, partition
from flwr_dmml.data.options import LoadOptions
from flwr_dmml.settings import find_parts
from flwr_dmml.strategies import ResumeError, RunStoppedError
from flwr_dmml.strategies.resuming import check_unchanged, find_run
from flwr_dmml.tracking.checkpoints import Checkpoint, Checkpoints, digest
from flwr_dmml.tracking.history import read_metrics_file, read_record

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(1.5),
    "empty": np.zeros((0, 3), np.float16),
    "c": np.array([-1, 2**40]),
    "flag": np.array([True, False]),
}


def checkpoint(server_round: int) -> Checkpoint:
    """Return a checkpoint that says which round it is of."""
    return Checkpoint(
        server_round,
        {"third": 1 / 3, "infinite": float("inf"), "round": server_round},
        nodes={3: ARRAYS, 0: {}},
        payloads={3: {"x": np.full(4, server_round)}},
    )


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    place = checkpoints.save(checkpoint(7))
    assert place == tmp_path / "c" / "round-00007"
    found = checkpoints.latest()
    assert found is not None and found.server_round == 7
    assert found.about == {"third": 1 / 3, "infinite": float("inf"), "round": 7}
    assert list(found.nodes) == [3, 0] and list(found.nodes[3]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        read = found.nodes[3][name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_the_last_few_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for server_round in (9, 10, 99_999, 100_000):
        checkpoints.save(checkpoint(server_round))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-100000", "round-99999"]
    found = checkpoints.latest()
    assert found is not None and found.server_round == 100_000


def test_the_one_just_written_stays_though_a_later_one_is_damaged(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    cut_data(checkpoints.save(checkpoint(20)))
    checkpoints.save(checkpoint(15))
    found = checkpoints.latest()
    assert found is not None and found.server_round == 15


def test_a_round_that_is_run_again_replaces_its_checkpoint(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    again = checkpoint(1)
    again.about["round"] = "again"
    checkpoints.save(again)
    found = checkpoints.latest()
    assert found is not None and found.about["round"] == "again"


def cut_data(place: Path) -> None:
    data = (place / "nodes.safetensors").read_bytes()
    (place / "nodes.safetensors").write_bytes(data[:-1])


def change_data(place: Path) -> None:
    data = bytearray((place / "payloads.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "payloads.safetensors").write_bytes(data)


def cut_state(place: Path) -> None:
    state = place / "state.json"
    state.write_text(state.read_text()[:-20])


def remove_state(place: Path) -> None:
    (place / "state.json").unlink()


def remove_digests(place: Path) -> None:
    (place / "digests").unlink()


def of_another_round(place: Path) -> None:
    shutil.copytree(place, place.with_name("round-00009"))


def half_written(place: Path) -> None:
    place.rename(place.with_suffix(".part"))


def forge(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state, and write digests that agree."""
    state = json.loads((place / "state.json").read_text())
    change(state)
    (place / "state.json").write_text(json.dumps(state))
    names = "nodes.safetensors", "payloads.safetensors", "state.json"
    lines = [f"{digest([(place / name).read_bytes()])}  {name}\n" for name in names]
    (place / "digests").write_text("".join(lines))


def of_tomorrow(place: Path) -> None:
    forge(place, lambda state: state.update(schema=99))


@pytest.mark.parametrize(
    "damage",
    [
        cut_data,
        change_data,
        cut_state,
        remove_state,
        remove_digests,
        of_another_round,
        of_tomorrow,
        half_written,
    ],
)
def test_a_damaged_one_is_never_loaded_but_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    damage(checkpoints.save(checkpoint(2)))
    found = checkpoints.latest()
    assert found is not None
    assert found.server_round == (2 if damage is of_another_round else 1)
    assert ("cannot be used" in caplog.text) == (damage is not half_written)


def test_no_byte_of_it_can_change(tmp_path: Path):
    """Every byte of every file, to the next one and to a digit: more than 1,500 mutations."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    place = checkpoints.save(checkpoint(2))
    tried = 0
    for path in sorted(place.iterdir()):
        before = path.read_bytes()
        for position, byte in enumerate(before):
            for other in {byte ^ 1, ord("7")} - {byte}:
                path.write_bytes(before[:position] + bytes([other]) + before[position + 1 :])
                found = checkpoints.latest()
                assert found is not None and found.server_round == 1, (path.name, position, other)
                tried += 1
        path.write_bytes(before)
    found = checkpoints.latest()
    assert found is not None and found.server_round == 2 and tried > 1500


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.update(round="2"),
        lambda state: state.update(round=2.5),
        lambda state: state.update(about=[]),
        lambda state: state.update(about=None),
        lambda state: state.update(nodes=3),
        lambda state: state["nodes"].update(names=[1, 2]),
        lambda state: state["nodes"].update(shapes={}),
        lambda state: state["nodes"]["names"].update({"x": ["a"]}),
        lambda state: state["nodes"]["names"].update({"7": ["a"]}),
        lambda state: state["nodes"]["shapes"].update({"3": [[9], [], [0], [2], [2]]}),
        lambda state: state["payloads"]["shapes"].update({"3": [[-1.5]]}),
    ],
)
def test_what_is_of_another_kind_is_not_loaded_though_the_digests_agree(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    forge(checkpoints.save(checkpoint(2)), change)
    found = checkpoints.latest()
    assert found is not None and found.server_round == 1
    assert f"The checkpoint {tmp_path / 'round-00002'} cannot be used: state.json: " in caplog.text


def test_state_that_is_nested_without_end_is_not_loaded(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    place = checkpoints.save(checkpoint(2))
    forge(place, lambda state: None)
    text = "[" * 200_000
    before = digest([(place / "state.json").read_bytes()])
    (place / "state.json").write_text(text)
    told = (place / "digests").read_text()
    (place / "digests").write_text(told.replace(before, digest([text.encode()])))
    assert checkpoints.latest() is None


def test_b2sum_checks_a_checkpoint(tmp_path: Path):
    place = Checkpoints(tmp_path, keep=2).save(checkpoint(2))
    if shutil.which("b2sum") is None:
        pytest.skip("there is no b2sum")
    command = ["b2sum", "-l", "128", "--strict", "-c", "digests"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK") == 3, done.stdout + done.stderr


SAVING = """
import sys
from pathlib import Path
import numpy as np
from flwr_dmml.tracking.checkpoints import Checkpoint, Checkpoints, digest

checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
begun = checkpoints.latest()
for server_round in range(begun.server_round + 1 if begun else 1, 100_000):
    numbers = np.full(20_000, server_round)
    checkpoints.save(Checkpoint(server_round, {"round": server_round}, {0: {"a": numbers}}, {}))
    print(server_round, flush=True)
"""


def test_killed_at_any_moment_it_has_the_last_one(tmp_path: Path):
    """Five times, a few milliseconds after a random round; the last one that was told, or the next.

    One only is kept: it goes when the next is whole.
    """
    draw = Random(0)
    for _ in range(5):
        command = [sys.executable, "-c", SAVING, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(draw.randrange(1, 6))]
            time.sleep(draw.random() / 50)
            process.kill()
            told += [int(line) for line in process.stdout.read().splitlines()]
        found = Checkpoints(tmp_path, keep=1).latest()
        assert found is not None and found.server_round in (told[-1], told[-1] + 1)
        assert (found.nodes[0]["a"] == found.server_round).all()


# ---- whole runs -----------------------------------------------------------------------------


OTHER = {"d2": "qg-dsgdm", "harmony": "qg-dsgdm", "relaysgd": "qg-dsgdm", "local": "auto"}
"""A gossip rule that is not the method's own; where none is named, D-squared."""


@pytest.mark.parametrize("gossip", ["own", "other"])
@pytest.mark.parametrize("method", find_methods())
def test_every_method_goes_on_as_if_never_stopped(method: str, gossip: str, tmp_path: Path):
    """Stopped after round 2 of 4, on batteries and over radio: the same bytes."""
    rule = "auto" if gossip == "own" else OTHER.get(method, "d2")
    if gossip == "other" and rule == "auto":
        pytest.skip("it sends nothing: no other rule goes with it")
    whole = run(tmp_path, "whole", method=method, gossip=rule)
    resumed = stopped_and_resumed(tmp_path, 2, method=method, gossip=rule)
    assert metrics(whole) == metrics(resumed)
    assert len(read_metrics_file(resumed / method / "metrics.jsonl")) == 4


@pytest.mark.parametrize(
    "config",
    [
        {"energy.harvesting-w": 0.01},
        {"label-correction": "network"},
        {"couriers": "forward", "modality-pattern": "audio,image"},
        {"couriers": "forward", "modality-pattern": "audio,image", "exchange.precision": "int8"},
        {
            "couriers": "average",
            "gossip": "dpsgd",
            "modality-pattern": "audio,image",
            "exchange.precision": "int8",
        },
        {"energy.battery-share": 0.0, "energy.battery-j": 0.05, "allocation.rule": "max-min"},
        {"method": "dpsgd", "gossip": "k-gt", "energy.battery-share": 0.2},
        {"method": "dpsgd", "gossip": "mt"},
        {"method": "dpsgd", "gossip": "qg-gutm"},
        {"method": "dpsgd", "gossip": "decentlam"},
        {"wireless.shared-band-hz": 1e6},
        {"wireless.shared-band-hz": 1e6, "dmml-kd.generator-steps": 20},
        {"topology": "one-peer-exponential", "allocation.rule": "random"},
        {
            "energy.battery-share": 0.0,
            "wireless.enabled": False,
            "optimizer": "adam",
            "gossip": "dpsgd",
        },
    ],
    ids=str,
)
def test_batteries_and_graphs_go_on(config: dict[str, Any], tmp_path: Path):
    whole = run(tmp_path, "whole", **config)
    assert metrics(whole) == metrics(stopped_and_resumed(tmp_path, 3, **config))


@pytest.mark.parametrize("rule", ["qg-dsgdm", "k-gt"])
def test_any_rule_writes_the_same_on_any_number_of_workers(rule: str, tmp_path: Path):
    """Of two workers each hosts two of the four devices."""
    config = {"method": "dmml-kd", "gossip": rule}
    whole = run(tmp_path, "here", **config)
    there = run(tmp_path, "there", workers=2, **config)
    assert metrics(whole) == metrics(there)


def test_the_second_method_goes_on_and_the_first_is_not_run_again(tmp_path: Path):
    """6 is round 2 of the second method: its batteries are the first one's."""
    both = {"compare-with": "dpsgd", "method": "dmml-kd"}
    whole = run(tmp_path, "whole", **both)
    with pytest.raises(RunStoppedError, match="after round 2"):
        run(tmp_path, "stopped", stop_after=6, **both)
    first = (tmp_path / "stopped" / "dpsgd" / "timing.jsonl").read_bytes()
    run(tmp_path, "again", resume="stopped", **both)
    assert metrics(whole) == metrics(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "dpsgd" / "timing.jsonl").read_bytes() == first
    run(tmp_path, "again", resume="stopped", **both)  # a finished run is reported once more
    assert metrics(whole) == metrics(tmp_path / "stopped")


def test_after_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path):
    whole = run(tmp_path, "whole")
    with pytest.raises(RunStoppedError):
        run(tmp_path, "stopped", stop_after=3)
    cut_data(tmp_path / "stopped" / "dmml-kd" / "checkpoints" / "round-00003")
    run(tmp_path, "again", resume="stopped")
    assert metrics(whole) == metrics(tmp_path / "stopped")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, and one that was stopped after round 3, with all checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder, "whole", **SHORT)
    with pytest.raises(RunStoppedError):
        run(folder, "stopped", stop_after=3, **SHORT)
    return folder


SHORT: dict[str, Any] = {"method": "dpsgd", "checkpoint-keep": 9}


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder but the log."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.endswith("log.txt")}


def no_folder(run: Path) -> None:
    shutil.rmtree(run / "dpsgd" / "checkpoints")


def nothing_in_it(run: Path) -> None:
    for place in (run / "dpsgd" / "checkpoints").iterdir():
        shutil.rmtree(place)


def all_damaged(run: Path) -> None:
    for place in (run / "dpsgd" / "checkpoints").iterdir():
        remove_state(place)


def other_settings(run: Path) -> None:
    change(run / "config.json", '"samples-per-node": 40', '"samples-per-node": 41')


def no_metrics(run: Path) -> None:
    """The checkpoint of round 1 needs none, so it has to go, too."""
    (run / "dpsgd" / "metrics.jsonl").unlink()
    shutil.rmtree(run / "dpsgd" / "checkpoints" / "round-00001")


@pytest.mark.parametrize(
    "damage", [no_folder, nothing_in_it, all_damaged, other_settings, no_metrics]
)
def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew_in_silence(
    damage: Callable[[Path], None], runs: Path, tmp_path: Path
):
    shutil.copytree(runs / "stopped", tmp_path / "r")
    damage(tmp_path / "r")
    before = content(tmp_path / "r")
    given = {**SHORT, **({"samples-per-node": 41} if damage is other_settings else {})}
    with pytest.raises(ResumeError) as refused:
        run(tmp_path, "again", resume="r", **given)
    folder = tmp_path / "r" / "dpsgd"
    rounds = 0 if damage is no_metrics else 2
    assert str(refused.value) == (
        f"{folder} has {rounds} rounds in metrics.jsonl, but no checkpoint to go on from: put "
        f"{folder / 'checkpoints'} back as it was, or delete {folder} to begin at round 1"
    )
    assert content(tmp_path / "r") == before
    shutil.rmtree(folder)
    if damage is not other_settings:
        run(tmp_path, "again", resume="r", **SHORT)
        assert metrics(tmp_path / "r") == metrics(runs / "whole")


def test_stopped_before_its_first_checkpoint_it_begins_anew_and_says_so(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """As if killed after round 3 with a checkpoint due after 10."""
    caplog.set_level("WARNING", logger="flwr")
    shutil.copytree(runs / "stopped", tmp_path / "r")
    nothing_in_it(tmp_path / "r")
    Checkpoints(tmp_path / "r" / "dpsgd" / "checkpoints", 2).begin()
    run(tmp_path, "again", resume="r", **SHORT)
    assert "2 rounds are run again" in caplog.text and "before its first checkpoint" in caplog.text
    assert metrics(tmp_path / "r") == metrics(runs / "whole")


def test_a_changed_digit_in_the_metrics_goes_back_to_before_it(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Changed is round 2: the checkpoint of round 3 comes after it, that of round 2 does not."""
    caplog.set_level("INFO", logger="flwr")
    shutil.copytree(runs / "stopped", tmp_path / "r")
    path = tmp_path / "r" / "dpsgd" / "metrics.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second.replace('"accuracy": 0.', '"accuracy": 1.', 1))
    assert path.read_text() != first + second
    run(tmp_path, "again", resume="r", **SHORT)
    assert "round-00003 cannot be used: metrics.jsonl is not what it was" in caplog.text
    assert "Resumed after round 2" in caplog.text
    assert metrics(tmp_path / "r") == metrics(runs / "whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("members", None),
        ("members", {"a": 1}),
        ("published", [3]),
        ("published", {"0": ["x"]}),
        ("planner", {"edges": 3}),
        ("logbook", "x"),
        ("exchange", []),
    ],
)
def test_state_of_another_kind_is_one_error(key: str, value: object, runs: Path, tmp_path: Path):
    """The digests agree, as if this version had written it. Nothing is changed by the try."""
    shutil.copytree(runs / "stopped", tmp_path / "r")
    place = tmp_path / "r" / "dpsgd" / "checkpoints" / "round-00003"
    forge(place, lambda state: state["about"].update({key: value}))
    before = content(tmp_path / "r")
    with pytest.raises(ResumeError, match="not what this version writes"):
        run(tmp_path, "again", resume="r", **SHORT)
    assert content(tmp_path / "r") == before


def test_checkpoints_come_as_often_as_asked(tmp_path: Path):
    run(tmp_path, "never", **{"checkpoint-every": 0})
    assert not list((tmp_path / "never").rglob("round-*"))
    run(tmp_path, "some", **{"checkpoint-every": 3, "checkpoint-keep": 1})
    assert [p.name for p in (tmp_path / "some").rglob("round-*")] == ["round-00003"]


def test_other_data_are_refused_and_the_run_stays_as_it_is(runs: Path, tmp_path: Path):
    """The settings are the same, but not what the devices hold."""
    shutil.copytree(runs / "stopped", tmp_path / "r")
    place = tmp_path / "r" / "dpsgd" / "checkpoints" / "round-00003"
    members: Callable[[Any], Any] = lambda state: state["about"]["members"]["1"]  # noqa: E731
    forge(place, lambda state: members(state).update({"num_train": 37}))
    before = content(tmp_path / "r")
    with pytest.raises(ResumeError, match=r"node 1 is not what it was.*training samples"):
        run(tmp_path, "again", resume="r", **SHORT)
    assert content(tmp_path / "r") == before


def test_a_changed_setting_is_refused_by_name(tmp_path: Path):
    (tmp_path / "r").mkdir()
    before = {"method": "dpsgd", "compare-with": "", "alpha": 0.3, "moon.mu": 1.0, "workers": 2}
    before |= {"dpsgd.x": 1}
    (tmp_path / "r" / "config.json").write_text(json.dumps(before))
    now = {**before, "moon.mu": 2.0, "workers": 3}  # moon does not run
    check_unchanged(tmp_path / "r", now, find_parts())
    with pytest.raises(SettingsError) as caught:
        check_unchanged(tmp_path / "r", {**now, "alpha": 0.5, "dpsgd.x": 2}, find_parts())
    text = str(caught.value)
    assert "alpha = 0.5: the run to resume has 0.3" in text and "dpsgd.x = 2" in text
    assert "moon" not in text and "workers" not in text
    with pytest.raises(SettingsError, match="resume = 'none'"):
        find_run("none", str(tmp_path))


def test_the_log_is_kept_from_the_first_line_and_goes_on(tmp_path: Path):
    with pytest.raises(RunStoppedError):
        run(tmp_path, "stopped", stop_after=2, method="dpsgd")
    first = (tmp_path / "stopped" / "log.txt").read_text()
    assert first.splitlines()[0].endswith(f"INFO Run folder: {tmp_path / 'stopped'}")
    assert "devices take part" in first and "Checkpoint:" in first
    run(tmp_path, "again", resume="stopped", method="dpsgd")
    both = (tmp_path / "stopped" / "log.txt").read_text()
    assert both.startswith(first) and "Resumed after round 2" in both[len(first) :]


def test_records_are_read_back_as_they_were(tmp_path: Path):
    lines = read_metrics_file(run(tmp_path, "whole") / "dmml-kd" / "metrics.jsonl")
    assert len(lines) == 4
    for line in lines:
        again = json.loads(json.dumps(read_record(line).to_json()))
        assert again == line


def test_a_line_that_is_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"rou')
    assert [line["round"] for line in read_metrics_file(path)] == [1, 2]
    path.write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics_file(path)


def test_the_command_line_takes_the_settings_from_the_run(tmp_path: Path):
    whole = run(tmp_path, "whole")
    with pytest.raises(RunStoppedError):
        run(tmp_path, "stopped", stop_after=2)
    command = ["simulate", str(QUICKSTART), "--resume", str(tmp_path / "stopped"), "--workers", "0"]
    refused = CliRunner().invoke(app, [*command, "--set", "seed=1"], env={"COLUMNS": "200"})
    assert refused.exit_code == 1 and "seed = 1: the run to resume has 0" in refused.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert metrics(whole) == metrics(tmp_path / "stopped")


def test_what_the_report_shows_is_written_down(tmp_path: Path):
    """Devices, links, class counts; and at the end what was taken for what, by hand."""
    found = run(tmp_path, "whole", method="dpsgd", **{"validation-fraction": 0.25})
    about = json.loads((found / "dpsgd" / "devices.json").read_text())
    assert about["edges"] == [[0, 1], [1, 2], [2, 3]] and not about["time_varying"]
    assert about["topology"] == "Line" and about["classes"] == 10 and about["class_names"] == []
    assert [node["modalities"] for node in about["nodes"]] == [
        ["audio"],
        ["image"],
        ["audio", "image"],
        ["audio"],
    ]
    for node in about["nodes"]:
        assert node["num_train"] == sum(node["class_counts"]) == 30
    confusion = json.loads((found / "dpsgd" / "confusion.json").read_text())
    last = read_metrics_file(found / "dpsgd" / "metrics.jsonl")[-1]
    matrix = np.array(confusion["matrix"])
    assert confusion["round"] == 4 and matrix.shape == (10, 10)
    assert matrix.trace() / matrix.sum() == pytest.approx(last["accuracy"])
    assert 0 < last["macro_f1"] < 1 and 0 < last["uar"] < 1
    made = json.loads((found / "run.json").read_text())
    assert made["seed"] == 0 and made["versions"]["flwr-dmml"] and made["schema"] == 1
    private = run(tmp_path, "private", method="dpsgd", **{"report-classes": False})
    about = json.loads((private / "dpsgd" / "devices.json").read_text())
    assert [node["class_counts"] for node in about["nodes"]] == [[]] * 4


def test_devices_tell_the_names_of_the_classes_unless_they_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = tuple(f"digit <{c}>" for c in range(10))
    source = replace(load_source("digits", LoadOptions()), class_names=names)
    monkeypatch.setattr(partition, "load_source", lambda name, options: source)
    for report in (True, False):
        own = {"method": "dpsgd", "report-classes": report, "num-server-rounds": 1}
        found = run(tmp_path, f"run-{report}", **own)
        about = json.loads((found / "dpsgd" / "devices.json").read_text())
        assert about["class_names"] == (list(names) if report else [])
