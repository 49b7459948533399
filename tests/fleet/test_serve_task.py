"""What ``fleet serve`` gives a run, and which runs it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_fleet import TWO

from flwr_dmml.fleet import FleetError, read_fleet, serving
from flwr_dmml.fleet.serving import GaveUpError, Supervisor, Task, rounds_written, unit


def task(folder: Path, *settings: str) -> Task:
    file = folder / "fleet.toml"
    file.write_text(TWO)
    return Task(read_fleet(file), folder, folder / "app", "monday", settings)


def test_a_run_gets_its_name_its_folder_and_its_number_of_devices(tmp_path: Path) -> None:
    given = task(tmp_path, "seed=1 rounds='sync'").config(resume=True)
    run = tmp_path / "superlink/runs"
    assert given == (
        f"run-dir='{run}' run-name='monday' num-nodes=2 resume='{run / 'monday'}' "
        "seed=1 rounds='sync'"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("seed=1 resume='x'", "resume: fleet serve sets this itself; use --name, --runs"),
        ("rounds='async'", "rounds = 'async': real devices leave no checkpoints"),
        ('seed=1 rounds="async"', "rounds = 'async': real devices leave no checkpoints"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(FleetError, match=said):
        task(tmp_path, settings).config(resume=False)


def test_a_round_that_only_a_checkpoint_has_is_progress(tmp_path: Path) -> None:
    """A round is in the metrics when the next one has evaluated its models."""
    for method, rounds, saved in (("dpsgd", 6, 6), ("dmml-kd", 4, 5)):
        (tmp_path / method / f"checkpoints/round-{saved:05d}").mkdir(parents=True)
        (tmp_path / method / "checkpoints/round-00009.part").mkdir()
        (tmp_path / method / "metrics.jsonl").write_text("{}\n" * rounds)
    assert rounds_written(tmp_path) == 6 + 5
    assert rounds_written(tmp_path / "none") == 0


# ---- what Flower does not answer ----------------------------------------------------------------


class Flower:
    """Answers of the command ``flwr``; the second start finishes the run."""

    def __init__(self, run: Path) -> None:
        self.run, self.asked, self.silent = run, list[str](), 1

    def __call__(self, fleet: object, folder: object, arguments: list[str]) -> dict[str, Any]:
        what = arguments[0]
        self.asked.append(what)
        if what == "ls":
            if self.silent:
                self.silent -= 1
                raise FleetError("flwr ls lab: nothing, exit status -9")
            return {"runs": [{"status": "finished:failed"}]}
        if what == "run" and self.asked.count("run") == 2:
            self.run.mkdir(parents=True)
            (self.run / "config.json").write_text("{}")
            (self.run / "end.json").write_text(json.dumps({"ended": "finished", "methods": {}}))
        return {"success": True, "run-id": 7}


def test_a_command_of_flower_that_is_killed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower is asked again later; the run is started anew when it says that it has ended."""
    one, told = task(tmp_path), list[str]()
    flower = Flower(one.run)
    monkeypatch.setattr(serving, "flower", flower)
    monkeypatch.setattr(serving, "handshake", lambda *given: "")
    monkeypatch.setattr(serving, "last_error", lambda *given: "no memory")
    monkeypatch.setattr(serving, "ASK_S", 0.0)
    monkeypatch.setattr(serving, "POLL_S", 0.01)
    ending = Supervisor(one, told.append, tries=3, pause_s=0.0).serve()
    assert ending.ended == "finished"
    assert flower.asked == ["run", "ls", "ls", "ls", "run"]
    assert "Flower's run 7: flwr ls lab: nothing, exit status -9" in told
    assert "monday: Flower's run 7 is finished:failed: no memory; 0 rounds so far" in told


def test_giving_up_is_not_undone_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an exit status of its own; after any other error the unit starts it again."""
    one = task(tmp_path)
    monkeypatch.setattr(serving, "handshake", lambda *given: "")
    monkeypatch.setattr(serving, "flower", lambda *given: {"error-message": "no room"})
    with pytest.raises(GaveUpError, match=r"gave up after 2 starts without a new round: .*no room"):
        Supervisor(one, lambda line: None, tries=2, pause_s=0.0).serve()
    text = unit(one, ["serve"], "pi")
    assert f"RestartPreventExitStatus=2 {GaveUpError.exit_status}\n" in text
    assert "Restart=on-failure\n" in text and "StartLimitIntervalSec=0\n" in text
    assert FleetError.exit_status == 1
