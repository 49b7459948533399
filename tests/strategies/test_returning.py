"""A run that is resumed without some of its devices, which come back later."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from helpers import QUICKSTART
from helpers_flower import serve
from helpers_resume import SMALL, metrics, run

from flwr_dmml.engine import load_app
from flwr_dmml.strategies import RunStoppedError, keeper, returning, roster
from flwr_dmml.strategies.keeper import ResumeError
from flwr_dmml.strategies.member import members_from_json, members_to_json
from flwr_dmml.strategies.roster import NoDevicesError

CONFIG: dict[str, Any] = {
    **SMALL, "method": "dpsgd", "num-server-rounds": 8, "topology": "complete", "wait-timeout": 1e-3
}  # fmt: skip
AWAY = "it has not come since the run was resumed"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    for module in (keeper, roster):
        monkeypatch.setattr(module, "AGAIN_S", 0.0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(RunStoppedError):
        serve(load_app(QUICKSTART), folder, {**CONFIG, "run-name": "r"}, stop_in=2)
    return folder / "r"


@pytest.fixture
def r(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "r")


def failed(run: Path) -> list[dict[str, str]]:
    lines = (run / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("failed", {}) for line in lines]


def test_a_resumed_run_goes_on_without_a_device_and_takes_it_back(
    r: Path, caplog: pytest.LogCaptureFixture
):
    """Device 2 connects after the message of round 4: it is met in 5, given its state in 6."""
    caplog.set_level("INFO", logger="flwr")
    serve(load_app(QUICKSTART), r.parent, {**CONFIG, "resume": "r"}, away={2: 2})
    assert "The run goes on without devices 2 until they are back" in caplog.text
    assert "Device 2 is back: it takes part again" in caplog.text
    missing = [each.get("2") for each in failed(r)]
    assert missing == [None, None, AWAY, AWAY, AWAY, AWAY, None, None]
    last = json.loads((r / "dpsgd" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {node["partition"] for node in last["nodes"] if "accuracy" in node} == {0, 1, 2, 3}


def test_it_may_be_the_only_one_with_a_sensor(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="flwr")
    own = {**CONFIG, "modality-pattern": "audio,audio,audio+image,audio"}
    with pytest.raises(RunStoppedError):
        serve(load_app(QUICKSTART), tmp_path, {**own, "run-name": "r"}, stop_in=2)
    serve(load_app(QUICKSTART), tmp_path, {**own, "resume": "r"}, away={2: 2})
    assert "Device 2 is back: it takes part again" in caplog.text
    missing = [each.get("2") for each in failed(tmp_path / "r")]
    assert missing == [None, None, AWAY, AWAY, AWAY, AWAY, None, None]


def test_a_device_that_stays_away_is_kept_in_checkpoints(r: Path, tmp_path: Path):
    """Resumed without device 2 and stopped, then resumed with it: nobody is away."""
    with pytest.raises(RunStoppedError):
        serve(load_app(QUICKSTART), r.parent, {**CONFIG, "resume": "r"}, stop_in=2, away={2: 99})
    serve(load_app(QUICKSTART), r.parent, {**CONFIG, "resume": "r"})
    missing = [each.get("2") for each in failed(r)]
    assert missing == [None, None, AWAY, AWAY, None, None, None, None]


class Failing:
    """Device 1 fails its first messages of a kind."""

    def __init__(
        self, app: Callable[[Message, Context], Message], kind: str, times: int = 1
    ) -> None:
        self._app, self._kind, self._left = app, kind, times

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if context.node_config["partition-id"] == 1 and kind == self._kind and self._left:
            self._left -= 1
            raise RuntimeError(f"no {kind} yet")
        return self._app(message, context)


@pytest.mark.parametrize("kind", ["query.hello", "query.restore"])
def test_a_device_that_fails_when_the_run_goes_on_is_away(
    kind: str, r: Path, caplog: pytest.LogCaptureFixture
):
    """It is asked again when it connects anew; until then it is left out."""
    caplog.set_level("INFO", logger="flwr")
    app = load_app(QUICKSTART)
    app = replace(app, client_app=Failing(app.client_app, kind, times=1_000_000))
    serve(app, r.parent, {**CONFIG, "resume": "r"})
    assert "The run goes on without devices 1 until they are back" in caplog.text
    assert f"no {kind} yet" in caplog.text
    assert [each.get("1") for each in failed(r)[2:]] == [AWAY] * 6


def test_a_device_that_could_not_be_taken_back_is_asked_again(
    r: Path, caplog: pytest.LogCaptureFixture
):
    """It fails while the run waits, which is for no time here, and answers in round 3."""
    caplog.set_level("INFO", logger="flwr")
    app = load_app(QUICKSTART)
    app = replace(app, client_app=Failing(app.client_app, "query.restore", times=1))
    serve(app, r.parent, {**CONFIG, "resume": "r", "wait-timeout": 1e-9})
    assert "Device 1 is back" in caplog.text
    assert [each.get("1") for each in failed(r)[2:]] == [AWAY, AWAY, None, None, None, None]


@pytest.mark.parametrize("kind", ["query.hello", "query.restore"])
def test_a_device_that_restarts_before_it_answers_is_asked_again(
    kind: str, r: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Its message is lost, as Flower delivers each once; it was online at every look."""
    caplog.set_level("INFO", logger="flwr")
    monkeypatch.setattr(returning, "IDLE_AGAIN_S", 0.0)
    app = load_app(QUICKSTART)
    how = {"away": {2: 1}, "dropped": {(2, kind)}}
    grid = serve(app, r.parent, {**CONFIG, "resume": "r"}, **how)  # type: ignore[arg-type]
    assert "Device 2 is back: it takes part again" in caplog.text
    assert grid.kinds.count((2, kind)) == 2
    assert [each.get("2") for each in failed(r)[-2:]] == [None, None]


@pytest.mark.parametrize("times", [1, 99])
def test_a_device_that_was_refused_is_asked_again_later(
    times: int, r: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Its disk was not there yet; the log names the reason once."""
    caplog.set_level("INFO", logger="flwr")
    monkeypatch.setattr(returning, "REFUSED_AGAIN_S", 0.0)
    app = load_app(QUICKSTART)
    app = replace(app, client_app=Failing(app.client_app, "query.hello", times))
    grid = serve(app, r.parent, {**CONFIG, "resume": "r"}, away={1: 1})
    assert grid.kinds.count((1, "query.hello")) > 1
    assert caplog.text.count("no query.hello yet") == 1
    assert ("Device 1 is back" in caplog.text) == (times == 1)


@pytest.mark.parametrize("wrong", ["another", "changed"])
def test_another_device_is_not_taken_for_one_that_is_away(
    wrong: str, r: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="flwr")
    app = load_app(QUICKSTART)

    def odd(message: Message, context: Context) -> Message:
        reply = app.client_app(message, context)
        partition = context.node_config["partition-id"]
        if partition == 2 and message.metadata.message_type == "query.hello":
            (about,) = unpacked(reply).config_records.values()
            about.update({"partition-id": 0} if wrong == "another" else {"num-train": 37})
        return reply

    serve(replace(app, client_app=odd), r.parent, {**CONFIG, "resume": "r"}, away={2: 1})
    said = {
        "another": "it is device 0, and those that are away are 2",
        "changed": "device 2 is not what it was: it has other training samples",
    }
    assert said[wrong] in caplog.text
    assert caplog.text.count(said[wrong]) == 1, "it is asked once"
    assert [each.get("2") for each in failed(r)[2:]] == [AWAY] * 6


def unpacked(reply: Message) -> Any:
    """Return the content of a reply, which these devices pack, to be changed in place."""
    from flwr_dmml.transport.packing import unpacked as read

    reply.content = read(reply.content)
    return reply.content


def test_too_few_that_are_there_are_an_error_and_nothing_is_lost(r: Path):
    before = metrics(r)
    with pytest.raises(NoDevicesError, match="min-devices asks for 4, and only 3 devices"):
        serve(
            load_app(QUICKSTART), r.parent, {**CONFIG, "resume": "r", "min-devices": 4}, away={2: 9}
        )
    app = load_app(QUICKSTART)
    failing = replace(app, client_app=Failing(app.client_app, "query.restore", times=99))
    with pytest.raises(ResumeError, match=r"taken back to their states: node 1: .*no query"):
        serve(failing, r.parent, {**CONFIG, "resume": "r", "min-devices": 4})
    assert metrics(r) == before


def test_devices_that_are_there_are_not_asked_anew(stopped: Path, tmp_path: Path):
    """With all of them there the run goes on as one that was never stopped."""
    whole = run(tmp_path, "whole", **CONFIG)
    copy = shutil.copytree(stopped, tmp_path / "r")
    asked: list[str] = []
    app = load_app(QUICKSTART)

    def heard(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return app.client_app(message, context)

    serve(replace(app, client_app=heard), tmp_path, {**CONFIG, "resume": "r"})
    assert metrics(whole) == metrics(copy)
    assert count(asked, "query.hello") == count(asked, "query.restore") == 4


def count(all_of: Sequence[str], kind: str) -> int:
    return sum(one == kind for one in all_of)


def test_a_member_is_written_and_read_as_it_was(stopped: Path):
    (place,) = sorted(stopped.rglob("state.json"))[-1:]
    written = json.loads(place.read_text())["about"]["members"]
    members = members_from_json(written)
    assert members_to_json(members) == written and len(members) == 4
    sealed = replace(members[0], announced=bytes(range(256)), mask_key=b"\xff\x00")
    assert members_from_json(members_to_json({0: sealed})) == {0: sealed}
