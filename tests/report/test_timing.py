"""Figures of simulated seconds: bars by hand, and pages of runs in which nobody waits."""

from pathlib import Path

import pytest
from helpers_report import make_round, write_run

from flwr_dmml.report import read_run, report_sections
from flwr_dmml.report.parts import Figure
from flwr_dmml.report.reading import ReportError
from flwr_dmml.report.theme import resolve
from flwr_dmml.report.timing import device_rounds
from flwr_dmml.tracking.events import EVENTS, DeviceRound, lines_of

ROUNDS = [
    DeviceRound(device=0, number=1, start_s=0, sends_s=0.75, end_s=1),
    DeviceRound(device=0, number=2, start_s=1, sends_s=1.75, end_s=2, letters=[(1, 0)]),
    DeviceRound(device=1, number=1, start_s=0, sends_s=2, end_s=2),
    DeviceRound(device=0, number=3, start_s=2, sends_s=2.75, end_s=3, letters=[(1, 0), (2, 2)]),
]


def figures_of(run: Path) -> dict[str, Figure]:
    sections = report_sections(read_run(run))
    return {p.name: p for s in sections for p in s.parts if isinstance(p, Figure)}


def make_run(tmp_path: Path, *, waits: bool) -> Path:
    rounds = [make_round(1, None, devices=2), make_round(2, [0.5, 0.6], devices=2)]
    for line in rounds:  # half a second each: one needs half of it
        line.by_partition[0].simulated_s, line.by_partition[1].simulated_s = 0.25, 0.5
    run = write_run(tmp_path, "run", {"dpsgd": rounds})
    if not waits:
        (run / "dpsgd" / EVENTS).write_text(lines_of(ROUNDS))
    return run


def test_who_did_what_when_nobody_waits(tmp_path: Path) -> None:
    """Busy are both of two until 2 s, and one of them until 3 s: 5 of 6 device seconds."""
    trains, sends = figures_of(make_run(tmp_path, waits=False))["strip-dpsgd"].data
    assert trains["y"] == ["0", "0", "1", "0"] and trains["base"] == [0, 1, 0, 2]
    assert trains["x"] == [0.75, 0.75, 2, 0.75]
    assert sends["y"] == ["0"] * 3 and sends["base"] == [0.75, 1.75, 2.75]
    assert sends["customdata"] == [1, 2, 3]
    caption = figures_of(tmp_path / "run")["strip-dpsgd"].caption
    assert "first 3 simulated seconds" in caption and "busy 83%" in caption


def test_how_old_letters_were(tmp_path: Path) -> None:
    (bars,) = figures_of(make_run(tmp_path, waits=False))["staleness"].data
    assert bars["x"] == [0, 1, 2] and bars["y"] == pytest.approx([2 / 3, 0, 1 / 3])


def test_those_who_wait_have_gaps(tmp_path: Path) -> None:
    run = make_run(tmp_path, waits=True)
    (trains,) = figures_of(run)["strip-dpsgd"].data
    assert trains["base"] == [0, 0, 0.5, 0.5] and trains["x"] == [0.25, 0.5, 0.25, 0.5]
    assert "busy 75%" in figures_of(run)["strip-dpsgd"].caption
    assert "staleness" not in figures_of(run)


def test_rounds_without_seconds_have_no_strip() -> None:
    assert device_rounds([make_round(1, None)]) == []


def test_plotly_takes_them(tmp_path: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figures = figures_of(make_run(tmp_path, waits=False))
    for name in ("strip-dpsgd", "staleness"):
        graph_objects.Figure(resolve(figures[name].to_plotly(), "dark"))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, waits=False)
    (run / "dpsgd" / EVENTS).write_text("{}\n")
    with pytest.raises(ReportError, match=r"events.jsonl, line 1: "):
        read_run(run)
