"""The plan of ``benchmarks/soak.py``, and what is read from what a rehearsal leaves behind."""

import json
import sys
from collections import Counter
from typing import Any

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
soak_plan = pytest.importorskip(
    "soak_plan", reason="benchmarks/ is in the repository, not in the package"
)
soak_bars = pytest.importorskip("soak_bars", reason="benchmarks/ is in the repository, not in it")

Kind, Event = soak_plan.Kind, soak_plan.Event


def test_a_plan_is_its_seeds_and_disturbs_everyone_in_turn() -> None:
    events = soak_plan.plan(0, 20, 30)
    assert events == soak_plan.plan(0, 20, 30) != soak_plan.plan(1, 20, 30)
    assert 20 <= len(events) <= 60, "one every 30 to 90 seconds"
    assert [one.at_s for one in events] == sorted(one.at_s for one in events)
    assert events[-1].at_s < 30 * 60
    counts = Counter(one.kind for one in events)
    assert set(counts) == set(Kind) and max(counts.values()) - min(counts.values()) <= 1
    for one in events:
        low, high = soak_plan.LASTS_S[one.kind]
        assert low <= one.lasts_s <= high
        assert (one.device is None) == (one.kind in soak_plan.OF_ALL)
        assert one.how in soak_plan.HOW.get(one.kind, ("",))
    until = dict.fromkeys(range(20), 0.0)
    for one in events:
        if one.device is not None:
            assert until[one.device] <= one.at_s, "a device has its peace where others are there"
            until[one.device] = one.at_s + one.lasts_s + soak_plan.REST_S


def test_a_plan_of_few_devices_and_kinds_is_full_all_the_same() -> None:
    events = soak_plan.plan(3, 3, 2, 20.0, [Kind.PARTITION, Kind.COORDINATOR])
    assert {one.kind for one in events} == {Kind.PARTITION, Kind.COORDINATOR}
    assert 4 <= len(events) <= 12


def lines(*failed: tuple[int, ...], absent: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Return a round for each of ``failed``, of three devices; ``absent``: round -> device."""
    return [
        {
            "round": number,
            "accuracy": number / 10,
            "failed": {str(k): "no reply" for k in those},
            "nodes": [
                {"partition": k, "accuracy": 0.5, "updates": {"image": 0 if k in those else 4}}
                for k in range(3)
                if (absent or {}).get(number) != k
            ],
        }
        for number, those in enumerate(failed, 1)
    ]


def happened(kind: Any, device: int | None, begun: int, ended: int) -> Any:
    return soak_bars.Happened(Event(0.0, 0.0, kind, device), begun, ended, 0.0)


def test_a_device_is_back_when_it_trains_and_the_rounds_until_then_are_lost() -> None:
    told = lines((), (), (), (1,), (), (2,), absent={5: 1})
    cut = happened(Kind.PARTITION, 1, begun=1, ended=1)
    found = soak_bars.recovery(cut, told)
    assert (found.round, found.lost) == (6, 2), "4 it fails, 5 is without it"
    assert soak_bars.recovery(cut, told[:5]).round is None
    killed = soak_bars.recovery(happened(Kind.COORDINATOR, None, 4, 4), told)
    assert (killed.round, killed.lost) == (5, 0)
    assert soak_bars.unexplained([cut], told) == {"no reply": 1}, "device 2 in round 6"
    every = {"no reply": 2, "it is not in the run": 1}
    assert soak_bars.unexplained([], told) == every


def test_a_round_is_wrong_if_it_differs_is_missing_or_comes_twice() -> None:
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines((), (), ()))
    first, second, third = text.splitlines(keepends=True)
    assert soak_bars.wrong_lines(text, text, 3) == 0
    changed = text.replace(b"0.2", b"0.3")
    assert soak_bars.wrong_lines(changed, text, 1) == 0, "it was disturbed by then"
    assert soak_bars.wrong_lines(changed, text, 2) == 1
    assert soak_bars.wrong_lines(first + third, text, 1) == 1
    assert soak_bars.wrong_lines(first + second + second + third, text, 1) == 2
    assert soak_bars.impossible(lines((), ())) == 0
    lied = lines((), ())
    lied[1]["nodes"][0]["accuracy"] = 1e9
    assert soak_bars.impossible(lied) == 1


def test_growth_is_the_slope_after_the_first_two_minutes() -> None:
    grows = soak_bars.Process("zygote", [(t, 100 + t / 30, 10) for t in range(0, 401, 5)])
    loads = soak_bars.Process("zygote", [(t, min(t, 120) * 10, 5) for t in range(0, 401, 5)])
    brief = soak_bars.Process("zygote", [(t, 50 * t, t) for t in range(0, 290, 5)])
    found = soak_bars.growths([grows, loads, brief])
    assert set(found) == {"zygote"} and found["zygote"].processes == 2
    assert found["zygote"].mb == pytest.approx(2.0) and found["zygote"].files == 0
    leaks = soak_bars.Process("SuperNode", [(t, 100, t // 10) for t in range(0, 401, 10)])
    assert soak_bars.growths([leaks])["SuperNode"].files == pytest.approx(6.0)
