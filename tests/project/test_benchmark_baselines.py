"""The arms, the choice of rates and the tables of ``benchmarks/learning.py --case baselines``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import find_methods
from flwr_dmml.settings import find_parts, parse_settings

sys.path.append(str(ROOT / "benchmarks"))
cases = pytest.importorskip(
    "cases.baselines", reason="benchmarks/ is in the repository, not in the package"
)
baselines = pytest.importorskip("baselines", reason="benchmarks/ is in the repository, not in it")
harness = pytest.importorskip("harness", reason="benchmarks/ is in the repository, not in it")

NEED_NEIGHBOURS_NOW = {("d2", "aided"), ("harmony", "aided")}


def test_every_method_is_there_and_can_run_but_for_couriers_with_two() -> None:
    named = {own["method"] for own in cases.METHODS.values()}
    assert named == set(find_methods()) - {"relaysgd"}
    parts = find_parts()
    for network in cases.NETWORKS:
        refused = set()
        for method in cases.METHODS:
            for way in cases.WAYS:
                values = harness.made({"data-path": "."} | cases.settings_of(network, method, way))
                try:
                    parsed = parse_settings(values, parts).settings
                except SettingsError:
                    refused.add((method, way))
                    continue
                assert parsed.topology == "ring"
                assert (parsed.couriers, parsed.label_correction) == (
                    ("forward", "network") if way == "aided" else ("off", "off")
                )
        assert refused == NEED_NEIGHBOURS_NOW, network


def found_of(tmp_path: Path, seeds: list[int], **means: dict[str, float]) -> Path:
    """Write a file in which every cell of two methods on AV-digits has run, the first rate best."""
    found: dict[str, Any] = {}
    rates = cases.NETWORKS["av-digits"].rates
    for method, by_way in means.items():
        for k, rate in enumerate(rates):
            cell = baselines.Cell("av-digits", method, "alone", rate, cases.RATE_SEED)
            found[cell.name] = {"mean": 0.5 - 0.1 * k, "seconds": 1.0}
        for way, mean in by_way.items():
            for seed in seeds:
                cell = baselines.Cell("av-digits", method, way, rates[0], seed)
                numbers = {"min": 0.1, "macro F1": 0.2, "kB a round": 30.0, "joules": 40.0}
                found[cell.name] = {"mean": mean + 0.01 * seed, **numbers, "seconds": 1.0}
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(found))
    return file


def test_what_is_in_the_file_is_not_run_again_and_makes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """dpsgd is 2 points ahead alone on every seed, local 1 behind aided: no seed differs."""
    means = {"dpsgd": {"alone": 0.6, "aided": 0.7}, "local": {"alone": 0.58, "aided": 0.71}}
    file = found_of(tmp_path, [0, 1], **means)
    before = file.read_text()
    options = argparse.Namespace(
        json=file, quick=False, rounds=None, seeds=[0, 1], set=[], workers=1,
        scenarios=["av-digits"], arms=["dpsgd", "local"],
    )  # fmt: skip
    assert baselines.run(options) == 0
    assert file.read_text() == before
    printed = capsys.readouterr().out
    row = "| `local` | 0.025 | 0.585 (.580 .590) | 0.100 | 0.200 | 30 | 40 | 0.715 (.710 .720) |"
    assert row in printed
    assert printed.index("`local`") < printed.index("`dpsgd`"), "the best of both ways"
    assert "av-digits, alone: dpsgd first; within noise: nobody" in printed


def test_the_best_rate_is_that_of_a_run_that_came_to_its_end() -> None:
    cells = [baselines.Cell("av-digits", "dpsgd", "alone", rate, 100) for rate in (0.1, 0.2, 0.3)]
    found = {
        cells[0].name: {"mean": 0.4},
        cells[1].name: {"mean": 0.6},
        cells[2].name: {"failed": "diverged"},
    }
    assert baselines.best_rate(found, cells) == 0.2
    assert baselines.best_rate({}, cells) is None
