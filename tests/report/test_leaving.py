"""The privacy section: unit, adversary and epsilon, or that there is none."""

from pathlib import Path
from typing import Any

import pytest
from helpers_report import make_round, write_run

from flwr_dmml.learning.spending import EPSILON, SIGMA, SPENT, STEPS
from flwr_dmml.report import read_run
from flwr_dmml.report.leaving import privacy_sections
from flwr_dmml.report.parts import Table


def told(
    folder: Path, method: str = "dpsgd", epsilons: bool = False, **settings: Any
) -> dict[str, str]:
    rounds = [make_round(1, None), make_round(2, [0.5, 0.6, 0.7])]
    for record in rounds if epsilons else ():
        for node in record.nodes:
            own = {EPSILON: record.round * (1.0 + node.partition), SIGMA: 1.5}
            node.own |= own | {STEPS: 10.0 * record.round, SPENT: float(node.partition == 2)}
    (section,) = privacy_sections(read_run(write_run(folder, "run", {method: rounds}, **settings)))
    if not section.parts:
        return {}
    (table,) = section.parts
    assert isinstance(table, Table)
    return dict(table.rows)  # type: ignore[arg-type]


def test_a_run_without_a_mechanism_says_so(tmp_path: Path):
    found = told(tmp_path)
    assert found["epsilon"].startswith("none: no unit is protected against anybody")
    assert "training losses" in found["besides parameters"]
    assert "source of the noise" not in found


@pytest.mark.parametrize(("dp", "unit"), [("sample", "one training sample"), ("device", "all")])
def test_noise_is_told_with_unit_adversary_and_epsilon(tmp_path: Path, dp: str, unit: str):
    private = {"privacy.dp": dp, "privacy.sigma": 1.5, "privacy.accountant": "pld"}
    found = told(tmp_path, epsilons=True, **private)
    assert found["unit"].startswith(unit) and found["adversary"].startswith("all who see")
    assert found["epsilon: least / median / most"] == f"2 / 4 / 6 at delta 1/(10 {dp}s)"
    assert (found["sigma"], found["steps with noise"]) == ("1.5", "20")
    assert found["stopped by the budget"] == "2"
    assert found["found by"] == "privacy loss distributions"
    assert found["source of the noise"].startswith("each device's operating system")
    assert "losses" not in found["besides parameters"]


def test_what_a_method_takes_is_told(tmp_path: Path):
    assert "prototypes" in told(tmp_path, method="fedproto")["besides parameters"]


def test_noise_that_cancels_and_sums_state_no_epsilon(tmp_path: Path):
    found = told(tmp_path / "a", **{"privacy.zip-noise": 0.1})
    assert "no epsilon is stated" in found["noise on copies"] and "source of the noise" in found
    more = {"num-nodes": 3, "topology": "complete", "privacy.secure-sums": True}
    found = told(tmp_path / "b", **more)
    assert "not a single one" in found["sums"] and found["source of the masks"].startswith("X25519")


def test_nothing_is_said_where_nothing_leaves(tmp_path: Path):
    assert told(tmp_path, method="local") == {}
