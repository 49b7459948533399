"""The figure of the README: accuracy per round in the quickstart, by the sensors of the devices.

Three runs: D-PSGD and DMML-KD as in the quickstart, and the control, D-PSGD with the choices of
DMML-KD. Evaluating every round changes no number, only how many are drawn.

    flwr-dmml simulate examples/quickstart --set evaluate-every=1 --set run-name=figure
    flwr-dmml simulate examples/quickstart --set evaluate-every=1 --set run-name=figure-control \
        --set method=dmml --set gossip=dpsgd --set allocation.rule=uniform
    python benchmarks/figure.py runs/figure runs/figure-control docs/assets/quickstart.svg
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from drawing import Line, Panel, chart

from flwr_dmml.report.reading import read_run
from flwr_dmml.tracking.records import RoundRecord

PANELS = {
    "": "all 12 devices",
    "audio": "microphone only",
    "image": "camera only",
    "audio+image": "both sensors",
}
"""Title of each panel by the sensors of its devices."""
LINES = {
    "dmml": Line("DMML-KD", "1", 2.5),
    "half": Line("D-PSGD, with the choices of DMML-KD", "0", 2, "5 4"),
    "dpsgd": Line("D-PSGD", "muted"),
}


def curve(rounds: Sequence[RoundRecord], sensors: str) -> list[tuple[int, float]]:
    """Return round and mean accuracy of the devices with these sensors, or of all of them."""
    found = [(r.round, r.accuracy_by_set[sensors] if sensors else r.accuracy) for r in rounds]
    return [(number, value) for number, value in found if value is not None]


def main(
    run: Annotated[Path, typer.Argument(help="run folder with dpsgd and dmml-kd")],
    control: Annotated[Path, typer.Argument(help="run folder of the control")],
    output: Annotated[Path, typer.Argument(help="file to write")],
) -> None:
    """Draw accuracy per round, a panel for each set of sensors."""
    methods = {method.name: method.evaluated for method in read_run(run).methods}
    half = read_run(control).methods[-1].evaluated
    rounds = {"dmml": methods["dmml-kd"], "half": half, "dpsgd": methods["dpsgd"]}
    panels = []
    for sensors, title in PANELS.items():
        curves = {name: curve(lines, sensors) for name, lines in rounds.items()}
        panels.append(Panel(title, curves, low=0.1, high=1.0, ticks=(0.2, 0.4, 0.6, 0.8)))
    label = "Test accuracy per round of DMML-KD and D-PSGD, by the sensors of the devices"
    foot = "test accuracy over rounds, mean over devices"
    output.write_text(chart(LINES, panels, label, foot), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
