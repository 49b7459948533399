"""The settings and measures of ``benchmarks/learning.py --case sensors``; the run takes an hour."""

import sys

import pytest
from helpers import ROOT

from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.tracking import RoundRecord

sys.path.append(str(ROOT / "benchmarks"))
cases = pytest.importorskip("cases", reason="benchmarks/ is in the repository, not in the package")
judging = pytest.importorskip("judging", reason="benchmarks/ is in the repository, not in it")


def test_every_arm_can_run_and_none_has_more_iterations():
    case = cases.CASES["sensors"]
    seen = set()
    for where in case.scenarios.values():
        for arm, own in case.arms.items():
            values = cases.COMMON | cases.DATA[case.data] | where | own | {"data-path": "."}
            settings = parse_settings(values, find_parts()).settings
            assert settings.num_nodes == 18 and settings.partition == "natural"
            assert settings.make_topology() is not None
            seen.add((settings.num_server_rounds, settings.local_iterations, settings.batch_size))
            assert "macro F1" in case.measures, arm
    assert len(seen) == 1


def test_the_bar_reads_macro_f1_over_devices():
    record = RoundRecord(1)
    for node, (modalities, f1) in enumerate(
        [(["phone-acc", "phone-gyro"], 0.5), (["phone-acc", "phone-gyro"], 0.7)]
    ):
        record.node(node, modalities).measured({"test.accuracy": 0.9, "test.macro_f1": f1})
    result = record.to_json()
    assert judging.read("macro F1", result) == pytest.approx(0.6)
    phones, *_ = [m for m in cases.CASES["sensors"].measures if m.startswith("macro F1 of")][1:]
    assert judging.read(phones, result) == pytest.approx(0.6)
    runs = {
        ("ring", arm): {0: result | {"macro_f1": f1}}
        for arm, f1 in (("dmml-kd", 0.83), ("dpsgd", 0.8))
    }
    (bar,) = [b for b in cases.CASES["sensors"].bars if b.scenario == "ring"]
    assert bar.points == {"macro F1": 2.0}
    assert judging.gains(runs, bar, "macro F1") == {0: pytest.approx(3.0)}
