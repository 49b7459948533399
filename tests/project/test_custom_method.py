"""examples/custom_method: a method in a package of its own."""

import json
from pathlib import Path

import pytest
from helpers import simulate_custom

FEW = {
    "num-nodes": 4,
    "num-server-rounds": 4,
    "local-iterations": 2,
    "evaluate-every": 4,
    "samples-per-node": 60,
    "run-name": "x",
}


def losses(folder: Path) -> list[float]:
    lines = (folder / "x" / "smooth-start" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("here")
    return simulate_custom(folder / "installed", folder / "runs", **FEW)


def test_its_plan_tells_its_learner_when_to_smooth(here: Path, tmp_path: Path):
    """Half of 4 rounds are smoothed: with no share of them, the first loss is another one."""
    none = {**FEW, "smooth-start.share": 0.0}
    without = simulate_custom(tmp_path / "a", tmp_path / "none", **none)
    assert losses(here)[0] > losses(without)[0]


def test_it_writes_the_same_on_workers(here: Path, tmp_path: Path):
    """A process that finds the method by its entry point, and one that is handed it."""
    there = simulate_custom(tmp_path / "a", tmp_path / "there", workers=2, **FEW)
    metrics = [f / "x" / "smooth-start" / "metrics.jsonl" for f in (here, there)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_its_options_are_checked_like_any_other(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"smooth-start\.smoothing = 1\.5"):
        simulate_custom(tmp_path / "a", tmp_path / "b", **FEW, **{"smooth-start.smoothing": 1.5})
