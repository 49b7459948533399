"""How a run ends: who came that far, fewer devices than asked for, and what stands in end.json."""

from pathlib import Path
from typing import Any

import pytest
from helpers_liars import LIAR, Lying, lines_of, run_four
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.clients import make_client_app
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.report import read_run
from flwr_dmml.report.summary import failures, headline
from flwr_dmml.settings import Settings
from flwr_dmml.strategies import NoDevicesError, RunStoppedError, make_server_app
from flwr_dmml.strategies.roster import QuorumError
from flwr_dmml.tracking.ending import Ending, MethodEnd, absence, read_ending

FAILING = Lying("train", None)  # device 1, from round 2 on
SOUND = Lying("nothing", None)


def ending(folder: Path) -> Ending:
    found = read_ending(folder / "x")
    assert found is not None
    return found


def status(run: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["status", str(run)], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_a_run_that_finished_says_so(tmp_path: Path):
    run_four(tmp_path, SOUND, compare_with="local")
    code, said = status(tmp_path / "x")
    assert code == 0
    assert said.splitlines() == [
        f"{tmp_path / 'x'}: finished",
        "local: 3 of 3 rounds, 4 of 4 devices at the end",
        "dpsgd: 3 of 3 rounds, 4 of 4 devices at the end",
    ]
    run = read_run(tmp_path / "x")
    assert not run.unfinished and failures(run) is None


def test_fewer_devices_than_began_are_told_everywhere(tmp_path: Path):
    """Device 1 fails in the closing message: three are in the last accuracies."""
    run_four(tmp_path, Lying("closing", None))
    warning = "dpsgd: 3 of 4 devices finished; the last accuracies are theirs. Missing: 1"
    log = (tmp_path / "x" / "log.txt").read_text()
    assert f" WARNING {warning}" in log and "Test accuracy at the end, 3 of 4 devices" in log
    assert "Devices that failed in a round" in log and "RuntimeError: well" in log
    code, said = status(tmp_path / "x")
    assert code == 0 and "dpsgd: 3 of 3 rounds, 3 of 4 devices at the end" in said
    assert "  device 1 failed in 1 round, first in round 3: RuntimeError: well" in said
    run = read_run(tmp_path / "x")
    assert run.unfinished == [warning]
    assert ("devices at the end", "3 of 4") in headline(run)[0][1]
    table = failures(run)
    assert table and [row[:4] for row in table.rows] == [["1", "dpsgd", "1", "3"]]


def test_too_few_devices_stop_the_run_with_a_checkpoint(tmp_path: Path):
    """None is due; when the run is resumed, fewer may do."""
    given: dict[str, Any] = {"checkpoint_every": 0, "min_devices": 1.0}
    with pytest.raises(QuorumError, match=r"after round 2: 3 of 4 devices are left.*asks for 4: n"):
        run_four(tmp_path, FAILING, **given)
    method = tmp_path / "x" / "dpsgd"
    assert [path.name for path in (method / "checkpoints").iterdir()] == ["round-00002"]
    assert len(lines_of(method)) == 1
    end = ending(tmp_path)
    assert end.ended == "stopped" and end.reason.endswith("; the run can be resumed")
    (own,) = end.methods.values()
    assert (own.rounds, own.of, own.begun, own.finished) == (1, 3, [0, 1, 2, 3], [0, 2, 3])
    assert own.failures[1].rounds == 1 and own.failures[1].first == 2
    code, said = status(tmp_path / "x")
    assert code == 1 and "stopped: Stopped after round 2: 3 of 4 devices are left" in said
    assert any("the run stopped: " in text for text in read_run(tmp_path / "x").unfinished)

    run_four(tmp_path, FAILING, checkpoint_every=0, min_devices=3, resume="x", run_name="")
    assert len(lines_of(method)) == 3 and ending(tmp_path).ended == "finished"


def test_too_few_devices_at_the_end_are_no_end(tmp_path: Path):
    """The run goes on with the closing message, as if it had not been stopped."""
    given: dict[str, Any] = {"checkpoint_every": 0, "min_devices": 4}
    words = "Stopped after the last round, 3: 3 of 4 devices are left.*; the run can be resumed"
    with pytest.raises(QuorumError, match=words):
        run_four(tmp_path, Lying("closing", None), **given)
    method = tmp_path / "x" / "dpsgd"
    assert [path.name for path in (method / "checkpoints").iterdir()] == ["round-00003"]
    assert len(lines_of(method)) == 3 and not (method / "end.json").exists()
    assert ending(tmp_path).methods["dpsgd"].finished == [0, 2, 3]

    run_four(tmp_path, SOUND, **given, resume="x", run_name="")
    assert ending(tmp_path).ended == "finished"
    whole = run_four(tmp_path / "whole", SOUND)
    assert (method / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_too_few_devices_do_not_begin(tmp_path: Path):
    with pytest.raises(NoDevicesError, match="asks for 4, and only 3 devices can take part"):
        run_four(tmp_path, Lying("hello", None), min_devices=4)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_devices_will_do(tmp_path: Path):
    run_four(tmp_path, FAILING, min_devices=0.75)
    assert ending(tmp_path).methods["dpsgd"].failures[LIAR].rounds == 2


def test_a_device_whose_modelled_battery_is_flat_is_not_missed(tmp_path: Path):
    flat = {"energy.battery-j": 1e-4, "energy.pacing": False, "wireless.enabled": True}
    run_four(tmp_path, SOUND, min_devices=4, **flat)
    own = ending(tmp_path).methods["dpsgd"]
    assert own.finished == [] and all("battery" in f.reason for f in own.failures.values())


@pytest.mark.parametrize(
    ("error", "ended", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
        (SystemExit(143), "interrupted", "SystemExit: 143"),
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError: a b"),
        (OSError(28, "No space left"), "failed", "OSError: [Errno 28] No space left"),
    ],
)
def test_whatever_ends_a_run_is_noted(
    error: BaseException, ended: str, reason: str, tmp_path: Path
):
    """It comes from the coordinator itself, in round 2."""

    def stopping() -> bool:
        raise error

    devices = FlowerApp({"method": "dpsgd"}, make_server_app(), make_client_app())
    config = {
        "num-nodes": 2,
        "num-server-rounds": 2,
        "local-iterations": 1,
        "image-encoder": "tiny",
    }
    given = {**config, "run-dir": str(tmp_path), "run-name": "x", "checkpoint-every": 0}
    with pytest.raises(type(error)):
        run_app(devices, 2, given, stopping=stopping)
    end = ending(tmp_path)
    assert (end.ended, end.reason.strip()) == (ended, reason.strip())
    assert end.methods["dpsgd"].rounds == 0
    assert status(tmp_path / "x")[0] == 1


def test_a_run_that_was_asked_to_stop_says_so_and_goes_on(tmp_path: Path):
    devices = FlowerApp({"method": "dpsgd"}, make_server_app(), make_client_app())
    config = {
        "num-nodes": 2,
        "num-server-rounds": 2,
        "local-iterations": 1,
        "image-encoder": "tiny",
    }
    given = {**config, "run-dir": str(tmp_path), "run-name": "x"}
    with pytest.raises(RunStoppedError):
        run_app(devices, 2, given, stopping=lambda: True)
    assert ending(tmp_path).ended == "stopped"
    run_app(devices, 2, {**given, "resume": "x", "run-name": ""})
    assert ending(tmp_path).ended == "finished"


def test_a_run_without_an_end_goes_on_or_was_killed(tmp_path: Path):
    run_four(tmp_path, SOUND)
    (tmp_path / "x" / "end.json").unlink()
    code, said = status(tmp_path / "x")
    assert code == 1 and "not ended yet: it is still going, or it was killed" in said
    assert read_run(tmp_path / "x").methods[0].end.finished == [0, 1, 2, 3]
    (tmp_path / "x" / "end.json").write_text('{"ended": "well"}')
    code, said = status(tmp_path / "x")
    assert code == 1 and "end.json: ended: Input should be 'finished'" in said
    code, said = status(tmp_path)
    assert code == 1 and "not a run folder (it has no config.json)" in said


@pytest.mark.parametrize(
    ("given", "nodes", "least"), [(1, 12, 1), (5, 12, 5), (1.0, 12, 12), (0.5, 5, 3), (0.1, 30, 3)]
)
def test_the_quorum_by_hand(given: float, nodes: int, least: int):
    assert Settings(min_devices=given, num_nodes=nodes).quorum == least


def test_the_missing_are_listed_up_to_ten():
    assert absence("m", range(3), []) == ""
    text = absence("m", range(20), range(12))
    assert text.endswith("Missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")
    assert text.startswith("m: 8 of 20 devices")
    assert MethodEnd(rounds=1, of=2, begun=[0, 1, 2], finished=[1]).missing == [0, 2]
