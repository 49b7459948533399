"""Axes and colours of report pages, without a browser."""

import re

from flwr_dmml.report.curves import Line, plot
from flwr_dmml.report.parts import Cards
from flwr_dmml.report.theme import THEMES, css, whole_ticks


def test_rounds_are_whole_numbers_on_axes() -> None:
    """At most nine ticks, at multiples of 1, 2 or 5 times a power of ten."""
    steps = {0: 1, 1: 1, 8: 1, 9: 2, 16: 2, 17: 5, 40: 5, 41: 10, 1_000: 200}
    assert {last: whole_ticks(last)["dtick"] for last in steps} == steps
    lines = [Line("x", [1, 2, 30], [0, 0, 0]), Line("y", [1, 2], [0, 0])]
    by_round = plot("a", "", lines, x_title="round", y_title="y").layout["xaxis"]
    assert (by_round["tick0"], by_round["dtick"]) == (0, 5)
    assert "dtick" not in plot("a", "", lines, x_title="joules", y_title="y").layout["xaxis"]


def test_a_card_has_the_colour_of_its_curve() -> None:
    """That of line i for card i, in both themes; dark by the system or by the switch."""
    html = Cards([("dpsgd", [("rounds", "6")]), ("dmml-kd", [])]).to_html()
    bars = re.findall(r"var\(--(colour-\d)\)", html)
    lines = [Line(name, [1], [0], i, i) for i, name in enumerate(("dpsgd", "dmml-kd"))]
    drawn = [t["line"]["color"] for t in plot("a", "", lines, x_title="", y_title="").data]
    assert bars == [colour.replace("@", "colour-") for colour in drawn] == ["colour-0", "colour-1"]
    for theme, times in (("light", 1), ("dark", 2)):
        assert css().count(f"--colour-1:{THEMES[theme]['1']};") == times
