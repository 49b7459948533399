"""What ``fleet serve`` gives a run, and which runs it refuses."""

from pathlib import Path

import pytest
from helpers_fleet import TWO

from flwr_dmml.fleet import FleetError, read_fleet
from flwr_dmml.fleet.serving import Task, rounds_written


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
