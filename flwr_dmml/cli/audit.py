"""The command ``flwr-dmml audit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .output import errors_in_words, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..api.auditing import Attacks, Audit
    from ..privacy.membership import Share

WIDEST = 16
"""Devices of which the matrix of pairs is printed; --json has it of more."""
KINDS: tuple["Attacks", ...] = ("threshold", "calibrated")


def audit(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/20261121-120000-dmml-kd.")],
    method: Annotated[
        str, typer.Option(help="Method, in a run of two (default: its main one).")
    ] = "",
    non_members: Annotated[
        Literal["auto", "validation", "test"],
        typer.Option(help="Samples that stand for those that were not trained on."),
    ] = "auto",
    app: Annotated[
        Path | None, typer.Option(help="The run's app, if it has methods or data of its own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what a run's devices tell their neighbours about single training samples.

    Membership inference: an attacker that has what one neighbour received in the round of the last
    checkpoint, after noise and compression, tells training samples from others: by their loss, and
    by that of other devices' models for comparison. A guess has AUC 0.5, and finds 1 % of the
    training samples at 1 % false positives. The data are read again, as the run's config.json says.

    Samples to compare with are those that the device holds out, and test samples with the same
    class shares; where devices have people or files of their own, those held out alone.

    [bold]Examples[/bold]

      flwr-dmml audit runs/mine

      flwr-dmml audit runs/mine --non-members validation --json

      flwr-dmml audit runs/mine --app my-app

    [bold]Exit status[/bold]  0: measured.  1: RUN has kept no checkpoint, or cannot be read.
    2: wrong command line.
    """
    from ..api.auditing import audit as attack

    with errors_in_words():
        found = attack(run, method=method, non_members=non_members, app=app)
        if as_json:
            import json

            say(json.dumps(found.to_json(), indent=2))
            return
        _show(found)


def _show(found: "Audit") -> None:
    from rich.console import Console

    from ..privacy.membership import ENOUGH

    console = Console()
    say(
        f"{found.method}, round {found.round}: how well training samples can be told from "
        f"{found.non_members} samples, given what one neighbour received "
        "(unit: one training sample)"
    )
    console.print(_devices(found))
    if 1 < len(found.devices) <= WIDEST:
        console.print(_matrix(found))
    few = min(attack.threshold.others for attack in found.devices)
    if few < ENOUGH:
        say(
            f"{few} samples to compare with are few for a rate of 1 %: {ENOUGH} are better. Hold "
            "out more (validation-fraction), or see --non-members"
        )


def _devices(found: "Audit") -> "Table":
    from rich.table import Table

    table = Table("device", "attacker", "by", title="Devices, with 95 % intervals")
    heads = ("members / others", "loss: AUC", "found at 1 %", "calibrated: AUC", "found at 1 %")
    for head in heads:
        table.add_column(head, justify="right")
    for attack in found.devices:
        sizes = f"{attack.threshold.members} / {attack.threshold.others}"
        cells = [
            cell
            for one in (attack.threshold, attack.calibrated)
            for cell in ((_told(one.auc), _told(one.true_positives)) if one else ("-", "-"))
        ]
        by = "+".join(attack.modalities)
        table.add_row(str(attack.of), str(attack.by), by, sizes, *cells)
    table.add_section()
    kinds = [kind for kind in KINDS if found.of(kind)]
    means = [_told(found.mean(k, what)) for k in kinds for what in ("auc", "true_positives")]
    table.add_row("mean", "", "", "", *means)
    worst = {kind: found.of(kind)[found.worst(kind)] for kind in kinds}
    rows = [
        x for kind in kinds for x in (_told(worst[kind].auc), _told(worst[kind].true_positives))
    ]
    table.add_row("worst", "", ", ".join(str(found.worst(kind)) for kind in kinds), "", *rows)
    return table


def _matrix(found: "Audit") -> "Table":
    from rich.table import Table

    every = sorted({attack.of for attack in found.devices} | {a.by for a in found.pairs})
    auc = {(a.by, a.of): (a.calibrated or a.threshold).auc.value for a in found.pairs}
    title = (
        "AUC of one neighbour (row) on the samples of a device (column), calibrated if it can be"
    )
    table = Table("", *map(str, every), title=title)
    for by in every:
        cells = (f"{auc[by, of]:.2f}" if (by, of) in auc else "" for of in every)
        table.add_row(str(by), *cells)
    return table


def _told(share: "Share") -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
